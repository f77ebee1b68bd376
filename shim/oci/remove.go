package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native"
)

// endLimit bounds the wait for killed processes.
const endLimit = 10 * time.Second

func remove(a *app, args []string) error {
	set := a.flags("delete")
	force := set.Bool("force", false, "kill what runs; a container that is not there is no error")
	set.BoolVar(force, "f", false, "")
	id, err := a.id(set, args)
	if err != nil {
		return err
	}
	c, err := a.change(id)
	switch {
	case *force && errdefs.IsNotFound(err):
		return nil
	case *force && err != nil && validID(id) == nil: // a record that cannot be read: the process and the cgroup are not known
		return errors.Join(err, os.RemoveAll(filepath.Join(a.root, id)))
	case err != nil:
		return err
	}
	defer c.release()
	status, err := c.status()
	if err != nil {
		return err
	}
	if !*force && status != specs.StateStopped && status != specs.StateCreated {
		return fmt.Errorf("cannot delete container %s that is not stopped: %s: %w", id, status, errdefs.ErrFailedPrecondition)
	}
	return a.destroy(c)
}

// destroy ends what is left of a container and forgets it. It may be repeated.
func (a *app) destroy(c *container) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), endLimit)
	defer cancel()
	g, err := c.group()
	if err != nil {
		return err
	}
	pidfd, err := c.process()
	if err != nil {
		return err
	}
	if pidfd != nil {
		defer pidfd.Close()
		_ = unix.PidfdSendSignal(int(pidfd.Fd()), unix.SIGKILL, nil, 0)
	}
	if g != nil {
		if err := g.Kill(ctx); err != nil {
			return fmt.Errorf("end container %s: %w", c.ID, err)
		}
	}
	if pidfd != nil && !ends(ctx, pidfd) {
		return fmt.Errorf("end container %s: process %d was killed and does not end: %w", c.ID, c.Pid, errdefs.ErrUnavailable)
	}
	if g != nil {
		if err := g.Remove(ctx); err != nil {
			return err
		}
	}
	if err := c.unmount(); err != nil {
		return err
	}
	a.poststop(c)
	return os.RemoveAll(c.dir)
}

// ends waits for the end of a process that need not be our child.
func ends(ctx context.Context, pidfd *os.File) bool {
	for ctx.Err() == nil {
		fds := []unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, 100); err == nil && n > 0 {
			return true
		}
	}
	return false
}

// poststop runs the hooks of the end. Those that fail are warnings, as the OCI runtime spec says.
func (a *app) poststop(c *container) {
	spec, err := c.spec()
	if err != nil || !native.HasHooks(spec, native.Poststop) {
		return // without a config.json nothing was made
	}
	r, err := a.engine()
	if err == nil {
		err = r.RunHooks(context.WithoutCancel(a.ctx), native.Poststop, native.HookConfig{ID: c.ID, Spec: spec, Bundle: c.Bundle})
	}
	if err != nil {
		a.warn(err.Error())
	}
}

func kill(a *app, args []string) error {
	set := a.flags("kill")
	all := set.Bool("all", false, "to every process of the container")
	set.BoolVar(all, "a", false, "")
	if err := a.parse(set, args, true); err != nil {
		return err
	}
	if set.NArg() < 1 || set.NArg() > 2 {
		return fmt.Errorf("a container's id and at most one signal are wanted: %w", errdefs.ErrInvalidArgument)
	}
	name := "TERM"
	if set.NArg() == 2 {
		name = set.Arg(1)
	}
	number, err := parseSignal(name)
	if err != nil {
		return err
	}
	c, err := a.find(set.Arg(0))
	if err != nil {
		return err
	}
	return a.kill(c, number, *all)
}

func (a *app) kill(c *container, number unix.Signal, all bool) error {
	g, err := c.group()
	if err != nil {
		return err
	}
	if all && g != nil {
		if number == unix.SIGKILL {
			return g.Kill(a.ctx)
		}
		return g.Signal(number)
	}
	pidfd, err := c.process()
	if err != nil {
		return err
	}
	if pidfd == nil {
		return fmt.Errorf("container %s: container not running: %w", c.ID, errdefs.ErrFailedPrecondition)
	}
	defer pidfd.Close()
	if err := unix.PidfdSendSignal(int(pidfd.Fd()), number, nil, 0); err != nil {
		return fmt.Errorf("signal %d to container %s: %w", number, c.ID, err)
	}
	if number != unix.SIGKILL || g == nil {
		return nil
	}
	// Without a pid namespace of its own, the kernel does not kill the others with it. What is frozen does not end either.
	spec, err := c.spec()
	if err != nil {
		return err
	}
	own := false
	for _, n := range spec.Linux.Namespaces {
		own = own || n.Type == specs.PIDNamespace && n.Path == ""
	}
	if !own || g.Frozen() {
		return g.Kill(a.ctx)
	}
	return nil
}

// parseSignal reads a number or a name, with or without SIG.
func parseSignal(s string) (unix.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > 64 {
			return 0, fmt.Errorf("signal %d is not one: %w", n, errdefs.ErrInvalidArgument)
		}
		return unix.Signal(n), nil
	}
	name := "SIG" + strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if n := unix.SignalNum(name); n != 0 {
		return n, nil
	}
	return 0, fmt.Errorf("signal %q is not known: %w", s, errdefs.ErrInvalidArgument)
}
