package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/criserver/criserver/engine/spec"
	"github.com/criserver/criserver/internal/fsx"
)

// sweepers is how many things are torn down at once when the engine is opened.
const sweepers = 8

// restore brings memory, disk and shim in line: what was ready or created is as it was, what ran runs or has exited, and
// what was half made, half removed, of another boot or without a record is there to be removed by sweep.
func (e *Engine) restore(ctx context.Context) error {
	ids, err := subdirectories(e.store.pods)
	if err != nil {
		return fmt.Errorf("records of pods: %w", err)
	}
	for _, id := range ids {
		if err := e.loadPod(id); err != nil {
			return fmt.Errorf("records of pod %s: %w", id, err)
		}
	}
	err = e.shim(ctx, func(ctx context.Context) error {
		_, err := e.syncShim(ctx)
		return err
	})
	if err != nil && ctx.Err() == nil {
		e.log.Warn("the shim does not answer; what is left over is removed when it does", "error", err)
		return nil
	}
	e.connected.Store(err == nil)
	return ctx.Err()
}

// sweep removes what is left over. The shim is followed by now. What fails is tried again by tidy, or at the next start.
func (e *Engine) sweep(ctx context.Context) error {
	if e.connected.Load() {
		e.tidyAll(ctx)
	}
	e.sweepRestores()
	return errors.Join(e.sweepRootfs(ctx), e.sweepNetwork(ctx))
}

// loadPod reads the records of a pod and of its containers into memory. A broken or missing one makes its pod or
// container one to be removed.
func (e *Engine) loadPod(id string) error {
	record := podRecord{}
	err := fsx.ReadJSON(filepath.Join(e.store.podDir(id), "pod.json"), &record)
	if err == nil && record.Pod.ID != id {
		err = fmt.Errorf("it is that of pod %q: %w", record.Pod.ID, errdefs.ErrDataLoss)
	}
	switch {
	case err != nil:
		e.log.Warn("a pod without a usable record is removed", "pod", id, "error", err)
		record = podRecord{State: removing, Pod: spec.Pod{ID: id, CgroupParent: e.cfg.CgroupParent, SystemdCgroup: e.cfg.SystemdCgroup}}
	case record.BootID != fsx.BootID():
		e.log.Info("a pod of another boot is removed", "pod", id, "name", record.Pod.Name)
		record.State = removing
	case record.State == creating:
		record.State = removing
	case record.State != ready && record.State != notready && record.State != removing:
		e.log.Warn("a pod in a state that is not one is removed", "pod", id, "state", record.State)
		record.State = removing
	}
	e.mu.Lock()
	e.pods[id] = &pod{record: record, announced: true}
	keepLabels(record)
	switch record.State {
	case ready:
		e.pods[id].told = toldOfIt
	case notready:
		e.pods[id].told = toldOfItsEnd
	}
	e.mu.Unlock()
	return e.loadContainers(record)
}

func (e *Engine) loadContainers(p podRecord) error {
	dir := e.store.podDir(p.Pod.ID)
	removeTemporary(dir)
	ids, err := subdirectories(dir)
	if err != nil {
		return err
	}
	for _, id := range ids {
		removeTemporary(filepath.Join(dir, id))
		record := e.loadContainer(p, id)
		e.mu.Lock()
		c := newContainer(record)
		switch record.State {
		case created, running:
			c.told = toldOfIt
		case exited:
			c.told = toldOfItsEnd
		}
		e.containers[id] = c
		e.mu.Unlock()
	}
	return nil
}

func (e *Engine) loadContainer(p podRecord, id string) containerRecord {
	var r containerRecord
	err := fsx.ReadJSON(filepath.Join(e.store.containerDir(p.Pod.ID, id), "container.json"), &r)
	if err == nil && (r.Container.ID != id || r.Container.PodID != p.Pod.ID) {
		err = fmt.Errorf("it is that of container %q of pod %q: %w", r.Container.ID, r.Container.PodID, errdefs.ErrDataLoss)
	}
	if err != nil {
		e.log.Warn("a container without a usable record is removed", "container", id, "pod", p.Pod.ID, "error", err)
		return containerRecord{
			State: removing, Container: spec.Container{ID: id, PodID: p.Pod.ID}, CgroupsPath: p.Pod.ProcessCgroup(id),
		}
	}
	switch {
	case r.State == creating || p.State == removing:
		r.State = removing
	case r.State == created:
		// It may have been started without our hearing of it, and have ended while nobody listed it.
		if r.Exit = e.store.readExit(r); r.Exit != nil {
			r.State = exited
		}
	case r.State == exited && r.Exit == nil:
		r.Exit = &exitRecord{Code: 255, Reason: ReasonExitUnknown, Message: "the record of its exit is lost"}
	case r.State != running && r.State != exited && r.State != removing:
		e.log.Warn("a container in a state that is not one is removed", "container", id, "state", r.State)
		r.State = removing
	}
	return r
}

// removeTemporary removes what a kill in the midst of writing a record left.
func removeTemporary(dir string) {
	matches, _ := filepath.Glob(filepath.Join(dir, ".tmp-*"))
	for _, m := range matches {
		_ = os.Remove(m)
	}
}

// sweepRootfs removes the writable layers that no container has.
func (e *Engine) sweepRootfs(ctx context.Context) error {
	keys, err := e.cfg.Rootfs.Keys(ctx)
	if err != nil {
		return fmt.Errorf("list the root filesystems of containers: %w", err)
	}
	for _, key := range keys {
		if _, ok := e.containerRecord(key); ok || !isID(key) {
			continue
		}
		e.log.Info("a root filesystem without a container is removed", "key", key)
		if err := e.cfg.Rootfs.Release(ctx, key); err != nil {
			e.log.Warn("a root filesystem without a container cannot be removed", "key", key, "error", err)
		}
	}
	return nil
}

// sweepNetwork detaches the pods that do not exist.
func (e *Engine) sweepNetwork(ctx context.Context) error {
	attached, err := e.cfg.Network.Attached(ctx)
	if err != nil {
		return fmt.Errorf("list the attachments of pods: %w", err)
	}
	for _, id := range attached {
		if _, ok := e.podRecord(id); ok {
			continue
		}
		e.log.Info("an attachment without a pod is removed", "pod", id)
		if err := e.cfg.Network.Detach(ctx, id); err != nil {
			e.log.Warn("an attachment without a pod cannot be removed", "pod", id, "error", err)
		}
	}
	return nil
}
