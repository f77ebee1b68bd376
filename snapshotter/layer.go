package snapshotter

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// LayerID names a layer at a place in an image. DiffID is the digest of the layer's uncompressed tar, ChainID that of
// the layer and all layers below it (image-spec, config.md). For the lowest layer the two are equal.
type LayerID struct {
	DiffID, ChainID digest.Digest
}

// LayerStats is what the writer of a layer knows about it.
type LayerStats struct {
	// Size is the layer's use of the disk in bytes, Inodes the number of its inodes, hard links once. Zero Inodes
	// lets Commit walk the directory for both.
	Size, Inodes int64
	// RootImplied says that the tar had no entry for the root, so that the root's attributes come from the layer below.
	RootImplied bool
}

// Link is one step of a chain of committed snapshots.
type Link struct {
	// Name of the snapshot that is made, by custom the chainID. Names and keys share one space.
	Name string
	// Layer is a committed layer that the caller still holds.
	Layer *Layer
	// Labels of the snapshot, may be nil.
	Labels map[string]string
}

// Layer is a hold on a layer directory: one that exists, or one that the holder alone may write. It is for one
// goroutine at a time.
//
//	l, err := s.Layer(ctx, id)             // waits while another caller writes the same layer
//	defer l.Release()                      // throws the directory away unless it was committed
//	if !l.Committed() {
//		result, err := layer.Write(ctx, l.Dir(), tar, layer.Options{})
//		... verify the digest ...
//		if result.NeedsParents() {
//			l.KeyByChain()                 // lets go of the diffID; then wait for the layers below
//			err = layer.Adopt(ctx, l.Dir(), &result, pathsOfTheLayersBelowUppermostFirst)
//		}
//		err = l.Commit(ctx, snapshotter.LayerStats{...})
//	}
//	... when all layers of the image are committed and held: s.Chain(ctx, "", links)
type Layer struct{}

// Layer answers a hold on the layer id. When its directory is committed, by its diffID or (for a layer that needs the
// layers below) by its chainID, the hold is on that. Otherwise the caller becomes the writer, and whoever asks for the
// same diffID or chainID meanwhile waits until it commits, gives up, or calls KeyByChain. A record whose directory is
// gone counts as not there: it is written again in its place, for all snapshots that use it.
//
// Do not wait for another layer while being the writer of a diffID (before KeyByChain): the other may wait for you.
func (s *Snapshotter) Layer(ctx context.Context, id LayerID) (*Layer, error) {
	return nil, fmt.Errorf("layer %s: %w", id.DiffID, errdefs.ErrNotImplemented)
}

// Committed says that the directory is complete and durable and must not be written.
func (l *Layer) Committed() bool { return false }

// Path is the absolute path of the layer directory.
func (l *Layer) Path() string { return "" }

// Dir is the open directory for the writer, nil once the layer is committed. The Layer owns it.
func (l *Layer) Dir() *os.File { return nil }

// KeyByChain makes this layer known by its chainID only, because what is in the directory depends on the layers below.
// Those who wait for the diffID go on and write their own. It does nothing on a committed layer.
func (l *Layer) KeyByChain() {}

// Commit makes the directory durable (one syncfs, shared with other layers that wait for one) and records it. The hold
// stays. On an error the layer is not committed and Release throws it away. Committing twice is no error.
func (l *Layer) Commit(ctx context.Context, stats LayerStats) error {
	return fmt.Errorf("commit layer: %w", errdefs.ErrNotImplemented)
}

// Release ends the hold; it may be called twice. A layer that was not committed is removed. A committed one that no
// snapshot uses stays for a while, so that a pull that is tried again finds it, and goes at a later Cleanup.
func (l *Layer) Release() {}

// Chain makes committed snapshots from held layers in one durable step, the first on top of parent ("" for none), each
// next one on top of the one before. A link whose name exists with the same layer and parent is left as it is, so Chain may
// be repeated; with another layer or parent it is errdefs.ErrAlreadyExists.
func (s *Snapshotter) Chain(ctx context.Context, parent string, links []Link) error {
	return fmt.Errorf("chain: %w", errdefs.ErrNotImplemented)
}

// LayerDirs answers the layer directories of a snapshot of any kind, uppermost first, as they are mounted. The writable
// directory of an active snapshot is not among them.
func (s *Snapshotter) LayerDirs(ctx context.Context, key string) ([]string, error) {
	return nil, fmt.Errorf("layer directories of %s: %w", key, errdefs.ErrNotImplemented)
}
