package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/criserver/criserver/shim/api"
)

// Teardown serves rollback, stop, removal and recovery alike. It needs no more than a record, or the ids alone where that
// is lost; it goes on past errors, and may be run again at any time. The record is the last to go, so what could not be
// removed is not forgotten: it stays in the state removing, and tidy tries again.

// tidyEvery is how often what could not be removed is tried again. compareEvery is how often the shim's list is compared with
// ours: nothing is known that would make it needed, and it brings megabytes of an idle shim's program back into memory.
const (
	tidyEvery    = 30 * time.Second
	compareEvery = 10 * tidyEvery
)

// releaseProcess has the shim kill and forget a container.
func (e *Engine) releaseProcess(ctx context.Context, r containerRecord) error {
	id := r.Container.ID
	e.mu.RLock()
	c := e.containers[id]
	done := c != nil && c.released
	e.mu.RUnlock()
	if done {
		return nil
	}
	err := e.shim(ctx, func(ctx context.Context) error {
		return e.cfg.Shims.Delete(ctx, &api.DeleteRequest{
			Id: id, CgroupsPath: r.CgroupsPath, Dir: e.store.containerDir(r.Container.PodID, id),
		})
	})
	if err != nil {
		return fmt.Errorf("end the processes of container %s: %w", id, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	// One that is still created may be started again, and then there is something to let go of again.
	if c != nil && c.record.State != created {
		c.released = true
	}
	return nil
}

// teardownContainer removes all that a container consists of but what is in memory.
func (e *Engine) teardownContainer(ctx context.Context, r containerRecord) error {
	id := r.Container.ID
	err := e.releaseProcess(ctx, r)
	if err != nil {
		return err // its root is in use
	}
	if err := e.cfg.Rootfs.Release(ctx, id); err != nil {
		return fmt.Errorf("remove the root filesystem of container %s: %w", id, err)
	}
	if err := e.forgetCheckpoint(r); err != nil {
		return err
	}
	if err := os.RemoveAll(e.store.containerDir(r.Container.PodID, id)); err != nil {
		return fmt.Errorf("remove the directory of container %s: %w", id, err)
	}
	return nil
}

// releasePod lets go of a pod's namespaces and network. Its containers have ended.
func (e *Engine) releasePod(ctx context.Context, r podRecord) error {
	id := r.Pod.ID
	failed := make(chan error, 1)
	go func() {
		err := e.shim(ctx, func(ctx context.Context) error { return e.cfg.Shims.StopPod(ctx, id) })
		if err == nil && r.Pod.OwnCgroup {
			err = e.shim(ctx, func(ctx context.Context) error {
				return e.cfg.Shims.Delete(ctx, &api.DeleteRequest{Id: id, CgroupsPath: r.Pod.Cgroup()})
			})
		}
		if err != nil {
			err = fmt.Errorf("let go of the namespaces of pod %s: %w", id, err)
		}
		failed <- err
	}()
	var err error
	if r.Pod.OwnNetwork() {
		if err = e.cfg.Network.Detach(ctx, id); err != nil {
			err = fmt.Errorf("detach the network of pod %s: %w", id, err)
		}
	}
	return errors.Join(err, <-failed)
}

// removeContainer is the operation of RemoveContainer, and the rollback of CreateContainer.
func (e *Engine) removeContainer(ctx context.Context, id string) error {
	record, ok := e.containerRecord(id)
	if !ok {
		return nil
	}
	if record.State != removing {
		var err error
		if record, err = e.changeContainer(id, removing, nil); err != nil {
			return err
		}
		// Should this fail, what is left is found half removed at the next start, which ends the same.
		if err := e.store.saveContainer(record); err != nil && !errors.Is(err, os.ErrNotExist) {
			e.log.Warn("that a container is being removed cannot be recorded", "container", id, "error", err)
		}
	}
	if err := e.tellRemoved(ctx, record); err != nil {
		return err
	}
	if err := e.teardownContainer(ctx, record); err != nil {
		return err
	}
	e.forgetContainer(id)
	return nil
}

// removePod is the operation of RemovePod, and the rollback of RunPod.
func (e *Engine) removePod(ctx context.Context, id string) error {
	record, ok := e.podRecord(id)
	if !ok {
		return nil
	}
	if record.State != removing {
		if err := e.changePod(id, removing, nil); err != nil {
			return err
		}
		record.State = removing
		if err := e.store.savePod(record); err != nil && !errors.Is(err, os.ErrNotExist) {
			e.log.Warn("that a pod is being removed cannot be recorded", "pod", id, "error", err)
		}
	}
	e.hurry(id)
	err := e.eachContainer(id, func(c string) error {
		return e.ops.within(ctx, e.ctx, containerKey(c), "remove", func(ctx context.Context) error { return e.removeContainer(ctx, c) })
	})
	e.tellPodEnd(ctx, record)
	if !record.Released {
		// The network goes even when a container cannot: addresses are scarce.
		err = errors.Join(err, e.releasePod(ctx, record))
	}
	if err != nil {
		return err
	}
	e.tellPodRemoved(ctx, record)
	if err := os.RemoveAll(e.store.podDir(id)); err != nil {
		return fmt.Errorf("remove the pod's directory: %w", err)
	}
	e.forgetPod(id)
	return nil
}

// tidy tries again to remove what could not be removed, until the engine is closed. It has the shim's list asked for as
// well, so that no exit is missed for good whose news was lost.
func (e *Engine) tidy() {
	ticker, compare := time.NewTicker(tidyEvery), time.NewTicker(compareEvery)
	defer ticker.Stop()
	defer compare.Stop()
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-compare.C:
			e.wakeFollow()
		case <-ticker.C:
			if e.connected.Load() {
				e.tidyAll(e.ctx)
			}
		}
	}
}

// tidyAll removes what is to be removed, and ends what a stopped pod still has.
func (e *Engine) tidyAll(ctx context.Context) {
	var g errgroup.Group
	g.SetLimit(sweepers)
	each := func(ids []string, what string, fn func(context.Context, string) error) {
		for _, id := range ids {
			g.Go(func() error {
				if err := fn(ctx, id); err != nil {
					e.log.Warn("what is left of a "+what+" cannot be removed; it is tried again", what, id, "error", err)
				}
				return nil
			})
		}
		_ = g.Wait()
	}
	pods, containers, stopped := e.leftOver()
	each(containers, "container", e.RemoveContainer)
	each(stopped, "pod", e.StopPod)
	each(pods, "pod", e.RemovePod)
}

// leftOver lists the pods and containers to be removed, and the stopped pods that still have something.
func (e *Engine) leftOver() (pods, containers, stopped []string) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	for id, p := range e.pods {
		switch {
		case p.record.State == removing:
			pods = append(pods, id)
		case p.record.State == notready && !p.record.Released:
			stopped = append(stopped, id)
		}
	}
	for id, c := range e.containers {
		if c.record.State == removing {
			containers = append(containers, id)
		}
	}
	return pods, containers, stopped
}
