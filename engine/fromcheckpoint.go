package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/criserver/criserver/engine/checkpoint"
	"github.com/criserver/criserver/engine/spec"
	"github.com/criserver/criserver/shim/api"
)

// restoreDir is where the checkpoint lies that a container goes on from. It may be as large as the container's memory, so it
// is not on the state filesystem; it goes with the container.
func (e *Engine) restoreDir(id string) string { return filepath.Join(e.cfg.RootDir, "restore", id) }

// baseImage answers with the image that a container's root is of. For one that goes on from a checkpoint, which is taken in
// first, that is the image of the checkpointed container.
func (e *Engine) baseImage(ctx context.Context, record *containerRecord) (Image, error) {
	c := &record.Container
	var source Image
	if c.Checkpoint == "" {
		image, err := e.cfg.Rootfs.Image(ctx, c.Image)
		if err != nil {
			return image, fmt.Errorf("image %s: %w", c.Image, err)
		}
		if !image.Checkpoint {
			c.ImageID, c.ImageRef = image.ID, image.Ref
			return image, nil
		}
		source = image
	}
	if source.Checkpoint && !e.cfg.RestoreImages {
		return source, fmt.Errorf("image %s is a checkpoint: whoever made it decides with which privileges it runs here, so this is off; "+
			"set checkpoint.restore_images where all who can push images and make pods are trusted: %w", c.Image, errdefs.ErrFailedPrecondition)
	}
	if _, err := e.criu(ctx); err != nil {
		return source, err
	}
	record.Restored = true
	if _, err := e.changeContainer(c.ID, creating, func(r *containerRecord) { r.Restored = true }); err != nil {
		return source, err
	}
	if err := e.store.saveContainer(*record); err != nil { // so that teardown knows of the directory
		return source, err
	}
	info, err := e.importCheckpoint(ctx, c, source)
	if err != nil {
		return source, fmt.Errorf("checkpoint: %w", err)
	}
	if err := sameSettings(info.Container, *c); err != nil {
		return source, err
	}
	base, err := e.cfg.Rootfs.Image(ctx, info.Container.ImageID)
	if err != nil {
		return base, fmt.Errorf("image %s (%s), which the checkpointed container ran: pull it first: %w", info.Container.Image, info.Container.ImageID, err)
	}
	if base.Checkpoint {
		return base, fmt.Errorf("the checkpointed container's image %s is itself a checkpoint: %w", base.ID, errdefs.ErrInvalidArgument)
	}
	record.BaseImage, c.ImageID, c.ImageRef = base.ID, base.ID, base.Ref
	if source.Checkpoint {
		c.ImageID, c.ImageRef = source.ID, source.Ref
	}
	return base, nil
}

// importCheckpoint copies a checkpoint to where it is the container's own, and reads what it is of.
func (e *Engine) importCheckpoint(ctx context.Context, c *spec.Container, source Image) (checkpoint.Info, error) {
	var info checkpoint.Info
	dir := e.restoreDir(c.ID)
	if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
		return info, err
	}
	if err := e.copyCheckpoint(ctx, c, source, dir); err != nil {
		return info, err
	}
	if err := checkpoint.ReadJSON(dir, checkpoint.InfoFile, &info); err != nil {
		return info, err
	}
	return info, info.Check()
}

func (e *Engine) copyCheckpoint(ctx context.Context, c *spec.Container, source Image, dir string) error {
	if source.Checkpoint {
		layers, err := e.cfg.Rootfs.Directories(ctx, source.ID)
		if err != nil {
			return err
		}
		return checkpoint.Copy(ctx, layers, dir)
	}
	st, err := os.Stat(c.Checkpoint)
	if err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	if st.IsDir() {
		return checkpoint.Copy(ctx, []string{c.Checkpoint}, dir)
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s is neither an archive nor a directory: %w", c.Checkpoint, errdefs.ErrInvalidArgument)
	}
	f, err := os.Open(c.Checkpoint)
	if err != nil {
		return err
	}
	defer f.Close()
	return checkpoint.Unpack(ctx, f, dir)
}

