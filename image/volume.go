package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/image/layer"
	"github.com/criserver/criserver/snapshotter"
)

// volumePrefix is before the names of the views by which images stay that are volumes of a container: <prefix><key>/<number>.
const volumePrefix = "volume/"

func volumeKey(info snapshots.Info) (string, bool) {
	name, ok := strings.CutPrefix(info.Name, volumePrefix)
	key, _, slash := strings.Cut(name, "/")
	return key, ok && slash && info.Kind != snapshots.KindCommitted
}

// Scratch says how to mount a writable copy of a directory of an image, as images ask for by their volumes: an overlay of it and a
// directory that is removed by Release of the key, or that directory alone where the image has none of that name. Number is one
// that Volume does not have. Repeated it answers as before. It makes no fsync: it lasts until the machine restarts.
func (s *Store) Scratch(ctx context.Context, key string, number int, imageID, path string) (mount.Mount, error) {
	ctx = s.storeContext(ctx)
	e, err := s.index.find(imageID)
	if err != nil {
		return mount.Mount{}, err
	}
	name := volumePrefix + key + "/" + strconv.Itoa(number)
	mounts, err := s.snapshots.Prepare(ctx, name, e.top(), snapshotter.Volatile())
	if errdefs.IsAlreadyExists(err) {
		mounts, err = s.snapshots.Mounts(ctx, name)
	}
	if err != nil {
		return mount.Mount{}, fmt.Errorf("volume %s of the image: %w", path, err)
	}
	out := mounts[0]
	if out.Type == "bind" { // the image has no layers
		return out, nil
	}
	dirs, err := s.snapshots.LayerDirs(ctx, e.top())
	if err != nil {
		return mount.Mount{}, fmt.Errorf("volume %s of the image: %w", path, err)
	}
	found, err := layer.Locate(dirs, path)
	upper := option(out.Options, "upperdir=")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return mount.Mount{Type: "bind", Source: upper, Options: []string{"rbind", "rw"}}, os.Chmod(upper, 0o755)
	case err != nil:
		return mount.Mount{}, fmt.Errorf("volume %s of the image: %w", path, err)
	case found.File != "":
		return mount.Mount{}, fmt.Errorf("volume %s of the image is not a directory in it: %w", path, errdefs.ErrInvalidArgument)
	}
	if err := overlayable(found.Dirs); err != nil {
		return mount.Mount{}, fmt.Errorf("volume %s of the image: %w", path, err)
	}
	for i, o := range out.Options {
		if strings.HasPrefix(o, "lowerdir=") {
			out.Options[i] = "lowerdir=" + strings.Join(found.Dirs, ":")
		}
	}
	return out, likeDirectory(upper, found.Dirs[0])
}

func option(options []string, prefix string) string {
	for _, o := range options {
		if value, ok := strings.CutPrefix(o, prefix); ok {
			return value
		}
	}
	return ""
}

// likeDirectory gives a directory the owner and mode of another.
func likeDirectory(dir, model string) error {
	var st unix.Stat_t
	if err := unix.Stat(model, &st); err != nil {
		return &fs.PathError{Op: "stat", Path: model, Err: err}
	}
	if err := os.Lchown(dir, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	return unix.Chmod(dir, st.Mode&0o7777)
}

// overlayable refuses paths that overlayfs cannot be told of.
func overlayable(dirs []string) error {
	for _, dir := range dirs {
		if strings.ContainsAny(dir, ":,\\") {
			return fmt.Errorf("overlayfs takes no path with ':', ',' or '\\': %w", errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// Volume says how to mount a path of an image, "" for all of it, read-only: a bind of a directory or file, or an overlay. The image's
// layers stay until Release of the key; number tells several volumes of it apart. Repeated it answers as before. It makes no fsync.
// ErrNotFound: no such image; ErrInvalidArgument: no such path in it.
func (s *Store) Volume(ctx context.Context, key string, number int, imageID, path string) (mount.Mount, error) {
	ctx = s.storeContext(ctx)
	e, err := s.index.find(imageID)
	if err != nil {
		return mount.Mount{}, err
	}
	if e.top() == "" {
		return mount.Mount{}, fmt.Errorf("image %s has no layers, so there is nothing to mount: %w", imageID, errdefs.ErrInvalidArgument)
	}
	name := volumePrefix + key + "/" + strconv.Itoa(number)
	if _, err := s.snapshots.View(ctx, name, e.top(), snapshotter.Volatile()); err != nil && !errdefs.IsAlreadyExists(err) {
		return mount.Mount{}, fmt.Errorf("volume of image %s: %w", imageID, err)
	}
	dirs, err := s.snapshots.LayerDirs(ctx, e.top())
	if err != nil {
		return mount.Mount{}, fmt.Errorf("volume of image %s: %w", imageID, err)
	}
	found, err := layer.Locate(dirs, path)
	if err != nil {
		return mount.Mount{}, fmt.Errorf("volume of image %s: %w: %w", imageID, err, errdefs.ErrInvalidArgument)
	}
	switch {
	case found.File != "":
		return mount.Mount{Type: "bind", Source: found.File, Options: []string{"bind", "ro"}}, nil
	case len(found.Dirs) == 1:
		return mount.Mount{Type: "bind", Source: found.Dirs[0], Options: []string{"bind", "ro"}}, nil
	}
	if err := overlayable(found.Dirs); err != nil {
		return mount.Mount{}, fmt.Errorf("volume of image %s: %q is in several layers: %w", imageID, path, err)
	}
	return mount.Mount{Type: "overlay", Source: "overlay", Options: []string{"ro", "lowerdir=" + strings.Join(found.Dirs, ":"), "index=off"}}, nil
}

// releaseVolumes lets go of the images that are volumes of a container.
func (s *Store) releaseVolumes(ctx context.Context, key string) error {
	for number := 0; ; number++ {
		name := volumePrefix + key + "/" + strconv.Itoa(number)
		err := s.snapshots.Remove(ctx, name)
		if errdefs.IsNotFound(err) {
			break
		}
		if err != nil {
			return fmt.Errorf("volume %d of %s: %w", number, key, err)
		}
		s.gc.kick() // the image may have been removed before
	}
	return nil
}
