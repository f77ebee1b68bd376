package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/api"
)

const (
	// killPatience is how long a killed process may take to be gone: it may sleep where no signal reaches it.
	killPatience = 30 * time.Second
	// killAgain is how often the signal is sent meanwhile.
	killAgain = 2 * time.Second
)

// StopContainer sends the stop signal, waits grace, kills, and returns when the container has exited. A grace of 0 or less
// kills at once. A shorter grace than that of a stop in flight shortens it. An unknown container, or one that does not run, is no error.
func (e *Engine) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	id, err := e.resolveContainer(id)
	if err != nil {
		return ignoreNotFound(err)
	}
	e.shorten(id, time.Now().Add(max(grace, 0)))
	err = e.ops.do(ctx, e.ctx, containerKey(id), "stop", func(ctx context.Context) error { return e.stopContainer(ctx, id) })
	if err != nil {
		return fmt.Errorf("stop container %s: %w", id, err)
	}
	return nil
}

// shorten makes a stop that is in flight, or comes next, kill at deadline or earlier.
func (e *Engine) shorten(id string, deadline time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.containers[id]
	if c != nil && c.interrupt != nil {
		c.interrupt(errStopping)
	}
	if c == nil || !c.deadline.IsZero() && c.deadline.Before(deadline) {
		return
	}
	c.deadline = deadline
	select {
	case c.shortened <- struct{}{}:
	default:
	}
}

// hurry makes all stops of a pod's containers kill now.
func (e *Engine) hurry(podID string) {
	now := time.Now()
	_ = e.eachContainer(podID, func(id string) error {
		e.shorten(id, now)
		return nil
	})
}

// stopNow kills a container by way of its operations.
func (e *Engine) stopNow(ctx context.Context, id string) error {
	return e.ops.within(ctx, e.ctx, containerKey(id), "stop", func(ctx context.Context) error { return e.stopContainer(ctx, id) })
}

// eachContainer calls fn for all containers of a pod at once and goes on past errors.
func (e *Engine) eachContainer(podID string, fn func(id string) error) error {
	e.mu.RLock()
	var ids []string
	for id, c := range e.containers {
		if c.record.Container.PodID == podID {
			ids = append(ids, id)
		}
	}
	e.mu.RUnlock()
	if len(ids) == 1 {
		return fn(ids[0])
	}
	errs := make([]error, len(ids))
	var g errgroup.Group
	for i, id := range ids {
		g.Go(func() error {
			errs[i] = fn(id)
			return nil
		})
	}
	_ = g.Wait()
	return errors.Join(errs...)
}

// stopContainer is the operation of StopContainer.
func (e *Engine) stopContainer(ctx context.Context, id string) error {
	e.mu.RLock()
	c := e.containers[id]
	var record containerRecord
	var deadline time.Time
	if c != nil {
		record, deadline = c.record, c.deadline
	}
	e.mu.RUnlock()
	if c == nil || record.State == creating || record.State == removing {
		return nil
	}
	if record.State == created {
		e.mu.Lock()
		c.deadline = time.Time{} // it is not that of a later stop
		e.mu.Unlock()
		// A start whose answer was lost may have made a process. Deleting what the shim may have is the sure way.
		return e.releaseProcess(ctx, record)
	}
	if record.State == running && deadline.After(time.Now()) {
		if err := e.signal(ctx, id, record.StopSignal, false); err != nil {
			return err
		}
		ended, err := e.awaitDeadline(ctx, id, c)
		if ended {
			e.tellEnd(ctx, id)
		}
		if ended || err != nil {
			return err
		}
	}
	if err := e.kill(ctx, id, c, !record.OwnPID); err != nil {
		return err
	}
	e.tellEnd(ctx, id)
	return nil
}

// awaitDeadline waits until the container has ended or its deadline has passed, which may come closer meanwhile.
func (e *Engine) awaitDeadline(ctx context.Context, id string, c *container) (ended bool, err error) {
	for {
		e.mu.RLock()
		left := time.Until(c.deadline)
		e.mu.RUnlock()
		timer := time.NewTimer(left)
		select {
		case <-c.ended:
			timer.Stop()
			return true, nil
		case <-timer.C:
			return false, nil
		case <-c.shortened:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return false, ctx.Err()
		}
	}
}

// kill ends everything in the container and waits until its process is seen to be gone. Without all only the process is
// killed, which is quicker, and enough where it is the init of a pid namespace.
func (e *Engine) kill(ctx context.Context, id string, c *container, all bool) error {
	giveUp := time.After(killPatience)
	for {
		select {
		case <-c.ended:
			return nil
		default:
		}
		if err := e.signal(ctx, id, int32(unix.SIGKILL), all); err != nil {
			return err
		}
		all = true
		select {
		case <-c.ended:
			return nil
		case <-time.After(killAgain):
			e.wakeFollow()
		case <-giveUp:
			return fmt.Errorf("its process is still there %s after SIGKILL, perhaps in an uninterruptible sleep: %w", killPatience, context.DeadlineExceeded)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// signal sends a signal. A container that the shim does not know, or knows not to run, is looked for in its list.
func (e *Engine) signal(ctx context.Context, id string, signal int32, all bool) error {
	err := e.shim(ctx, func(ctx context.Context) error {
		return e.cfg.Shims.Signal(ctx, &api.SignalRequest{Id: id, Signal: signal, All: all})
	})
	if errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err) {
		e.wakeFollow()
		return nil
	}
	return err
}
