package shimd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/keeper"
)

// link is the shim's side of the keeper's protocol. Its one goroutine (run) owns the socket and the list of what is
// held, and starts a new keeper when the old one is gone. Descriptors of an entry that was put must stay open until it
// is dropped or put again.
type link struct {
	spawn    func() (*os.File, int, error) // starts an adopting keeper: our end of the pair, its pid
	note     *slog.Logger
	requests chan request
	ended    chan struct{} // closed when run has returned
	pid      atomic.Int32

	// The goroutine's own:
	sock     *os.File
	incoming chan datagram
	stop     chan struct{}
	held     map[string]keeper.Entry
}

type request struct {
	verb   string
	entry  keeper.Entry // of a drop only the key
	answer chan answer
}

type answer struct {
	entries []keeper.Entry
	err     error
}

func newLink(sock *os.File, pid int, spawn func() (*os.File, int, error), note *slog.Logger) *link {
	l := &link{spawn: spawn, note: note, requests: make(chan request), ended: make(chan struct{}), held: map[string]keeper.Entry{}}
	l.attach(sock, pid)
	return l
}

// put makes the keeper hold an entry. It returns when that is so.
func (l *link) put(e keeper.Entry) error {
	_, err := l.ask(keeper.VerbPut, e)
	return err
}

// drop makes the keeper let go of an entry.
func (l *link) drop(key string) error {
	_, err := l.ask(keeper.VerbDrop, keeper.Entry{Key: key})
	return err
}

// list takes over what the keeper holds. The descriptors are the caller's.
func (l *link) list() ([]keeper.Entry, error) { return l.ask(keeper.VerbList, keeper.Entry{}) }

func (l *link) ask(verb string, e keeper.Entry) ([]keeper.Entry, error) {
	r := request{verb: verb, entry: e, answer: make(chan answer, 1)}
	select {
	case l.requests <- r:
	case <-l.ended:
		return nil, fmt.Errorf("keeper: %w", errdefs.ErrUnavailable)
	}
	a := <-r.answer
	return a.entries, a.err
}

// run serves until ctx ends.
func (l *link) run(ctx context.Context) {
	defer close(l.ended)
	for {
		l.serve(ctx)
		l.detach()
		if ctx.Err() != nil {
			return
		}
		l.note.Warn("the keeper is gone, a new one is started", "pid", l.pid.Load())
		if !l.restart(ctx) {
			return
		}
	}
}

// attach makes sock the link; a goroutine receives from it until detach.
func (l *link) attach(sock *os.File, pid int) {
	l.sock, l.incoming, l.stop = sock, make(chan datagram), make(chan struct{})
	l.pid.Store(int32(pid))
	go receive(l.sock, l.incoming, l.stop)
}

func (l *link) detach() {
	close(l.stop)
	_ = l.sock.Close()
}

type datagram struct {
	text string
	fds  []int
	err  error
}

// receive passes on what comes, until an error or stop. The socket is closed by its owner.
func receive(sock *os.File, to chan<- datagram, stop <-chan struct{}) {
	raw, err := sock.SyscallConn()
	if err != nil {
		return
	}
	buffer, oob := make([]byte, keeper.MaxMessage), make([]byte, unix.CmsgSpace(4*keeper.MaxDescriptors))
	for {
		var d datagram
		err := raw.Read(func(fd uintptr) bool {
			d.text, d.fds, d.err = keeper.Receive(int(fd), buffer, oob)
			return !errors.Is(d.err, unix.EAGAIN)
		})
		if err != nil {
			return
		}
		select {
		case to <- d:
		case <-stop:
			return
		}
		if d.err != nil {
			return
		}
	}
}

// serve carries out requests until the keeper is gone or ctx ends.
func (l *link) serve(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.incoming: // only answers are expected: the keeper is gone
			return
		case r := <-l.requests:
			entries, err := l.exchange(ctx, r.verb, r.entry)
			gone := errors.Is(err, errGone)
			if gone && r.verb != keeper.VerbList {
				l.remember(r) // the next keeper gets it with everything else
				err = nil
			} else if err == nil {
				l.remember(r)
			}
			r.answer <- answer{entries, err}
			if gone {
				return
			}
		}
	}
}

