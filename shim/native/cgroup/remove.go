package cgroup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// busyFor is how long a removal waits for processes that are on their way out: the kernel may count one for a moment
// after its pidfd has said that it is gone.
const busyFor = 250 * time.Millisecond

var errStillBusy = errors.New("the cgroup is still busy")

// Remove removes the cgroup and what a workload made below it, in every hierarchy. It kills nothing: a cgroup that still
// has processes is ErrFailedPrecondition, with their pids. An absent one is no error. Parents stay, see RemoveTree.
func (c *Cgroup) Remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, busyFor, errStillBusy)
	defer cancel()
	var errs []error
	for _, h := range c.layout.all() {
		if err := remove(ctx, h, c.rel); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) == 0 { // its processes have ended
		return c.stopUnit()
	}
	return errors.Join(errs...)
}

// RemoveEmpty removes the cgroup as Remove does, where that takes no more than a system call for each hierarchy. False: something
// is in it, or below it.
func (c *Cgroup) RemoveEmpty() bool {
	removed := true
	for _, h := range c.layout.all() {
		err := ignoreEINTR(func() error { return unix.Unlinkat(h.root, c.rel, unix.AT_REMOVEDIR) })
		removed = removed && (err == nil || err == unix.ENOENT)
	}
	return removed
}

// RemoveTree removes a cgroup by its path ("/criserver/pod1") with all cgroups below it, in every hierarchy. Nothing is
// killed, and nothing is removed while any of them has a process: that is ErrFailedPrecondition. An absent one is no
// error.
func RemoveTree(ctx context.Context, path string) error {
	c, err := New(path, nil)
	if err != nil {
		return err
	}
	left, err := pids(c.layout.all(), c.rel)
	if err != nil {
		return fmt.Errorf("remove cgroup %s: %w", path, err)
	}
	if len(left) > 0 {
		return populatedError(c.layout.all()[0], c.rel, left)
	}
	return c.Remove(ctx)
}

// remove removes rel from one hierarchy, trying until ctx ends. The plain case is one system call.
func remove(ctx context.Context, h *hierarchy, rel string) error {
	for pause := time.Millisecond; ; pause *= 2 {
		err := ignoreEINTR(func() error { return unix.Unlinkat(h.root, rel, unix.AT_REMOVEDIR) })
		switch err {
		case nil, unix.ENOENT:
			return nil
		case unix.EBUSY, unix.ENOTEMPTY:
		default:
			return fmt.Errorf("remove cgroup %s: %w", h.path(rel), err)
		}
		children, err := h.children(rel)
		if err != nil && !gone(err) {
			return fmt.Errorf("remove cgroup %s: %w", h.path(rel), err)
		}
		for _, child := range children {
			if err := remove(ctx, h, child); err != nil {
				return err
			}
		}
		if ctx.Err() == nil && len(children) > 0 {
			continue // at once: what kept it is gone
		}
		select {
		case <-ctx.Done():
			if context.Cause(ctx) != errStillBusy {
				return fmt.Errorf("remove cgroup %s: %w", h.path(rel), ctx.Err())
			}
			left, _ := pids([]*hierarchy{h}, rel)
			return populatedError(h, rel, left)
		case <-time.After(pause):
		}
	}
}

func populatedError(h *hierarchy, rel string, left []int) error {
	return fmt.Errorf("remove cgroup %s: processes %v are in it, kill them first: %w", h.path(rel), left, errdefs.ErrFailedPrecondition)
}
