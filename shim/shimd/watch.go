package shimd

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/internal/procstat"
	"github.com/criserver/criserver/shim/keeper"
	"github.com/criserver/criserver/shim/native"
)

// watcher tells when processes end. One goroutine polls all pidfds, by an epoll instance that is itself in Go's poller.
type watcher struct {
	epoll *os.File

	mu     sync.Mutex
	last   int32
	ending map[int32]func()
}

func newWatcher() (*watcher, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll of pidfds: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // makes os.NewFile give it to the poller
		_ = unix.Close(fd)
		return nil, err
	}
	return &watcher{epoll: os.NewFile(uintptr(fd), "epoll"), ending: map[int32]func(){}}, nil
}

// add calls ended, in a goroutine of its own, once the process of pidfd has ended. The descriptor must stay open until then.
func (w *watcher) add(pidfd int, ended func()) error {
	w.mu.Lock()
	w.last++
	id := w.last
	w.ending[id] = ended
	w.mu.Unlock()
	err := w.control(func(epoll int) error {
		return unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, pidfd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: id})
	})
	if err != nil {
		w.take(id)
		return fmt.Errorf("watch a process: %w", err)
	}
	return nil
}

func (w *watcher) control(f func(epoll int) error) error {
	raw, err := w.epoll.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

func (w *watcher) take(id int32) (func(), bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	one, ok := w.ending[id]
	delete(w.ending, id)
	return one, ok
}

// run serves until close.
func (w *watcher) run() {
	raw, err := w.epoll.SyscallConn()
	if err != nil {
		return
	}
	events := make([]unix.EpollEvent, 16)
	for {
		n := 0
		err := raw.Read(func(fd uintptr) bool {
			n, _ = unix.EpollWait(int(fd), events, 0)
			return n > 0
		})
		if err != nil {
			return
		}
		for _, e := range events[:n] {
			if one, ok := w.take(e.Fd); ok {
				go one()
			}
		}
	}
}

func (w *watcher) close() { _ = w.epoll.Close() }

// peek says how our own child ended, and leaves it to be reaped. ours is false for another's child, or one that is reaped.
func peek(pidfd int) (code int, ours bool) {
	s, err := keeper.Wait(unix.P_PIDFD, pidfd, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT)
	if err != nil {
		return 0, false
	}
	if s.PID != 0 {
		return s.Code, true
	}
	return tracedExit(pidfd)
}

// tracedExit says how a child ended whose end the kernel hides from its parent, because a process in its container traces it.
func tracedExit(pidfd int) (code int, known bool) {
	pid, err := procstat.Of(pidfd)
	if err != nil {
		return 0, false
	}
	stat, err := procstat.Read(pid)
	if err != nil || stat.Field(procstat.ExitCode) == "" || stat.Field(procstat.State) != "Z" {
		return 0, false
	}
	n, err := strconv.Atoi(stat.Field(procstat.ExitCode))
	status := unix.WaitStatus(n)
	if status.Signaled() {
		return 128 + int(status.Signal()), err == nil
	}
	return status.ExitStatus(), err == nil
}

// reap reaps a child that has ended. Where a tracer holds it up that is done later: until then the pid stays taken, and the
// container's pid namespace cannot end, so it is not given up.
func reap(pidfd int) {
	if s, err := keeper.Wait(unix.P_PIDFD, pidfd, unix.WEXITED|unix.WNOHANG); err != nil || s.PID != 0 {
		return
	}
	own, err := unix.FcntlInt(uintptr(pidfd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return
	}
	go native.EndLater(os.NewFile(uintptr(own), "pidfd"))
}

// exitOf asks the kernel how a process ended that somebody else has reaped (PIDFD_INFO_EXIT, Linux 6.15).
func exitOf(pidfd int) (code int, known bool) {
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	if unix.IoctlPidfdInfo(pidfd, &info) != nil || info.Mask&unix.PIDFD_INFO_EXIT == 0 {
		return 0, false
	}
	status := unix.WaitStatus(info.Exit_code)
	if status.Signaled() {
		return 128 + int(status.Signal()), true
	}
	return status.ExitStatus(), true
}

// hasEnded reports whether the process of a pidfd has ended, waiting at most d.
func hasEnded(pidfd int, d time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for deadline := time.Now().Add(d); ; {
		n, err := unix.Poll(fds, int(max(0, time.Until(deadline).Milliseconds())))
		if err != unix.EINTR {
			return n > 0
		}
	}
}