func (l *link) remember(r request) {
	switch r.verb {
	case keeper.VerbPut:
		l.held[r.entry.Key] = r.entry
	case keeper.VerbDrop:
		delete(l.held, r.entry.Key)
	}
}

var errGone = fmt.Errorf("the keeper is gone: %w", errdefs.ErrUnavailable)

// exchange sends one message and waits for its answer.
func (l *link) exchange(ctx context.Context, verb string, e keeper.Entry) ([]keeper.Entry, error) {
	message, err := e.Message(verb)
	if err != nil {
		return nil, err
	}
	switch verb {
	case keeper.VerbDrop:
		message = []byte(verb + "\t" + e.Key + "\n")
	case keeper.VerbList:
		message = []byte(verb + "\n")
	}
	if err := l.send(message, e.FDs); err != nil {
		if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
			return nil, errGone
		}
		return nil, fmt.Errorf("send to the keeper: %w", err)
	}
	var entries []keeper.Entry
	for {
		var d datagram
		select {
		case d = <-l.incoming:
		case <-ctx.Done():
			return nil, errGone
		}
		if d.err != nil {
			return nil, errGone
		}
		verb, fields := keeper.Split(d.text)
		switch verb {
		case keeper.VerbOK, keeper.VerbEnd:
			return entries, nil
		case keeper.VerbEntry:
			got, err := keeper.ParseEntry(fields)
			if err != nil {
				return nil, err
			}
			got.FDs = d.fds
			if _, known := l.held[got.Key]; !known {
				l.held[got.Key] = got
			}
			entries = append(entries, got)
		default:
			return nil, fmt.Errorf("the keeper answers %q", strings.Join(fields, " "))
		}
	}
}

func (l *link) send(message []byte, fds []int) error {
	raw, err := l.sock.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Write(func(fd uintptr) bool {
		sent = keeper.Send(int(fd), message, fds)
		return !errors.Is(sent, unix.EAGAIN)
	})
	return errors.Join(err, sent)
}

// restart starts keepers until one has taken everything over, or ctx ends.
func (l *link) restart(ctx context.Context) bool {
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := l.handOver(ctx)
		if err == nil {
			return true
		}
		l.note.Error("no keeper", "error", err)
		select {
		case <-ctx.Done():
			return false
		case <-time.After(pause):
		}
	}
}

func (l *link) handOver(ctx context.Context) error {
	sock, pid, err := l.spawn()
	if err != nil {
		return err
	}
	l.attach(sock, pid)
	for _, e := range l.held {
		if _, err := l.exchange(ctx, keeper.VerbPut, e); err != nil {
			l.detach()
			return fmt.Errorf("hand %s over: %w", e.Key, err)
		}
	}
	return nil
}

// spawnKeeper starts a keeper that adopts this shim.
func spawnKeeper(c Config, watch *watcher) (*os.File, int, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("socket pair: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "keeper")
	defer theirs.Close()
	cmd := exec.Command(c.Keeper, "--state", c.State, "--shim", c.Shim, "--keeper", c.Keeper, "--adopt")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		_ = unix.Close(pair[0])
		return nil, 0, fmt.Errorf("start %s: %w", c.Keeper, err)
	}
	pid := cmd.Process.Pid
	if pidfd, err := unix.PidfdOpen(pid, 0); err == nil {
		err := watch.add(pidfd, func() {
			reap(pidfd)
			_ = unix.Close(pidfd)
		})
		if err != nil {
			_ = unix.Close(pidfd)
		}
	}
	_ = cmd.Process.Release()
	sock, err := linkFile(pair[0])
	return sock, pid, err
}

// linkFile makes a file of a socket, in the poller.
func linkFile(fd int) (*os.File, error) {
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("descriptor %s, the link to the keeper: %w", strconv.Itoa(fd), err)
	}
	return os.NewFile(uintptr(fd), "keeper"), nil
}
