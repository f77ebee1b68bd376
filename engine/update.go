package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"sync/atomic"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/engine/spec"
	"github.com/criserver/criserver/internal/fsx"
	"github.com/criserver/criserver/shim/api"
)

var updates atomic.Uint64 // makes each update an operation of its own, which no other joins

// UpdateContainer changes the limits of a created or running container. Zero fields stay as they are.
func (e *Engine) UpdateContainer(ctx context.Context, id string, r spec.Resources) error {
	id, err := e.resolveContainer(id)
	if err != nil {
		return err
	}
	if r, err = e.askUpdate(ctx, id, r); err != nil {
		return fmt.Errorf("update container %s: %w", id, err)
	}
	err = e.ops.do(ctx, e.ctx, containerKey(id), updateKind(), func(ctx context.Context) error { return e.updateContainer(ctx, id, r) })
	if err != nil {
		return fmt.Errorf("update container %s: %w", id, err)
	}
	e.logPlugin(e.tellContainer(ctx, ContainerPostUpdate, id), ContainerPostUpdate, "container", id)
	return nil
}

func updateKind() string { return "update " + strconv.FormatUint(updates.Add(1), 10) }

// updateContainer is the operation of UpdateContainer. What is to be done is recorded first, so that it is done whoever
// dies meanwhile; what the kernel refuses is not.
func (e *Engine) updateContainer(ctx context.Context, id string, r spec.Resources) error {
	record, ok := e.containerRecord(id)
	if !ok {
		return errdefs.ErrNotFound
	}
	if record.State != created && record.State != running {
		return fmt.Errorf("it is %s: it must be created or running: %w", record.State, errdefs.ErrFailedPrecondition)
	}
	merged := mergeResources(record.Container.Resources, r)
	s, err := e.readSpec(record)
	if err != nil {
		return err
	}
	warnings, err := spec.Relimit(s, merged, e.host)
	if err != nil {
		return err
	}
	for _, warning := range warnings {
		e.log.Warn(warning, "container", id, "name", record.Container.Name)
	}
	if record.State == running {
		if err := e.updateProcess(ctx, record, merged); err != nil {
			return err
		}
	}
	if err := fsx.ReplaceJSON(e.specPath(record), s); err != nil {
		return fmt.Errorf("record its OCI spec: %w", err)
	}
	return e.saveUpdate(id, func(r *containerRecord) { r.Container.Resources, r.Update = merged, nil })
}

// saveUpdate changes and records a container that is created, runs, or has ended meanwhile.
func (e *Engine) saveUpdate(id string, change func(*containerRecord)) error {
	record, ok := e.containerRecord(id)
	if !ok {
		return errdefs.ErrNotFound
	}
	record, err := e.changeContainer(id, record.State, change)
	if err != nil && record.State == exited {
		record, err = e.changeContainer(id, exited, change)
	}
	if err != nil {
		return err
	}
	return e.store.saveContainer(record)
}

// updateProcess has the shim set the limits of a container that runs: all or none of them.
func (e *Engine) updateProcess(ctx context.Context, record containerRecord, merged spec.Resources) error {
	id := record.Container.ID
	limits, err := spec.LinuxResources(merged, e.host)
	if err != nil {
		return err
	}
	r := &api.UpdateRequest{Id: id}
	if merged.OOMScoreAdj != record.Container.Resources.OOMScoreAdj {
		score, _ := spec.OOMScoreAdj(merged, e.host)
		r.OomScoreAdj = new(int32(score))
	}
	if r.Resources, err = encodeLimits(limits); err != nil {
		return err
	}
	if err := e.saveUpdate(id, func(r *containerRecord) { r.Update = &merged }); err != nil {
		return err
	}
	err = e.shim(ctx, func(ctx context.Context) error { return e.cfg.Shims.Update(ctx, r) })
	if err == nil || errdefs.IsUnavailable(err) || ctx.Err() != nil {
		return err // what became of it is not known, so it stays to be done
	}
	return errors.Join(aboutProcess(id, err), e.saveUpdate(id, func(r *containerRecord) { r.Update = nil }))
}

// encodeLimits encodes limits for an update. One of memory that is too low for what is in use is to be an error: the
// kernel of cgroup v2 would kill.
func encodeLimits(limits *specs.LinuxResources) ([]byte, error) {
	if limits.Memory != nil {
		limits.Memory.CheckBeforeUpdate = new(true)
	}
	data, err := json.Marshal(limits)
	if err != nil {
		return nil, fmt.Errorf("encode its resources: %w", err)
	}
	return data, nil
}

// finishUpdates carries out the updates that a daemon before this one had begun.
func (e *Engine) finishUpdates() {
	e.mu.RLock()
	begun := map[string]spec.Resources{}
	for id, c := range e.containers {
		if u := c.record.Update; u != nil && c.record.State == running {
			begun[id] = *u
		}
	}
	e.mu.RUnlock()
	for id, r := range begun {
		if err := e.UpdateContainer(e.ctx, id, r); err != nil {
			e.log.Warn("an update that was begun before this daemon started cannot be carried out", "container", id, "error", err)
		}
	}
}

// mergeResources lays what is set in change over old.
func mergeResources(old, change spec.Resources) spec.Resources {
	set(&old.CPUShares, change.CPUShares)
	set(&old.CPUQuota, change.CPUQuota)
	set(&old.CPUPeriod, change.CPUPeriod)
	set(&old.CPUs, change.CPUs)
	set(&old.Mems, change.Mems)
	set(&old.MemorySwap, change.MemorySwap)
	if change.Memory != 0 && change.MemorySwap == 0 {
		old.MemorySwap = 0 // no swap, as for a new container: the old sum may lie below the new limit
	}
	set(&old.Memory, change.Memory)
	set(&old.OOMScoreAdj, change.OOMScoreAdj)
	old.HugepageLimit = overlay(old.HugepageLimit, change.HugepageLimit)
	old.Unified = overlay(old.Unified, change.Unified)
	return old
}

func set[T comparable](to *T, value T) {
	var zero T
	if value != zero {
		*to = value
	}
}

// overlay is a new map, since the old one is shared with snapshots.
func overlay[V any](old, change map[string]V) map[string]V {
	if len(change) == 0 {
		return old
	}
	out := maps.Clone(old)
	if out == nil {
		out = map[string]V{}
	}
	maps.Copy(out, change)
	return out
}