// sameSettings refuses settings that are part of the checkpointed processes and would not be honoured: what they may do,
// which streams and mounts they have.
func sameSettings(old, asked spec.Container) error {
	differ := func(what string) error {
		return fmt.Errorf("%s is not that of the checkpointed container %s, whose processes have it already: %w", what, old.Name, errdefs.ErrFailedPrecondition)
	}
	a, b := processSecurity(old.Security), processSecurity(asked.Security)
	if !sameJSON(a, b) {
		return differ("the security context (" + firstDifference(a, b) + ")")
	}
	switch {
	case old.TTY != asked.TTY:
		return differ("tty")
	case old.Stdin != asked.Stdin:
		return differ("stdin")
	case !sameJSON(old.Devices, asked.Devices):
		return differ("the list of devices")
	case !slices.Equal(targets(old.Mounts), targets(asked.Mounts)):
		return differ("the list of mounts' places")
	}
	return nil
}

// processSecurity leaves out of a security context what says nothing of the processes.
func processSecurity(s spec.Security) spec.Security {
	s.Namespaces.Target = ""
	return s
}

// firstDifference names a field in which two structs differ.
func firstDifference(a, b any) string {
	x, y := reflect.ValueOf(a), reflect.ValueOf(b)
	for i := range x.NumField() {
		if !sameJSON(x.Field(i).Interface(), y.Field(i).Interface()) {
			return x.Type().Field(i).Name
		}
	}
	return ""
}

func targets(mounts []spec.Mount) []string {
	var all []string
	for _, m := range mounts {
		all = append(all, filepath.Clean(m.Target))
	}
	slices.Sort(all)
	return all
}

// restoreRootfs brings the writable layer to where that of the checkpointed container was.
func (e *Engine) restoreRootfs(ctx context.Context, id string) error {
	f, err := os.Open(filepath.Join(e.restoreDir(id), checkpoint.RootfsFile))
	if err != nil {
		return fmt.Errorf("checkpoint: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	defer f.Close()
	return e.cfg.Rootfs.Apply(ctx, id, f)
}

// restoreRequest is what the shim needs to start a container from its checkpoint; nil for one that is simply started.
func (e *Engine) restoreRequest(ctx context.Context, record containerRecord) (*api.Restore, error) {
	if !record.Restored {
		return nil, nil
	}
	criu, err := e.criu(ctx)
	if err != nil {
		return nil, err
	}
	dir := e.restoreDir(record.Container.ID)
	r := &api.Restore{Images: filepath.Join(dir, checkpoint.ImagesDir), Criu: criu, Work: filepath.Join(dir, "work")}
	if err := os.Mkdir(r.Work, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	if shm := filepath.Join(dir, checkpoint.ShmFile); exists(shm) {
		r.Shm = shm
	}
	return r, nil
}

// forgetCheckpoint removes what a restored container went on from.
func (e *Engine) forgetCheckpoint(record containerRecord) error {
	if !record.Restored {
		return nil
	}
	if err := os.RemoveAll(e.restoreDir(record.Container.ID)); err != nil {
		return fmt.Errorf("remove the checkpoint of container %s: %w", record.Container.ID, err)
	}
	return nil
}

// sweepRestores removes the checkpoints of containers that do not exist.
func (e *Engine) sweepRestores() {
	all := filepath.Dir(e.restoreDir("id"))
	err := os.MkdirAll(all, 0o700)
	var ids []string
	if err == nil {
		ids, err = subdirectories(all)
	}
	if err != nil {
		e.log.Warn("what checkpoints are left over is not known", "error", err)
	}
	for _, id := range ids {
		if _, ok := e.containerRecord(id); ok {
			continue
		}
		e.log.Info("a checkpoint without a container is removed", "container", id)
		if err := os.RemoveAll(e.restoreDir(id)); err != nil {
			e.log.Warn("a checkpoint without a container cannot be removed", "container", id, "error", err)
		}
	}
}
