package shimd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/internal/fsx"
	"github.com/criserver/criserver/internal/procstat"
	"github.com/criserver/criserver/shim/api"
	"github.com/criserver/criserver/shim/native"
	"github.com/criserver/criserver/shim/native/cgroup"
)

// Exec runs a process in a container to its end. See shim.proto. When the caller goes away, the process is killed.
func (s *Server) Exec(ctx context.Context, r *api.ExecRequest, to api.Shim_ExecServer) error {
	answer, err := s.execute(ctx, r, to.Send)
	if err == nil {
		err = to.Send(answer)
	}
	return toStatus(err)
}

// execute is Exec without the transport; send is never called concurrently.
func (s *Server) execute(ctx context.Context, r *api.ExecRequest, send func(*api.ExecResponse) error) (*api.ExecResponse, error) {
	process, err := parseProcess(r.Process, r.Env)
	if err != nil {
		return nil, err
	}
	if r.TimeoutNs > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, time.Duration(r.TimeoutNs), errTimeLimit)
		defer cancel()
	}
	code, err := s.runExec(ctx, &execution{id: r.Id, process: process, to: &sink{send: send, limit: r.OutputLimit}})
	if errors.Is(err, errTimeLimit) {
		return &api.ExecResponse{Done: true, TimedOut: true, ExitCode: int32(code)}, nil
	}
	if err != nil {
		return nil, err
	}
	return &api.ExecResponse{Done: true, ExitCode: int32(code)}, nil
}

