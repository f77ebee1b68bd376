package native

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native/plan"
	"github.com/criserver/criserver/shim/native/stage"
)

// Process is a process made by a plan. Once started, the caller owns Pidfd and Console and reaps it.
type Process struct {
	Pid     int
	Pidfd   *os.File
	Console *os.File // the master side; nil without a terminal
	// Warnings say what could not be done as the spec says and was done in the nearest way.
	Warnings []string

	run   *stage.Run
	argv  []string
	gate  int
	hooks *hooked // nil: none

	mu        sync.Mutex
	killable  bool // guarded by mu: Pidfd is the process, not a stage that may be forking it
	cancelled bool // guarded by mu
}

// cancel kills the process. While a stage may be forking it is left alone, because only it knows the pid of its child, and a
// child that nobody reaps would keep the container's pid namespace from ever ending; arrive kills it then.
func (p *Process) cancel() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cancelled = true
	if p.killable {
		_ = unix.PidfdSendSignal(int(p.Pidfd.Fd()), unix.SIGKILL, nil, 0)
	}
}

// arrive follows a stage until it waits for Start, or, when it does not wait, until the program runs.
func (p *Process) arrive(ctx context.Context, b *built, waits bool) error {
	if b.terminal {
		if err := p.takeConsole(); err != nil {
			return err
		}
	}
	if b.stops {
		if _, err := p.run.Message(); err != nil {
			return p.explain(err)
		}
		if err := p.hooks.run(ctx, p, Prestart, CreateRuntime, CreateContainer); err != nil {
			return err
		}
		if err := p.run.Go(); err != nil {
			return err
		}
	}
	ready := !waits
	if b.forks {
		early, err := p.adoptChild()
		if err != nil {
			return p.explain(err)
		}
		ready = ready || early
	}
	if !ready {
		_, err := p.run.Message()
		return p.explain(err)
	}
	if waits {
		return nil
	}
	return p.running()
}

func (p *Process) takeConsole() error {
	fd, err := p.run.Message()
	if err != nil {
		return p.explain(err)
	}
	master, err := unix.PidfdGetfd(int(p.Pidfd.Fd()), int(fd), 0)
	if err != nil {
		return fmt.Errorf("take the terminal from the stage: %w", err)
	}
	if err := unix.SetNonblock(master, true); err != nil {
		return errors.Join(err, unix.Close(master))
	}
	unix.CloseOnExec(master)
	p.Console = os.NewFile(uintptr(master), "console")
	return p.run.Go()
}

// adoptChild learns the pid that the stage forked and puts that process in the stage's place. The child may be faster
// than the stage: what it reports before, an error or (early) that it is ready, is kept.
func (p *Process) adoptChild() (early bool, err error) {
	var failed error
	for {
		pid, err := p.run.Message()
		var e *plan.Error
		switch {
		case errors.As(err, &e):
			failed = err
			continue
		case err != nil && failed != nil:
			return false, failed
		case err != nil:
			return false, err
		case pid == 0:
			early = true
			continue
		}
		// It is our child (CLONE_PARENT) and not reaped, so the pid cannot be another's.
		pidfd, err := unix.PidfdOpen(int(pid), 0)
		if err != nil {
			return false, fmt.Errorf("pidfd of process %d: %w", pid, err)
		}
		stage.Reap(p.Pidfd)
		p.mu.Lock()
		defer p.mu.Unlock()
		_ = p.Pidfd.Close()
		p.Pid, p.Pidfd, p.killable = int(pid), os.NewFile(uintptr(pidfd), "pidfd"), true
		if p.cancelled {
			_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
		}
		return early, failed
	}
}

// running waits until the stage has become the program.
func (p *Process) running() error {
	_, err := p.run.Message()
	if errors.Is(err, errEOF) {
		return nil
	}
	if err == nil {
		return errors.New("the stage reported what its plan does not say")
	}
	return p.explain(err)
}

// Start lets the process go and returns when its program runs. After an error the process is gone and nothing is owned.
func (p *Process) Start(ctx context.Context) error {
	stop := context.AfterFunc(ctx, p.cancel)
	err := p.hooks.run(ctx, p, StartContainer)
	if err == nil {
		err = p.run.Go()
	}
	if err == nil {
		err = p.running()
	}
	if err == nil {
		err = p.hooks.run(ctx, p, Poststart)
	}
	if !stop() {
		err = ctx.Err() // it was killed
	}
	if err != nil {
		p.discard()
		return err
	}
	p.run.Close()
	return nil
}

// Abandon ends a process that was not started, and lets go of what it holds.
func (p *Process) Abandon() { p.discard() }

func (p *Process) discard() {
	p.run.Close()
	stage.End(p.Pidfd)
	if p.Console != nil {
		_ = p.Console.Close()
	}
}

// explain turns the failure of a call into what a user knows.
func (p *Process) explain(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, errEOF) {
		return errors.New("the process was killed before it ran")
	}
	var e *plan.Error
	if !errors.As(err, &e) {
		return err
	}
	return explainCall(e, p.argv[0])
}

func explainCall(e *plan.Error, name string) error {
	if e.Name == "execve" {
		switch {
		case e.Errno == unix.ENOENT && !strings.Contains(name, "/"):
			return fmt.Errorf("exec: %q: executable file not found in $PATH: %w", name, errdefs.ErrNotFound)
		case e.Errno == unix.ENOENT:
			return fmt.Errorf("exec: %q: no such file or directory: %w", name, errdefs.ErrNotFound)
		default:
			return fmt.Errorf("exec: %q: %w", name, e.Errno)
		}
	}
	return e
}

// End kills a child of ours, reaps it and closes its pidfd. It does not wait for long.
func End(pidfd *os.File) { stage.End(pidfd) }

// EndLater reaps a child of ours as soon as that can be done, and closes its pidfd.
func EndLater(pidfd *os.File) { stage.EndLater(pidfd) }
