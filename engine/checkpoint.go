package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/engine/checkpoint"
	"github.com/criserver/criserver/shim/api"
)

// checkpointLimit bounds a checkpoint for which no time is given.
const checkpointLimit = 10 * time.Minute

// execWait is how long a checkpoint tries again when commands run in the container, as a probe does.
const execWait = 5 * time.Second

// CheckpointContainer writes the state of a running container, its processes and the changes of its root, as an archive to
// location, an absolute path. The container runs on. It is stopped meanwhile, and goes on when the timeout (0: 10 min) has
// passed, the context ends, or the container is stopped or removed: then there is no archive.
func (e *Engine) CheckpointContainer(ctx context.Context, id, location string, timeout time.Duration) error {
	if err := checkLocation(location); err != nil {
		return err
	}
	id, err := e.resolveContainer(id)
	if err != nil {
		return err
	}
	if timeout <= 0 {
		timeout = checkpointLimit
	}
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	// The caller does not leave before the container goes on.
	err = e.ops.do(context.WithoutCancel(ctx), e.ctx, containerKey(id), "checkpoint to "+location, func(base context.Context) error {
		return e.cancellable(base, limited, []string{id}, func(ctx context.Context) error {
			return e.checkpointContainer(ctx, id, location)
		})
	})
	if err != nil {
		return fmt.Errorf("checkpoint container %s: %w", id, err)
	}
	return nil
}

func checkLocation(location string) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("location "+format+": %w", append(args, errdefs.ErrInvalidArgument)...)
	}
	if !filepath.IsAbs(location) {
		return bad("%q: must be an absolute path", location)
	}
	if info, err := os.Stat(filepath.Dir(location)); err != nil || !info.IsDir() {
		return bad("%s: its directory does not exist", location)
	}
	if info, err := os.Lstat(location); err == nil && !info.Mode().IsRegular() {
		return bad("%s: there is something that is not a file", location)
	}
	return nil
}

// cancellable runs fn with a context that ends with any of two, or when a stop of one of the containers is asked for.
func (e *Engine) cancellable(base, limit context.Context, ids []string, fn func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(base)
	defer cancel(nil)
	stop := context.AfterFunc(limit, func() { cancel(context.Cause(limit)) })
	defer stop()
	e.mu.Lock()
	for _, id := range ids {
		if c := e.containers[id]; c != nil {
			c.interrupt = cancel
		}
	}
	e.mu.Unlock()
	err := fn(ctx)
	e.mu.Lock()
	for _, id := range ids {
		if c := e.containers[id]; c != nil {
			c.interrupt = nil
		}
	}
	e.mu.Unlock()
	if err != nil && ctx.Err() != nil { // what failed did so because of it
		return context.Cause(ctx)
	}
	return err
}

// errStopping ends a checkpoint.
var errStopping = fmt.Errorf("it is being stopped: %w", errdefs.ErrAborted)

