package shimd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/api"
)

// streamWire is what the wires of ExecStream and Attach have in common.
type streamWire interface {
	Send(*api.StreamOutput) error
	Recv() (*api.StreamInput, error)
}

// session is an ExecStream or Attach in progress. It is a receiver of output.
type session struct {
	wire   streamWire
	ctx    context.Context // ends with the call, the connection, or a caller that breaks the rules
	cancel context.CancelCauseFunc
	wants  [2]bool // stdout, stderr
	credit api.Credit

	input  chan []byte // what was received and is not written yet; closed at its end
	resize chan api.WindowSize

	sent   atomic.Int64
	waited atomic.Bool
	closed atomic.Bool
}

// newSession takes the first message. end must be called.
func newSession(ctx context.Context, wire streamWire) (*session, *api.StreamOpen, error) {
	first, err := wire.Recv()
	if err != nil {
		return nil, nil, err
	}
	if first.Open == nil {
		return nil, nil, fmt.Errorf("open: the first message must have it: %w", errdefs.ErrInvalidArgument)
	}
	s := &session{
		wire: wire, wants: [2]bool{first.Open.Stdout, first.Open.Stderr}, credit: api.NewCredit(),
		input: make(chan []byte, api.Window), resize: make(chan api.WindowSize, 1),
	}
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	go s.receive() // ends with the call at the latest
	return s, first.Open, nil
}

func (s *session) end() { s.cancel(nil) }

// receive takes in what the caller sends, at once, so that news of what it has taken never waits.
func (s *session) receive() {
	var end sync.Once
	endInput := func() { end.Do(func() { close(s.input) }) }
	defer endInput()
	ended := false
	for {
		m, err := s.wire.Recv()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				s.cancel(err)
			}
			return
		}
		s.credit.Give(m.Taken)
		if m.Width > 0 && m.Height > 0 {
			s.setSize(api.WindowSize{Width: uint16(m.Width), Height: uint16(m.Height)})
		}
		if len(m.Stdin) > 0 && !ended {
			select {
			case s.input <- m.Stdin:
			default:
				s.cancel(fmt.Errorf("stdin: more was sent than was asked for: %w", errdefs.ErrResourceExhausted))
				return
			}
		}
		if m.StdinEnd {
			ended = true
			endInput()
		}
	}
}

// setSize keeps the newest size for whoever sets it.
func (s *session) setSize(size api.WindowSize) {
	for {
		select {
		case s.resize <- size:
			return
		default:
		}
		select {
		case <-s.resize:
		default:
		}
	}
}

// write sends output on. It waits while the caller has not taken what was sent before.
func (s *session) write(stream int, b []byte) {
	for len(b) > 0 && s.wants[stream] && !s.closed.Load() {
		n := min(len(b), api.Chunk)
		if len(s.credit) == 0 {
			s.waited.Store(true)
		}
		if !s.credit.Take(s.ctx) {
			return
		}
		m := &api.StreamOutput{Stdout: b[:n]}
		if stream == 1 {
			m = &api.StreamOutput{Stderr: b[:n]}
		}
		if err := s.wire.Send(m); err != nil {
			s.cancel(err)
			return
		}
		s.sent.Add(int64(n))
		b = b[n:]
	}
}

func (s *session) progress() (int64, bool) {
	return s.sent.Load(), s.waited.Swap(len(s.credit) == 0)
}

func (s *session) close() { s.closed.Store(true) }

// pumpInput writes what comes to a pipe or terminal until it ends, and reports whether it did; the session may end before.
// Who no longer reads it loses it, and nobody waits for that.
func (s *session) pumpInput(to *os.File) (ended bool) {
	stop := context.AfterFunc(s.ctx, func() { _ = to.Close() }) // ends a write that waits
	defer stop()
	var taken api.Taken
	gone := false
	for {
		select {
		case b, ok := <-s.input:
			if !ok {
				return s.ctx.Err() == nil
			}
			if !gone {
				_, err := to.Write(b)
				gone = err != nil
			}
			if n := taken.Add(); n > 0 {
				if s.wire.Send(&api.StreamOutput{Taken: n}) != nil {
					return false
				}
			}
		case <-s.ctx.Done():
			return false
		}
	}
}

// pumpSizes gives a terminal the caller's size whenever that changes, until the session ends.
func (s *session) pumpSizes(console *os.File) {
	for {
		select {
		case size := <-s.resize:
			raw, err := console.SyscallConn()
			if err != nil {
				return
			}
			_ = raw.Control(func(fd uintptr) {
				_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Height, Col: size.Width})
			})
		case <-s.ctx.Done():
			return
		}
	}
}

// cause is why the session's context has ended, as an error for the caller.
func (s *session) cause() error {
	if err := context.Cause(s.ctx); err != nil {
		return err
	}
	return s.ctx.Err()
}

// ExecStream runs a process in a container with a caller's streams. See shim.proto.
func (s *Server) ExecStream(ctx context.Context, wire api.Shim_ExecStreamServer) error {
	session, open, err := newSession(ctx, wire)
	if err != nil {
		return toStatus(err)
	}
	defer session.end()
	process, err := parseProcess(open.Process, open.Env)
	if err != nil {
		return toStatus(err)
	}
	code, err := s.runExec(session.ctx, &execution{
		id: open.Id, process: process, to: session, stdin: open.Stdin,
		started: func(input, console *os.File) { session.connect(open, input, console) },
	})
	if err != nil {
		if session.ctx.Err() != nil {
			err = session.cause()
		}
		return toStatus(err)
	}
	return wire.Send(&api.StreamOutput{Done: true, ExitCode: int32(code)})
}

// connect joins a process that runs with the caller's input. The goroutines end with the session.
func (s *session) connect(open *api.StreamOpen, input, console *os.File) {
	_ = s.wire.Send(&api.StreamOutput{}) // it runs
	if console != nil {
		go s.pumpSizes(console)
		input = console
	}
	switch {
	case input == nil:
	case open.Stdin:
		go func() {
			if s.pumpInput(input) && input != console {
				_ = input.Close()
			}
		}()
	}
}
