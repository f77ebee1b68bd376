package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/engine/spec"
	"github.com/criserver/criserver/internal/fsx"
	"github.com/criserver/criserver/shim/api"
)

// Exec runs argv in a running container to its end; the process dies with ctx. When timeout (0: none) passes it is
// killed and the error is context.DeadlineExceeded.
func (e *Engine) Exec(ctx context.Context, id string, argv []string, timeout time.Duration) (ExecResult, error) {
	if len(argv) == 0 || argv[0] == "" {
		return ExecResult{}, fmt.Errorf("command to execute is empty: %w", errdefs.ErrInvalidArgument)
	}
	if timeout < 0 {
		return ExecResult{}, fmt.Errorf("timeout %s is negative: %w", timeout, errdefs.ErrInvalidArgument)
	}
	id, err := e.resolveContainer(id)
	if err != nil {
		return ExecResult{}, err
	}
	result, err := e.exec(ctx, id, argv, timeout)
	if err != nil {
		return ExecResult{}, fmt.Errorf("exec in container %s: %w", id, err)
	}
	return result, nil
}

func (e *Engine) exec(ctx context.Context, id string, argv []string, timeout time.Duration) (ExecResult, error) {
	process, env, err := e.execProcess(id, argv, nil)
	if err != nil {
		return ExecResult{}, err
	}
	if err := e.awaitShim(ctx); err != nil {
		return ExecResult{}, err
	}
	r := &api.ExecRequest{Id: id, Process: process, Env: env, TimeoutNs: int64(timeout), OutputLimit: ExecOutputLimit}
	var stdout, stderr bytes.Buffer
	answer, err := e.cfg.Shims.Exec(ctx, r, func(out, errOut []byte) {
		keep(&stdout, out)
		keep(&stderr, errOut)
	})
	if err != nil {
		return ExecResult{}, aboutProcess(id, err)
	}
	if answer.TimedOut {
		return ExecResult{}, fmt.Errorf("command %q was killed after %s: %w", argv[0], timeout, context.DeadlineExceeded)
	}
	return ExecResult{Stdout: stdout.Bytes(), Stderr: stderr.Bytes(), ExitCode: int(answer.ExitCode)}, nil
}

// awaitShim waits for a dead shim before a call that may not be repeated.
func (e *Engine) awaitShim(ctx context.Context) error {
	if e.connected.Load() {
		return nil
	}
	return e.shim(ctx, func(ctx context.Context) error {
		_, err := e.cfg.Shims.Info(ctx)
		return err
	})
}

// keep appends as much as the limit allows, whatever the shim sends.
func keep(b *bytes.Buffer, data []byte) {
	b.Write(data[:min(len(data), ExecOutputLimit-b.Len())])
}

// execProcess is the container's own process with other arguments and, unless one is given, without a terminal. env is its environment
// where the process, which is JSON, cannot have it.
func (e *Engine) execProcess(id string, argv []string, terminal *Terminal) (text []byte, env [][]byte, err error) {
	e.mu.RLock()
	c := e.containers[id]
	var record containerRecord
	var process *specs.Process
	if c != nil {
		record, process = c.record, c.process
	}
	e.mu.RUnlock()
	switch {
	case c == nil:
		return nil, nil, errdefs.ErrNotFound
	case record.State != running:
		return nil, nil, fmt.Errorf("it is %s: it must run: %w", record.State, errdefs.ErrFailedPrecondition)
	}
	if process == nil {
		s, err := e.readSpec(record)
		if err != nil {
			return nil, nil, err
		}
		process = s.Process
		e.mu.Lock()
		c.process = process
		e.mu.Unlock()
	}
	p := *process
	p.Args, p.Terminal, p.ConsoleSize = argv, terminal != nil, nil
	if record.Container.Resources.OOMScoreAdj != 0 { // an update may have changed it since the spec was read
		score, _ := spec.OOMScoreAdj(record.Container.Resources, e.host)
		p.OOMScoreAdj = &score
	}
	if record.RawEnv != nil {
		p.Env = record.RawEnv
	}
	if terminal != nil {
		terminal.apply(&p)
	}
	if record.RawEnv != nil {
		env = wireEnv(p.Env)
	}
	text, err = json.Marshal(p)
	if err != nil {
		return nil, nil, fmt.Errorf("encode the process: %w", err)
	}
	return text, env, nil
}

func (e *Engine) specPath(r containerRecord) string {
	return filepath.Join(e.store.containerDir(r.Container.PodID, r.Container.ID), "config.json")
}

func (e *Engine) readSpec(r containerRecord) (*specs.Spec, error) {
	var s specs.Spec
	if err := fsx.ReadJSON(e.specPath(r), &s); err != nil {
		return nil, fmt.Errorf("its OCI spec: %w", err)
	}
	if s.Process == nil || s.Linux == nil {
		return nil, fmt.Errorf("its OCI spec %s has no process: %w", e.specPath(r), errdefs.ErrDataLoss)
	}
	return &s, nil
}

// ReopenLog opens the log of a running container again, after rotation. For one that does not run it is an error and no
// file is made.
func (e *Engine) ReopenLog(ctx context.Context, id string) error {
	id, err := e.resolveContainer(id)
	if err != nil {
		return err
	}
	record, _ := e.containerRecord(id)
	if record.State != running {
		return fmt.Errorf("reopen the log of container %s: it is %s: it must run: %w", id, record.State, errdefs.ErrFailedPrecondition)
	}
	err = e.shim(ctx, func(ctx context.Context) error { return e.cfg.Shims.ReopenLog(ctx, id) })
	if err != nil {
		return fmt.Errorf("reopen the log of container %s: %w", id, err)
	}
	return nil
}