func parseProcess(text []byte, env [][]byte) (*specs.Process, error) {
	var p specs.Process
	if err := json.Unmarshal(text, &p); err != nil {
		return nil, fmt.Errorf("process: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if len(p.Args) == 0 || p.Args[0] == "" {
		return nil, fmt.Errorf("process.args is empty: %w", errdefs.ErrInvalidArgument)
	}
	if len(env) == 0 {
		return &p, nil
	}
	var err error
	p.Env, err = rawEnv(env)
	return &p, err
}

// rawEnv is the environment of a request.
func rawEnv(wire [][]byte) ([]string, error) {
	env := make([]string, len(wire))
	for i, entry := range wire {
		if at := bytes.IndexByte(entry, '='); at < 1 || bytes.IndexByte(entry, 0) >= 0 {
			return nil, fmt.Errorf("env[%d] %q: NAME=value without zero bytes is wanted: %w", i, entry, errdefs.ErrInvalidArgument)
		}
		env[i] = string(entry)
	}
	return env, nil
}

// execution is a process to run in a container.
type execution struct {
	id      string
	process *specs.Process
	to      receiver // of its output
	stdin   bool     // give it a pipe for standard input, unless it has a terminal; otherwise that is /dev/null
	// started is called once the process runs, with the other end of that pipe, or its terminal. It may be nil.
	started func(input, console *os.File)
}

// receiver takes output. write may be called concurrently for the two streams; after close it drops what comes.
type receiver interface {
	write(stream int, b []byte)
	// progress is how many bytes were taken, and whether a write has waited for the other side since it was asked last.
	progress() (taken int64, waited bool)
	close()
}

// runExec runs a process to its end. When ctx ends it is killed; the error is errTimeLimit when that was why.
func (s *Server) runExec(ctx context.Context, x *execution) (code int, err error) {
	c, target, err := s.runningPidfd(ctx, x.id)
	if err != nil {
		return 0, err
	}
	defer target.Close()
	spec, err := c.loadSpec()
	if err != nil {
		return 0, err
	}
	if x.process.OOMScoreAdj == nil {
		x.process.OOMScoreAdj = spec.Process.OOMScoreAdj
	}
	out, err := newOutput(x.process.Terminal, x.stdin)
	if err != nil {
		return 0, err
	}
	defer out.close()
	run, err := s.runtimeOf(c).exec(ctx, native.ExecConfig{
		Spec: spec, Process: x.process, Target: target, Stdin: out.theirs[2], Stdout: out.theirs[0], Stderr: out.theirs[1], Cgroup: c.cgroup,
	})
	out.closeTheirs()
	switch {
	case context.Cause(ctx) == errTimeLimit:
		if err == nil {
			native.End(run.pidfd)
		}
		return 0, errTimeLimit
	case err != nil:
		return 0, fmt.Errorf("container %s: %w", c.id, err)
	}
	return s.follow(ctx, c, run, out, x)
}

// errTimeLimit is why the context of an exec ended when it was the exec's own limit.
var errTimeLimit = errors.New("the exec's time is up")

// endLimit is how long the end of a killed exec is waited for: a process that traces it can put it off.
const endLimit = time.Second

// follow reads what a process prints and waits for its end.
func (s *Server) follow(ctx context.Context, c *container, run *process, out *output, x *execution) (code int, err error) {
	pidfd := int(run.pidfd.Fd())
	entry, err := s.execs.enter(run.pid, c.record.Cgroup) // a shim that comes after this one ends the process
	if err != nil {
		native.End(run.pidfd)
		return 0, err
	}
	defer s.execs.leave(entry)
	ended, err := s.exit(pidfd)
	if err != nil { // then nobody would reap it
		native.End(run.pidfd)
		return 0, err
	}
	defer run.pidfd.Close()
	if run.console != nil {
		if err := out.useConsole(run.console); err != nil {
			s.note.Warn("the terminal of an exec is not read", "container", c.id, "error", err)
		}
	}
	defer x.to.close()
	if x.started != nil {
		x.started(out.input, out.console)
	}
	done := out.read(x.to)

	select {
	case code = <-ended:
	case <-ctx.Done():
		killTree(c.cgroup, run.pid, pidfd)
		select {
		case code = <-ended:
		case <-time.After(endLimit):
		}
		err = context.Cause(ctx)
		if err != errTimeLimit {
			return 0, ctx.Err()
		}
	}
	drainTo(ctx, done, x.to)
	return code, err
}

// leftover bounds what is read after the end of an exec's process: pipes hold less, so more is from those that it left behind.
const leftover = 256 << 10

// drainTo waits until all output has been read. Somebody may have inherited the pipe: then it waits as long as its
// receiver lags.
func drainTo(ctx context.Context, done <-chan struct{}, to receiver) {
	first, _ := to.progress()
	for {
		select {
		case <-done:
			return
		case <-time.After(drainLimit):
		}
		taken, waited := to.progress()
		if ctx.Err() != nil || !waited || taken-first > leftover {
			return
		}
	}
}

// exit reaps a process when it ends and passes its exit code on.
func (s *Server) exit(pidfd int) (<-chan int, error) {
	own, err := unix.FcntlInt(uintptr(pidfd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ended := make(chan int, 1)
	err = s.watch.add(own, func() {
		code, _ := peek(own)
		reap(own)
		_ = unix.Close(own)
		ended <- code
	})
	if err != nil {
		return nil, errors.Join(err, unix.Close(own))
	}
	return ended, nil
}

// killTree kills a process and what it has started, as far as that can be told: its descendants and those in its session
// or process group. Without a cgroup only the process itself.
func killTree(g *cgroup.Cgroup, pid, pidfd int) {
	for range 5 {
		tree := map[int]int{}
		if g != nil {
			tree = descendants(g, pid)
		}
		for _, fd := range tree {
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
			_ = unix.Close(fd)
		}
		if len(tree) == 0 {
			break
		}
	}
	_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
}

// descendants opens a pidfd for each process of the cgroup that belongs to pid, without pid itself.
func descendants(g *cgroup.Cgroup, pid int) map[int]int {
	found := map[int]int{}
	pids, err := g.Pids()
	if err != nil {
		return found
	}
	parents := map[int]int{}
	own := map[int]bool{pid: true}
	for _, p := range pids {
		fd, err := unix.PidfdOpen(p, 0)
		if err != nil {
			continue
		}
		stat, err := procstat.Read(p)
		if err != nil || len(stat) < 4 || stat.Field(procstat.State) == "Z" || hasEnded(fd, 0) {
			_ = unix.Close(fd)
			continue
		}
		found[p] = fd
		parents[p], _ = strconv.Atoi(stat.Field(procstat.Parent))
		if leader := strconv.Itoa(pid); stat.Field(procstat.Group) == leader || stat.Field(procstat.Session) == leader {
			own[p] = true
		}
	}
	for more := true; more; {
		more = false
		for p, parent := range parents {
			if own[parent] && !own[p] {
				own[p], more = true, true
			}
		}
	}
	for p, fd := range found {
		if p == pid || !own[p] {
			_ = unix.Close(fd)
			delete(found, p)
		}
	}
	return found
}

// output is the pipes, or the terminal, of an exec.
type output struct {
	ours    []*os.File // in the poller
	theirs  [3]*os.File
	input   *os.File // nil: there is none
	console *os.File // nil: there is none
}

func newOutput(terminal, stdin bool) (*output, error) {
	o := &output{}
	if terminal {
		return o, nil
	}
	for i := range 2 {
		r, w, err := fsx.Pipe(0)
		if err != nil {
			o.close()
			return nil, err
		}
		o.ours, o.theirs[i] = append(o.ours, r), w
	}
	if stdin {
		r, w, err := fsx.Pipe(1)
		if err != nil {
			o.close()
			return nil, err
		}
		o.theirs[2], o.input = r, w
	}
	return o, nil
}

func (o *output) useConsole(console *os.File) error {
	f, err := pollable(console)
	if err != nil {
		return err
	}
	o.ours, o.console = []*os.File{f}, f
	return console.Close()
}

func (o *output) closeTheirs() {
	for i, f := range o.theirs {
		if f != nil {
			_ = f.Close()
			o.theirs[i] = nil
		}
	}
}

func (o *output) close() {
	o.closeTheirs()
	for _, f := range o.ours {
		_ = f.Close()
	}
	if o.input != nil {
		_ = o.input.Close()
	}
}

// read passes on what comes until every writer has closed, or close. The channel is closed then.
func (o *output) read(to receiver) <-chan struct{} {
	var all sync.WaitGroup
	for i, f := range o.ours {
		all.Go(func() {
			b := discards.Get().(*[]byte)
			defer discards.Put(b)
			for {
				n, err := f.Read(*b)
				if n > 0 {
					to.write(i, (*b)[:n])
				}
				if err != nil && !errors.Is(err, unix.EINTR) || err == io.EOF {
					return
				}
			}
		})
	}
	done := make(chan struct{})
	go func() {
		all.Wait()
		close(done)
	}()
	return done
}

// sink sends output on, up to a limit for each of the two streams. What comes after close is dropped.
type sink struct {
	send  func(*api.ExecResponse) error
	limit int64 // 0: none

	mu     sync.Mutex // one send at a time, that is what it is for
	sent   [2]int64
	failed bool
}

func (s *sink) write(stream int, b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed {
		return
	}
	if s.limit > 0 {
		b = b[:min(int64(len(b)), s.limit-s.sent[stream])]
	}
	if len(b) == 0 {
		return
	}
	s.sent[stream] += int64(len(b))
	m := &api.ExecResponse{Stdout: b}
	if stream == 1 {
		m = &api.ExecResponse{Stderr: b}
	}
	if s.send(m) != nil { // the caller is gone; its context says so
		s.failed = true
	}
}

func (s *sink) progress() (int64, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent[0] + s.sent[1], false
}

func (s *sink) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = true
}
