package image

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// collector removes garbage: blobs that no image and no lease leads to, committed snapshots that no image and no pull
// wants and nothing stands on, and directories without a record. One goroutine does it, for all who ask meanwhile.
type collector struct {
	collect func(context.Context) error
	failed  func(error)

	mu      sync.Mutex
	waiting []chan error // of the next run
	wake    chan struct{}
	cancel  context.CancelFunc
	stopped chan struct{}
}

func newCollector(ctx context.Context, collect func(context.Context) error, failed func(error)) *collector {
	c := &collector{collect: collect, failed: failed, wake: make(chan struct{}, 1), stopped: make(chan struct{})}
	ctx, c.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go c.loop(ctx)
	return c
}

// kick asks for a run and does not wait.
func (c *collector) kick() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// run asks for a run that begins from now on, and waits for its end.
func (c *collector) run(ctx context.Context) error {
	done := make(chan error, 1)
	c.mu.Lock()
	c.waiting = append(c.waiting, done)
	c.mu.Unlock()
	c.kick()
	select {
	case err := <-done:
		return err
	case <-c.stopped:
		return fmt.Errorf("the image store is closing: %w", errdefs.ErrUnavailable)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (c *collector) loop(ctx context.Context) {
	defer close(c.stopped)
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		}
		c.mu.Lock()
		waiting := c.waiting
		c.waiting = nil
		c.mu.Unlock()
		err := c.collect(ctx)
		if err != nil && ctx.Err() == nil {
			c.failed(err)
		}
		for _, done := range waiting {
			done <- err
		}
	}
}

// close ends the goroutine, after the run that it is in.
func (c *collector) close() {
	c.cancel()
	<-c.stopped
}

// collect is one run. What fails does not keep the rest from being tried.
func (s *Store) collect(ctx context.Context) error {
	_, err := s.db.GarbageCollect(ctx)
	if err != nil {
		err = fmt.Errorf("collect blobs: %w", err)
	}
	if removed := s.collectSnapshots(ctx); removed != nil {
		err = errors.Join(err, fmt.Errorf("collect snapshots: %w", removed))
	}
	if cleaned := s.snapshots.Cleanup(ctx); cleaned != nil {
		err = errors.Join(err, fmt.Errorf("clean up snapshots: %w", cleaned))
	}
	return err
}

// collectSnapshots removes committed snapshots that nobody wants, the upper ones first. Those that containers stand on
// stay, and Release comes back for them.
func (s *Store) collectSnapshots(ctx context.Context) error {
	children, parents := map[string]int{}, map[string]string{}
	err := s.snapshots.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		children[info.Parent]++
		if info.Kind == snapshots.KindCommitted {
			parents[info.Name] = info.Parent
		}
		return nil
	})
	if err != nil {
		return err
	}
	var failed error
	for name := range parents {
		for ; name != "" && children[name] == 0; name = parents[name] {
			removed, err := s.keeper.remove(name, func() error { return s.snapshots.Remove(ctx, name) })
			if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) {
				failed = errors.Join(failed, err)
			}
			if !removed || err != nil {
				break
			}
			children[name] = -1 // not again
			children[parents[name]]--
		}
	}
	return failed
}
