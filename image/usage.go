package image

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Root is the directory below which everything lies, images and writable layers.
func (s *Store) Root() string { return s.config.Root }

// SnapshotKey is the name in the snapshotter of the writable layer named key.
func SnapshotKey(key string) string { return keyPrefix + key }

// Usage measures the writable layer named key: the bytes and inodes that it takes on disk. It walks the layer, which takes as
// long as that is large. errdefs.ErrNotFound when there is none.
func (s *Store) Usage(ctx context.Context, key string) (bytes, inodes uint64, err error) {
	usage, err := s.snapshots.Usage(s.storeContext(ctx), keyPrefix+key)
	if err != nil {
		return 0, 0, fmt.Errorf("writable layer %s: %w", key, err)
	}
	return uint64(max(usage.Size, 0)), uint64(max(usage.Inodes, 0)), nil
}

// FsInfo measures what images take on disk: blobs, layers, and the records of both. It reads records, and the figures of a few
// files, not directories.
func (s *Store) FsInfo(ctx context.Context) (FsInfo, error) {
	ctx = s.storeContext(ctx)
	info := FsInfo{MountPoint: s.config.Root, When: time.Now()}
	block := uint64(s.blockSize())
	err := s.content.Walk(ctx, func(blob content.Info) error {
		info.Bytes += (uint64(max(blob.Size, 0)) + block - 1) / block * block
		info.Inodes++
		return nil
	})
	if err != nil {
		return FsInfo{}, fmt.Errorf("size of blobs: %w", err)
	}
	if err := s.addLayers(ctx, &info); err != nil {
		return FsInfo{}, fmt.Errorf("size of layers: %w", err)
	}
	for _, name := range []string{"meta.db", "snapshots/snapshots.db", "content/blobs/sha256"} {
		var st unix.Stat_t
		if err := unix.Stat(s.path(name), &st); err == nil {
			info.Bytes += uint64(st.Blocks) * 512
			info.Inodes++
		} else if !errors.Is(err, unix.ENOENT) {
			return FsInfo{}, fmt.Errorf("size of %s: %w", name, err)
		}
	}
	return info, nil
}

// blockSize is the unit in which the filesystem of the root gives room to files.
func (s *Store) blockSize() int64 {
	var st unix.Statfs_t
	if err := unix.Statfs(s.config.Root, &st); err != nil || st.Bsize <= 0 || st.Bsize > 1<<20 {
		return 4096
	}
	return int64(st.Bsize)
}

// addLayers adds what committed layers take, each directory once, however many snapshots share it.
func (s *Store) addLayers(ctx context.Context, info *FsInfo) error {
	var committed []string
	err := s.snapshots.Walk(ctx, func(_ context.Context, snapshot snapshots.Info) error {
		if snapshot.Kind == snapshots.KindCommitted {
			committed = append(committed, snapshot.Name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	counted := map[string]bool{}
	for _, name := range committed {
		dirs, err := s.snapshots.LayerDirs(ctx, name)
		if errdefs.IsNotFound(err) || len(dirs) > 0 && counted[dirs[0]] {
			continue
		}
		if err != nil {
			return err
		}
		usage, err := s.snapshots.Usage(ctx, name)
		if err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		if len(dirs) > 0 {
			counted[dirs[0]] = true
		}
		info.Bytes += uint64(max(usage.Size, 0))
		info.Inodes += uint64(max(usage.Inodes, 0))
	}
	return nil
}
