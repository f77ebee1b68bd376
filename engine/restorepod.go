package engine

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/criserver/criserver/engine/checkpoint"
	"github.com/criserver/criserver/engine/spec"
)

// Restored is a container that RestorePod has made.
type Restored struct{ Name, ID string }

// RestorePod makes a pod and its containers from a checkpoint of CheckpointPod. The containers are those of the checkpoint,
// by name; they are created, and go on when they are started. PodID and Checkpoint of a container are filled in. After an
// error nothing is left of what the call has made. A pod that exists already is errdefs.ErrAlreadyExists.
func (e *Engine) RestorePod(ctx context.Context, path string, p spec.Pod, containers []spec.Container) (string, []Restored, error) {
	info, err := readPod(path)
	if err != nil {
		return "", nil, err
	}
	if err := e.matchPod(&info, &p, containers); err != nil {
		return "", nil, err
	}
	dirs, err := e.matchContainers(ctx, path, &info, containers)
	if err != nil {
		return "", nil, err
	}
	if _, err := e.criu(ctx); err != nil {
		return "", nil, err
	}
	if id := e.samePodExists(p); id != "" {
		return "", nil, fmt.Errorf("pod %s/%s, attempt %d, exists as %s: remove it, or raise the attempt: %w", p.Namespace, p.Name, p.Attempt, id, errdefs.ErrAlreadyExists)
	}
	id, err := e.RunPod(ctx, p)
	if err != nil {
		return "", nil, err
	}
	var restored []Restored
	for i, c := range containers {
		c.PodID, c.Checkpoint = id, dirs[i]
		made, err := e.CreateContainer(ctx, c)
		if err != nil {
			undoing, cancel := undo(ctx)
			defer cancel()
			return "", nil, errors.Join(err, e.RemovePod(undoing, id))
		}
		restored = append(restored, Restored{Name: c.Name, ID: made})
	}
	return id, restored, nil
}

func readPod(path string) (checkpoint.PodInfo, error) {
	var info checkpoint.PodInfo
	if !filepath.IsAbs(path) {
		return info, fmt.Errorf("checkpoint path %q: must be absolute: %w", path, errdefs.ErrInvalidArgument)
	}
	if err := checkpoint.ReadJSON(path, checkpoint.PodFile, &info); err != nil {
		return info, err
	}
	return info, info.Check()
}

// matchPod refuses a pod that cannot be that of the checkpoint.
func (e *Engine) matchPod(info *checkpoint.PodInfo, p *spec.Pod, containers []spec.Container) error {
	if err := e.checkPod(p); err != nil {
		return err
	}
	refuse := func(what string) error {
		return fmt.Errorf("the pod's %s is not that of the checkpointed pod: %w", what, errdefs.ErrFailedPrecondition)
	}
	if handlerName(info.Pod.Handler) != handlerName(p.Handler) {
		return refuse("runtime handler")
	}
	if !sameJSON(info.Pod.Security.Namespaces, p.Security.Namespaces) {
		return refuse("namespace options")
	}
	if len(containers) == 0 {
		return fmt.Errorf("container configurations: none is given: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

func handlerName(handler string) string {
	if handler == "native" {
		return ""
	}
	return handler
}

// matchContainers finds for each container its directory in the checkpoint. The names must be exactly those of the
// checkpoint, and what is asked for what the checkpointed containers are.
func (e *Engine) matchContainers(ctx context.Context, path string, info *checkpoint.PodInfo, containers []spec.Container) ([]string, error) {
	named := map[string]string{}
	for _, c := range info.Containers {
		named[c.Name] = filepath.Join(path, c.Dir)
	}
	var dirs []string
	for _, c := range containers {
		dir, ok := named[c.Name]
		if !ok {
			return nil, fmt.Errorf("container %q is not in the checkpoint, or is given twice: %w", c.Name, errdefs.ErrInvalidArgument)
		}
		delete(named, c.Name)
		var old checkpoint.Info
		if err := checkpoint.ReadJSON(dir, checkpoint.InfoFile, &old); err != nil {
			return nil, err
		}
		if err := errors.Join(old.Check(), sameSettings(old.Container, c), e.sameProcess(ctx, old.Container, c)); err != nil {
			return nil, fmt.Errorf("container %s: %w", c.Name, err)
		}
		dirs = append(dirs, dir)
	}
	for name := range named {
		return nil, fmt.Errorf("container %q of the checkpoint has no configuration: %w", name, errdefs.ErrInvalidArgument)
	}
	return dirs, nil
}

// sameProcess refuses a configuration that describes another process than the checkpointed one.
func (e *Engine) sameProcess(ctx context.Context, old, asked spec.Container) error {
	image, err := e.cfg.Rootfs.Image(ctx, asked.Image)
	if err != nil {
		return fmt.Errorf("image %s: %w", asked.Image, err)
	}
	if image.ID != old.ImageID {
		return fmt.Errorf("image %s is %s, the checkpointed container ran %s: %w", asked.Image, image.ID, old.ImageID, errdefs.ErrFailedPrecondition)
	}
	for field, values := range map[string][2]any{
		"command": {old.Command, asked.Command}, "args": {old.Args, asked.Args}, "working directory": {old.WorkingDir, asked.WorkingDir},
		"environment": {old.Env, asked.Env},
	} {
		if !sameJSON(values[0], values[1]) {
			return fmt.Errorf("the %s is not that of the checkpointed container, which is %v: %w", field, values[0], errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// samePodExists is the id of the pod with the identity of p, or "".
func (e *Engine) samePodExists(p spec.Pod) string {
	e.mu.RLock()
	defer e.mu.RUnlock()
	for id, other := range e.pods {
		o := other.record.Pod
		if o.Name == p.Name && o.Namespace == p.Namespace && o.UID == p.UID && o.Attempt == p.Attempt && o.Owner == p.Owner && other.record.State != removing {
			return id
		}
	}
	return ""
}
