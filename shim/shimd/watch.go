package shimd

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/keeper"
)

// watcher tells when processes end. One goroutine polls all pidfds, by an epoll instance that is itself in Go's poller.
type watcher struct {
	epoll *os.File

	mu     sync.Mutex
	last   int32
	ending map[int32]watched
}

type watched struct {
	pidfd int
	ended func()
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
	return &watcher{epoll: os.NewFile(uintptr(fd), "epoll"), ending: map[int32]watched{}}, nil
}

// add calls ended, in a goroutine of its own, once the process of pidfd has ended and can be reaped, if it is ours to reap. The
// descriptor must stay open until then.
func (w *watcher) add(pidfd int, ended func()) error {
	w.mu.Lock()
	w.last++
	id := w.last
	w.ending[id] = watched{pidfd, ended}
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

func (w *watcher) take(id int32) (watched, bool) {
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
				go func() {
					settle(one.pidfd)
					one.ended()
				}()
			}
		}
	}
}

func (w *watcher) close() { _ = w.epoll.Close() }

// settle waits until an ended process can be reaped. While a process in its container traces it, the kernel hides the end from
// the parent.
func settle(pidfd int) {
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		s, err := keeper.Wait(unix.P_PIDFD, pidfd, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT)
		if err != nil || s.PID != 0 {
			return
		}
		time.Sleep(pause)
	}
}

// peek says how our own child ended, and leaves it to be reaped. ours is false for another's child, or one that is reaped.
func peek(pidfd int) (code int, ours bool) {
	s, err := keeper.Wait(unix.P_PIDFD, pidfd, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT)
	return s.Code, err == nil && s.PID != 0
}

func reap(pidfd int) { _, _ = keeper.Wait(unix.P_PIDFD, pidfd, unix.WEXITED|unix.WNOHANG) }

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
