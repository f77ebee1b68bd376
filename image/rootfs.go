package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/criserver/criserver/image/layer"
	"github.com/criserver/criserver/snapshotter"
)

// keyPrefix is before the names of containers' writable layers, so that they cannot be taken for anything else.
const keyPrefix = "container/"

// files are the files of an image that every start of a container reads.
type files struct {
	mu   sync.Mutex
	read map[string]fileResult
}

type fileResult struct {
	data []byte
	err  error // nil or of kind fs.ErrNotExist
}

func newFiles() *files { return &files{read: map[string]fileResult{}} }

// isCached says which files these are.
func isCached(path string) bool { return path == "etc/passwd" || path == "etc/group" }

// ReadFile reads a regular file of the image, at most limit bytes, symbolic links followed beneath the root.
// fs.ErrNotExist when the image has none. /etc/passwd and /etc/group are kept in memory; the caller must not write to
// what it gets.
func (s *Store) ReadFile(ctx context.Context, imageID, path string, limit int64) ([]byte, error) {
	e, err := s.index.find(imageID)
	if err != nil {
		return nil, err
	}
	path = strings.Trim(path, "/")
	if !isCached(path) {
		return s.readFile(ctx, e, path, limit)
	}
	e.files.mu.Lock()
	known, ok := e.files.read[path]
	e.files.mu.Unlock()
	if ok && int64(len(known.data)) <= limit {
		return known.data, known.err
	}
	data, err := s.readFile(ctx, e, path, limit)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		e.files.mu.Lock()
		e.files.read[path] = fileResult{data, err}
		e.files.mu.Unlock()
	}
	return data, err
}

func (s *Store) readFile(ctx context.Context, e *entry, path string, limit int64) ([]byte, error) {
	if e.top() == "" {
		return nil, fmt.Errorf("image %s, file /%s: %w", e.ID, path, fs.ErrNotExist)
	}
	dirs, err := s.snapshots.LayerDirs(ctx, e.top())
	if err == nil {
		var data []byte
		if data, err = layer.ReadFile(dirs, path, limit); err == nil {
			return data, nil
		}
	}
	return nil, fmt.Errorf("image %s, file /%s: %w", e.ID, path, err)
}

// Prepare makes the writable layer named key on top of the image and says how to mount it. When it exists, it is
// answered as it is. It makes no fsync: the layer lasts until the machine restarts.
func (s *Store) Prepare(ctx context.Context, key, imageID string) ([]mount.Mount, error) {
	ctx = s.storeContext(ctx)
	e, err := s.index.find(imageID)
	if err != nil {
		return nil, err
	}
	mounts, err := s.snapshots.Prepare(ctx, keyPrefix+key, e.top(), snapshotter.Volatile())
	if errdefs.IsAlreadyExists(err) {
		mounts, err = s.snapshots.Mounts(ctx, keyPrefix+key)
	}
	if err != nil {
		return nil, fmt.Errorf("writable layer %s: %w", key, err)
	}
	return mounts, nil
}

// Release removes the writable layer and lets go of the volumes. An unknown key is no error.
func (s *Store) Release(ctx context.Context, key string) error {
	ctx = s.storeContext(ctx)
	if err := s.releaseVolumes(ctx, key); err != nil {
		return err
	}
	info, err := s.snapshots.Stat(ctx, keyPrefix+key)
	if err == nil {
		err = s.snapshots.Remove(ctx, keyPrefix+key)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("writable layer %s: %w", key, err)
	}
	if info.Parent != "" && !s.keeper.holds(info.Parent) {
		s.gc.kick() // the image was removed before its container
	}
	return nil
}

// Keys lists those for which there are writable layers or volumes.
func (s *Store) Keys(ctx context.Context) ([]string, error) {
	var keys []string
	err := s.snapshots.Walk(s.storeContext(ctx), func(_ context.Context, info snapshots.Info) error {
		if key, ok := strings.CutPrefix(info.Name, keyPrefix); ok && info.Kind == snapshots.KindActive {
			keys = append(keys, key)
		}
		if key, ok := volumeKey(info); ok {
			keys = append(keys, key)
		}
		return nil
	})
	slices.Sort(keys)
	return slices.Compact(keys), err
}
