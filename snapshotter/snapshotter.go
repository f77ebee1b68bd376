// Package snapshotter keeps the layers of images and the writable layers of containers on overlayfs. It implements
// containerd's snapshots.Snapshotter.
package snapshotter

// Snapshotter keeps layers and snapshots under one root directory. All methods may be called concurrently.
type Snapshotter struct{}

// Option changes how a Snapshotter works.
type Option func(*Snapshotter)

// New opens the snapshotter at root, making the directory when it is missing.
func New(root string, opts ...Option) (*Snapshotter, error) { return &Snapshotter{}, nil }
