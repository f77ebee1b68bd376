package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native"
)

func start(a *app, args []string) error {
	id, err := a.id(a.flags("start"), args)
	if err != nil {
		return err
	}
	c, err := a.change(id)
	if err != nil {
		return err
	}
	defer c.release()
	return a.start(c)
}

// start lets a process go that waits. When it fails the process is ended, and what is left is for delete.
func (a *app) start(c *container) error {
	status, err := c.status()
	if err != nil {
		return err
	}
	if status != specs.StateCreated {
		return fmt.Errorf("cannot start container %s: it is %s, not created: %w", c.ID, status, errdefs.ErrFailedPrecondition)
	}
	spec, err := c.spec()
	if err != nil {
		return err
	}
	hooks, err := a.hookConfig(c, spec)
	if err != nil {
		return err
	}
	defer hooks.Target.Close()
	r, err := a.engine()
	if err != nil {
		return err
	}
	err = r.RunHooks(a.ctx, native.StartContainer, hooks)
	if err == nil {
		err = c.letGo(a.ctx)
	}
	if err == nil {
		err = r.RunHooks(a.ctx, native.Poststart, hooks)
	}
	if err != nil {
		_ = unix.PidfdSendSignal(int(hooks.Target.Fd()), unix.SIGKILL, nil, 0)
		return fmt.Errorf("start container %s: %w", c.ID, err)
	}
	return nil
}

// hookConfig describes a container whose process lives. The caller closes Target.
func (a *app) hookConfig(c *container, spec *specs.Spec) (native.HookConfig, error) {
	h := native.HookConfig{ID: c.ID, Spec: spec, Bundle: c.Bundle, Pid: c.Pid}
	var err error
	if h.Cgroup, err = c.group(); err != nil {
		return h, err
	}
	h.Target, err = c.process()
	if err == nil && h.Target == nil {
		err = fmt.Errorf("container %s: container not running: %w", c.ID, errdefs.ErrFailedPrecondition)
	}
	return h, err
}

// letGo writes the byte that the process waits for, and waits until its program runs.
func (c *container) letGo(ctx context.Context) error {
	path := filepath.Join(c.dir, startFIFO)
	report, err := os.OpenFile(filepath.Join(c.dir, reportFIFO), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer report.Close()
	gate, err := os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("the process ended before it was started: %w", errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return err
	}
	defer gate.Close()
	if _, err := gate.Write([]byte{1}); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = report.Close() })
	defer stop()
	if err := c.Late.Wait(report); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
	return os.Remove(path)
}
