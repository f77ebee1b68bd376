package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/criserver/criserver/engine/checkpoint"
)

// CheckpointPod writes the state of running containers of a pod into an empty directory: all of them are stopped before the
// first is captured, and go on before it returns, whatever comes of it. After an error the directory is empty.
func (e *Engine) CheckpointPod(ctx context.Context, id, output string, containers []string) error {
	if err := emptyDirectory(output); err != nil {
		return err
	}
	id, err := e.resolvePod(id)
	if err != nil {
		return err
	}
	ids, err := e.podContainers(id, containers)
	if err != nil {
		return err
	}
	err = e.ops.do(context.WithoutCancel(ctx), e.ctx, podKey(id), "checkpoint to "+output, func(base context.Context) error {
		return e.together(base, ids, func() error {
			return e.cancellable(base, ctx, ids, func(ctx context.Context) error { return e.checkpointPod(ctx, id, output, ids) })
		})
	})
	if err != nil {
		return fmt.Errorf("checkpoint pod %s: %w", id, err)
	}
	return nil
}

// podContainers resolves containers of a pod, each once.
func (e *Engine) podContainers(podID string, containers []string) ([]string, error) {
	if len(containers) == 0 {
		return nil, fmt.Errorf("container ids: none is given: %w", errdefs.ErrInvalidArgument)
	}
	var ids []string
	for _, c := range containers {
		id, err := e.resolveContainer(c)
		if err != nil {
			return nil, err
		}
		record, ok := e.containerRecord(id)
		switch {
		case !ok || record.Container.PodID != podID:
			return nil, fmt.Errorf("container %s is not of pod %s: %w", c, podID, errdefs.ErrInvalidArgument)
		case slices.Contains(ids, id):
			return nil, fmt.Errorf("container %s is given twice: %w", c, errdefs.ErrInvalidArgument)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// together runs fn as an operation of several containers at once. It is called within an operation of their pod, so no two
// such wait for each other.
func (e *Engine) together(ctx context.Context, ids []string, fn func() error) error {
	if len(ids) == 0 {
		return fn()
	}
	return e.ops.within(context.WithoutCancel(ctx), e.ctx, containerKey(ids[0]), "checkpoint with its pod", func(context.Context) error {
		return e.together(ctx, ids[1:], fn)
	})
}

// checkpointPod is the operation of CheckpointPod.
func (e *Engine) checkpointPod(ctx context.Context, id, output string, ids []string) (err error) {
	pod, ok := e.podRecord(id)
	if !ok || pod.State != ready {
		return fmt.Errorf("it is not ready: %w", errdefs.ErrFailedPrecondition)
	}
	info := checkpoint.PodInfo{Version: checkpoint.Version, Pod: pod.Pod}
	var records []containerRecord
	for n, id := range ids {
		record, err := e.checkpointable(id)
		if err != nil {
			return fmt.Errorf("container %s: %w", id, err)
		}
		records = append(records, record)
		info.Containers = append(info.Containers, checkpoint.PodContainer{Name: record.Container.Name, Dir: checkpoint.ContainerDir(n)})
	}
	if err := info.Check(); err != nil { // two attempts at one container
		return err
	}
	criu, err := e.criu(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, clearDirectory(output))
		}
	}()
	err = e.frozen(ctx, ids, func(ctx context.Context) error {
		for n, record := range records {
			dir := filepath.Join(output, checkpoint.ContainerDir(n))
			if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
				return err
			}
			if err := e.capture(ctx, criu, record, dir); err != nil {
				return fmt.Errorf("container %s: %w", record.Container.Name, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return checkpoint.WriteJSON(output, checkpoint.PodFile, info) // the last: without it the checkpoint is not whole
}

// clearDirectory removes what is in a directory.
func clearDirectory(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, entry := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, entry.Name())))
	}
	return err
}
