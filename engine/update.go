package engine

import (
	"context"
	"encoding/json"
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
	kind := "update " + strconv.FormatUint(updates.Add(1), 10)
	err = e.ops.do(ctx, e.ctx, containerKey(id), kind, func(ctx context.Context) error { return e.updateContainer(ctx, id, r) })
	if err != nil {
		return fmt.Errorf("update container %s: %w", id, err)
	}
	return nil
}

// updateContainer is the operation of UpdateContainer. The kernel's answer comes first: what it refuses is not recorded.
func (e *Engine) updateContainer(ctx context.Context, id string, r spec.Resources) error {
	record, ok := e.containerRecord(id)
	if !ok {
		return errdefs.ErrNotFound
	}
	if record.State != created && record.State != running {
		return fmt.Errorf("it is %s: it must be created or running: %w", record.State, errdefs.ErrFailedPrecondition)
	}
	merged := mergeResources(record.Container.Resources, r)
	limits, err := spec.LinuxResources(merged, e.host)
	if err != nil {
		return err
	}
	if record.State == running {
		if err := e.updateProcess(ctx, id, limits); err != nil {
			return err
		}
	}
	s, err := e.readSpec(record)
	if err != nil {
		return err
	}
	if s.Linux.Resources != nil {
		limits.Devices = s.Linux.Resources.Devices
	}
	s.Linux.Resources = limits
	if err := fsx.ReplaceJSON(e.specPath(record), s); err != nil {
		return fmt.Errorf("record its OCI spec: %w", err)
	}
	record, err = e.changeContainer(id, record.State, func(r *containerRecord) { r.Container.Resources = merged })
	if err != nil {
		return err
	}
	return e.store.saveContainer(record)
}

func (e *Engine) updateProcess(ctx context.Context, id string, limits *specs.LinuxResources) error {
	data, err := json.Marshal(limits)
	if err != nil {
		return fmt.Errorf("encode its resources: %w", err)
	}
	return e.shim(ctx, func(ctx context.Context) error {
		return e.cfg.Shims.Update(ctx, &api.UpdateRequest{Id: id, Resources: data})
	})
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
