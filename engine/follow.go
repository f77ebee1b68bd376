package engine

import (
	"context"
	"time"

	"github.com/containerd/errdefs"

	"github.com/criserver/criserver/shim/api"
)

// follow keeps what is in memory in step with the shim until the engine is closed. News is only a hint; whenever the
// connection or the shim was another, or someone misses an exit, the whole list is asked for again.
func (e *Engine) follow() {
	const shortest, longest = 10 * time.Millisecond, time.Second
	pause, reported := shortest, false
	for {
		sequence, err := e.syncShim(e.ctx)
		if err == nil {
			if reported {
				e.log.Info("the shim answers again")
			}
			pause, reported = shortest, false
			e.connected.Store(true)
			err = e.followFrom(sequence)
		}
		e.connected.Store(err == nil)
		if e.ctx.Err() != nil {
			return
		}
		if err == nil {
			continue // woken
		}
		if pause == longest && !reported {
			e.log.Warn("the shim does not answer; workloads run on and it is tried again", "error", err)
			reported = true
		}
		select {
		case <-e.ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, longest)
	}
}

// followFrom takes in news until an error, or, with nil, until it is woken.
func (e *Engine) followFrom(sequence uint64) error {
	ctx, cancel := context.WithCancel(e.ctx)
	defer cancel()
	woken := make(chan struct{})
	go func() {
		defer close(woken)
		select {
		case <-e.resync:
			cancel()
		case <-ctx.Done():
		}
	}()
	for {
		answer, err := e.cfg.Shims.Exits(ctx, sequence)
		if err != nil {
			wake := ctx.Err() != nil
			cancel()
			<-woken
			if wake {
				return nil
			}
			return err
		}
		for _, c := range answer.Containers {
			e.takeIn(c)
		}
		sequence = answer.Sequence
	}
}

// wakeFollow has the shim's list asked for soon.
func (e *Engine) wakeFollow() {
	select {
	case e.resync <- struct{}{}:
	default:
	}
}

// syncShim takes in the shim's whole list: what it has, what it has lost, and what it has that is nobody's.
func (e *Engine) syncShim(ctx context.Context) (sequence uint64, err error) {
	// Who ran before the list was asked for is in it, or has ended.
	ran := e.runningContainers()
	list, err := e.cfg.Shims.List(ctx)
	if err != nil {
		return 0, err
	}
	for _, c := range list.Containers {
		delete(ran, c.Id)
		if !e.takeIn(c) {
			e.removeStray(c.Id)
		}
	}
	for id, record := range ran {
		exit := e.store.readExit(record)
		if exit == nil {
			e.log.Warn("the shim has lost a container; its exit code is not known", "container", id)
			exit = newExit(&api.Exit{Code: 255, ExitedAt: time.Now().UnixNano(), Reason: ReasonExitUnknown})
		}
		e.ended(id, exit, nil)
	}
	return list.Sequence, nil
}

func (e *Engine) runningContainers() map[string]containerRecord {
	e.mu.RLock()
	defer e.mu.RUnlock()
	ran := map[string]containerRecord{}
	for id, c := range e.containers {
		if c.record.State == running {
			ran[id] = c.record
		}
	}
	return ran
}

// takeIn takes in what the shim says of a container; it answers false when there is no such container.
func (e *Engine) takeIn(c *api.Container) bool {
	record, ok := e.containerRecord(c.Id)
	switch {
	case !ok:
		return false
	case c.Exit != nil:
		e.ended(c.Id, newExit(c.Exit), c)
	case record.State == created:
		// The answer to its start was lost, or is on its way.
		_, _ = e.changeContainer(c.Id, running, func(r *containerRecord) {
			r.PID, r.StartedAt = int(c.Pid), time.Unix(0, c.StartedAt)
		})
	}
	return true
}

// ended makes a container one that has exited, once, and has the rest done by an operation of it.
func (e *Engine) ended(id string, exit *exitRecord, c *api.Container) {
	e.mu.RLock()
	known := e.containers[id]
	skip := known == nil || known.released || known.record.State == creating || known.record.State == removing
	e.mu.RUnlock()
	if skip {
		return
	}
	_, err := e.changeContainer(id, exited, func(r *containerRecord) {
		if r.Exit != nil {
			return
		}
		r.Exit = exit
		if c != nil && r.StartedAt.IsZero() {
			r.PID, r.StartedAt = int(c.Pid), time.Unix(0, c.StartedAt)
		}
	})
	if err != nil {
		return // it was removed meanwhile
	}
	_, err = e.ops.enqueue(e.ctx, containerKey(id), "reap", func(ctx context.Context) error { return e.reap(ctx, id) })
	if err != nil && !errdefs.IsUnavailable(err) {
		e.log.Warn("a container that has exited is not cleaned up yet", "container", id, "error", err)
	}
}

// reap records an exit and has the shim let go of what the container had. What fails is done when the shim lists the
// container again, or at its removal.
func (e *Engine) reap(ctx context.Context, id string) error {
	record, ok := e.containerRecord(id)
	if !ok || record.State != exited {
		return nil
	}
	err := e.store.saveContainer(record)
	if err == nil {
		err = e.releaseProcess(ctx, record)
	}
	e.tellEnd(ctx, id)
	if err != nil {
		e.log.Warn("a container that has exited is not cleaned up yet", "container", id, "error", err)
	}
	return err
}

// removeStray has the shim end a container that is nobody's: it was removed while the shim could not be reached.
func (e *Engine) removeStray(id string) {
	_, _ = e.ops.enqueue(e.ctx, containerKey(id), "stray", func(ctx context.Context) error {
		if _, ok := e.containerRecord(id); ok {
			return nil
		}
		e.log.Warn("the shim runs a container that has no record; it is ended", "container", id)
		err := e.cfg.Shims.Delete(ctx, &api.DeleteRequest{Id: id})
		if err != nil {
			e.log.Warn("a container without a record cannot be ended; it is tried again", "container", id, "error", err)
		}
		return err
	})
}
