package engine

import (
	"context"
	"fmt"
	"strconv"

	"github.com/containerd/errdefs"

	"github.com/criserver/criserver/engine/spec"
	"github.com/criserver/criserver/shim/api"
)

// UpdatePod records what the containers of a ready pod may use together, and its overhead; nil leaves what is recorded.
// The limits are set on the pod's cgroup where we made it. A cgroup that the client made for the pod is the client's,
// who has set it already.
func (e *Engine) UpdatePod(ctx context.Context, id string, resources, overhead *spec.Resources) error {
	id, err := e.resolvePod(id)
	if err != nil {
		return err
	}
	kind := "update " + strconv.FormatUint(updates.Add(1), 10)
	err = e.ops.do(ctx, e.ctx, podKey(id), kind, func(ctx context.Context) error { return e.updatePod(ctx, id, resources, overhead) })
	if err != nil {
		return fmt.Errorf("update pod %s: %w", id, err)
	}
	return nil
}

// updatePod is the operation of UpdatePod, and the one place through which a pod's resources change: who is to be asked
// or told about it is asked before the record is written and told after.
func (e *Engine) updatePod(ctx context.Context, id string, resources, overhead *spec.Resources) error {
	record, ok := e.podRecord(id)
	if !ok {
		return errdefs.ErrNotFound
	}
	if record.State != ready {
		return fmt.Errorf("it is %s: it must be ready: %w", record.State, errdefs.ErrFailedPrecondition)
	}
	if err := e.askPodUpdate(ctx, record, resources, overhead); err != nil {
		return err
	}
	before := record
	set := func(r *podRecord) {
		if resources != nil {
			r.Pod.Resources = *resources
		}
		if overhead != nil {
			r.Pod.Overhead = *overhead
		}
	}
	set(&record)
	data, err := e.podLimits(&record.Pod)
	if err != nil {
		return err
	}
	if err := e.store.savePod(record); err != nil {
		return err
	}
	if record.Pod.OwnCgroup {
		r := &api.UpdateRequest{Id: id, CgroupsPath: record.Pod.Cgroup(), Resources: data}
		err := e.shim(ctx, func(ctx context.Context) error { return e.cfg.Shims.Update(ctx, r) })
		if err != nil {
			if saveErr := e.store.savePod(before); saveErr != nil {
				e.log.Warn("the record of a pod has resources that were refused", "pod", id, "error", saveErr)
			}
			return err
		}
	}
	if err := e.changePod(id, ready, set); err != nil {
		return err
	}
	e.tellPodUpdated(ctx, id)
	return nil
}

func (e *Engine) podLimits(p *spec.Pod) ([]byte, error) {
	limits, err := spec.LinuxResources(spec.PodLimits(p), e.host)
	if err != nil {
		return nil, err
	}
	return encodeLimits(limits)
}

// podCgroup adds to r the cgroup that is to be made for a pod, if any.
func (e *Engine) podCgroup(r *api.StartPodRequest, p *spec.Pod) (err error) {
	if !p.OwnCgroup {
		return nil
	}
	r.PodCgroup = p.Cgroup()
	r.PodResources, err = e.podLimits(p)
	return err
}
