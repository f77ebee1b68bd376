package image

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/criserver/criserver/image/layer"
	"github.com/criserver/criserver/snapshotter"
)

// volumePrefix is before the names of the views by which images stay that are volumes of a container: <prefix><key>/<number>.
const volumePrefix = "volume/"

func volumeKey(info snapshots.Info) (string, bool) {
	name, ok := strings.CutPrefix(info.Name, volumePrefix)
	key, _, slash := strings.Cut(name, "/")
	return key, ok && slash && info.Kind == snapshots.KindView
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
	for _, dir := range found.Dirs {
		if strings.ContainsAny(dir, ":,\\") {
			return mount.Mount{}, fmt.Errorf("volume of image %s: %q is in several layers, and overlayfs takes no path with ':', ',' or '\\': %w",
				imageID, path, errdefs.ErrInvalidArgument)
		}
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
