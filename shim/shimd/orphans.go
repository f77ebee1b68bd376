package shimd

import (
	"context"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/internal/procstat"
	"github.com/criserver/criserver/shim/keeper"
)

// orphans makes the shim a child subreaper while a program is at work that makes a process for it: the program ends, and
// the process must become our child and not the keeper's. Otherwise the shim is none, and what a container in the host's pid
// namespace leaves behind goes to the keeper, who reaps all that ends. What comes to us by chance, in that short time, is
// reaped here, a little later.
type orphans struct {
	ctx   context.Context    // sweeping ends with it
	known func(pid int) bool // a process that somebody here will reap
	every time.Duration      // how often strays are looked for
	after time.Duration      // how long an ended child is left to who may be about to reap it

	soon chan struct{} // something went wrong: strays are looked for at once

	mu       sync.Mutex // guards what follows; nothing blocks while it is held
	expected int
	sweeping bool
}

// expect makes orphans come here until the function that it answers with is called.
func (o *orphans) expect() (done func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.expected == 0 {
		_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	}
	o.expected++
	if !o.sweeping {
		o.sweeping = true
		go o.sweep()
	}
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.expected--; o.expected == 0 {
			_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
		}
	}
}

// suspect has strays looked for at once: one that lies there keeps the pid namespace of its container from ending.
func (o *orphans) suspect() {
	select {
	case o.soon <- struct{}{}:
	default:
	}
}

// sweep reaps strays for as long as the shim lives, once there can be any.
func (o *orphans) sweep() {
	ticker := time.NewTicker(o.every)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-o.soon:
		case <-o.ctx.Done():
			return
		}
		s, err := keeper.Wait(unix.P_ALL, 0, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT)
		if err != nil || s.PID == 0 {
			continue // nobody has ended who was not reaped
		}
		ended := zombies(os.Getpid())
		select {
		case <-time.After(o.after):
		case <-o.ctx.Done():
		}
		for pid, fd := range ended {
			if !o.known(pid) {
				_, _ = keeper.Wait(unix.P_PIDFD, fd, unix.WEXITED|unix.WNOHANG)
			}
			_ = unix.Close(fd)
		}
	}
}

// zombies opens a pidfd for each child of a process that has ended and was not reaped.
func zombies(parent int) map[int]int {
	found := map[int]int{}
	for _, pid := range procstat.Zombies(parent) {
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			found[pid] = fd
		}
	}
	return found
}