// checkpointContainer is the operation of CheckpointContainer.
func (e *Engine) checkpointContainer(ctx context.Context, id, location string) error {
	record, err := e.checkpointable(id)
	if err != nil {
		return err
	}
	criu, err := e.criu(ctx)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(filepath.Dir(location), ".checkpoint-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	err = e.frozen(ctx, []string{id}, func(ctx context.Context) error { return e.capture(ctx, criu, record, dir) })
	if err != nil {
		return err
	}
	return checkpoint.Pack(ctx, dir, location)
}

// checkpointable is the record of a container that may be checkpointed as far as the engine can tell; the shim knows more.
func (e *Engine) checkpointable(id string) (containerRecord, error) {
	record, ok := e.containerRecord(id)
	if !ok {
		return record, errdefs.ErrNotFound
	}
	if record.State != running {
		return record, fmt.Errorf("it is %s: only one that runs can be checkpointed: %w", record.State, errdefs.ErrFailedPrecondition)
	}
	if pod, _ := e.podRecord(record.Container.PodID); pod.Pod.Security.Namespaces.User != nil {
		return record, fmt.Errorf("its pod has a user namespace, which cannot be restored: %w", errdefs.ErrFailedPrecondition)
	}
	return record, nil
}

// frozen runs fn while containers are frozen, which they are no longer when it returns. Commands that are run in them are
// waited for a little, since criu would lose them.
func (e *Engine) frozen(ctx context.Context, ids []string, fn func(context.Context) error) error {
	giveUp := time.Now().Add(execWait)
	for {
		err := e.frozenOnce(ctx, ids, fn)
		if !errdefs.IsUnavailable(err) || time.Now().After(giveUp) {
			if errdefs.IsUnavailable(err) {
				err = fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
			}
			return err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (e *Engine) frozenOnce(ctx context.Context, ids []string, fn func(context.Context) error) error {
	release, err := e.cfg.Shims.Freeze(ctx, ids)
	if err != nil {
		return err
	}
	defer release() // thaws, too, should Thaw not get through
	err = fn(ctx)
	undoing, cancel := undo(ctx)
	defer cancel()
	return errors.Join(err, e.cfg.Shims.Thaw(undoing, ids))
}

// capture writes a frozen container's checkpoint into an empty directory.
func (e *Engine) capture(ctx context.Context, criu string, record containerRecord, dir string) error {
	id := record.Container.ID
	images := filepath.Join(dir, checkpoint.ImagesDir)
	// A try before may have left something.
	if err := errors.Join(os.RemoveAll(images), os.Mkdir(images, 0o700)); err != nil {
		return err
	}
	request := &api.CheckpointRequest{Id: id, Images: images, Criu: criu, Work: dir, Shm: filepath.Join(dir, checkpoint.ShmFile)}
	if err := e.cfg.Shims.Checkpoint(ctx, request); err != nil {
		return aboutProcess(id, err)
	}
	if err := e.captureRootfs(ctx, id, filepath.Join(dir, checkpoint.RootfsFile)); err != nil {
		return err
	}
	return e.describe(record, dir)
}

func (e *Engine) captureRootfs(ctx context.Context, id, path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(e.cfg.Rootfs.Changes(ctx, id, f), f.Close())
}

// describe writes what is known of a container beside its state.
func (e *Engine) describe(record containerRecord, dir string) error {
	c := record.Container
	err := checkpoint.WriteJSON(dir, checkpoint.ConfigFile, checkpoint.Config{
		ID: c.ID, Name: c.Name, RootfsImage: c.Image, RootfsImageRef: record.baseImage(), RootfsImageName: c.ImageRef,
		Runtime: "native", CreatedTime: record.CreatedAt, CheckpointedAt: time.Now(),
	})
	if err != nil {
		return err
	}
	data, err := os.ReadFile(filepath.Join(e.store.containerDir(c.PodID, c.ID), "config.json"))
	if err != nil {
		return err
	}
	var oci specs.Spec
	if err := json.Unmarshal(data, &oci); err != nil {
		return fmt.Errorf("config.json of container %s: %w", c.ID, err)
	}
	// By these the tools of others know whose checkpoint it is.
	annotations := map[string]string{
		"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.container-name": c.Name, "io.kubernetes.cri.sandbox-id": c.PodID,
	}
	if pod, ok := e.podRecord(c.PodID); ok {
		annotations["io.kubernetes.cri.sandbox-name"] = pod.Pod.Name
		annotations["io.kubernetes.cri.sandbox-namespace"] = pod.Pod.Namespace
	}
	for key, value := range oci.Annotations {
		annotations[key] = value
	}
	oci.Annotations = annotations
	if err := checkpoint.WriteJSON(dir, checkpoint.SpecFile, &oci); err != nil {
		return err
	}
	c.ImageID = record.baseImage()
	return checkpoint.WriteJSON(dir, checkpoint.InfoFile, checkpoint.Info{Version: checkpoint.Version, Container: c, User: record.User})
}

// baseImage is the image that the root filesystem is of.
func (r *containerRecord) baseImage() string {
	if r.BaseImage != "" {
		return r.BaseImage
	}
	return r.Container.ImageID
}

// emptyDirectory checks the directory that a pod's checkpoint goes to.
func emptyDirectory(path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("output path %q: must be absolute: %w", path, errdefs.ErrInvalidArgument)
	}
	entries, err := os.ReadDir(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("output path %s: make the directory first: %w", path, errdefs.ErrInvalidArgument)
	case err != nil:
		return fmt.Errorf("output path: %w: %w", err, errdefs.ErrInvalidArgument)
	case len(entries) > 0:
		return fmt.Errorf("output path %s: is not empty: %w", path, errdefs.ErrInvalidArgument)
	}
	return nil
}
