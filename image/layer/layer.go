// Package layer turns the tar stream of an image's layer into a directory that overlayfs can use as a lower layer, and
// reads files from a stack of such directories.
package layer

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
)

// Options bound what a layer may ask for. The zero value means the defaults.
type Options struct {
	// MaxSize is the largest sum of file sizes in bytes, holes included. Default 1 TiB.
	MaxSize int64
	// MaxEntries is the largest number of entries. Default 10 million.
	MaxEntries int
}

// Result says what Write made.
type Result struct {
	// Size is the use of the disk in bytes and Inodes the number of inodes, the root included, hard links once.
	Size, Inodes int64
	// Entries is the number of tar entries.
	Entries int
	// RootImplied says that the tar had no entry for the root directory.
	RootImplied bool
	// Implied are the directories that entries lie in but that have no entry themselves, parents before children,
	// relative to the root. Their attributes are those of the layers below; Adopt copies them.
	Implied []string
	// Links are hard links whose target is not in this layer; Adopt makes them from the layers below.
	Links []Link
}

// Link is a hard link that could not be made from this layer alone. Both paths are relative to the root.
type Link struct{ Name, Target string }

// NeedsParents says that the directory is complete only after Adopt, and then only right on those very layers.
func (r *Result) NeedsParents() bool { return len(r.Implied) > 0 || len(r.Links) > 0 }

// Write unpacks an uncompressed tar into the empty directory dir, which nobody else may change meanwhile. It reads r to its
// end, so that a digest computed on the way is of the whole stream. It does not sync.
func Write(ctx context.Context, dir *os.File, r io.Reader, o Options) (Result, error) {
	return Result{}, fmt.Errorf("write layer: %w", errdefs.ErrNotImplemented)
}

// Adopt completes a directory for which NeedsParents is true from the layer directories below it, uppermost first.
// It updates the figures of result.
func Adopt(ctx context.Context, dir *os.File, result *Result, parents []string) error {
	return fmt.Errorf("adopt layer: %w", errdefs.ErrNotImplemented)
}

// ReadFile reads the regular file path, of at most limit bytes, from a stack of layer directories, uppermost first, as
// an overlay of them would show it: whiteouts and opaque directories count, symbolic links are followed beneath the merged
// root and never leave it. fs.ErrNotExist when there is no regular file of that name.
func ReadFile(dirs []string, path string, limit int64) ([]byte, error) {
	return nil, fmt.Errorf("read %s: %w", path, errdefs.ErrNotImplemented)
}
