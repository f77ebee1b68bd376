package image

import (
	"context"
	"fmt"
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
