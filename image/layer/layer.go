// Package layer turns the tar stream of an image's layer into a directory that overlayfs can use as a lower layer, and
// reads files from a stack of such directories.
//
// A layer comes from outside and is hostile until shown otherwise. Everything is made relative to descriptors of
// directories beneath the layer's own (openat2, Linux 5.6), so no name, link or order of entries reaches a file outside.
// What is refused is errdefs.ErrInvalidArgument and names the entry:
//
//   - names with a ".." component or a NUL byte, too long, or more than 512 directories deep
//   - whiteouts of no file (".wh.", ".wh..", ".wh..."), and entries inside a whiteout
//   - a parent that is neither a directory nor a symbolic link to one
//   - ids that no file can have, device numbers out of range, attributes that the filesystem has no room for
//   - more than Options allows
//
// What is contained: an absolute name is taken from the root of the layer; a symbolic link in a parent is followed as if
// that root were the root directory; a link may point anywhere, as it is not followed here; ".wh..wh." names other than the
// opaque marker are skipped; trusted.overlay.* and user.overlay.* attributes are dropped, as they would steer the
// overlay, and so are labels of security modules, which are the host's to give; of two entries with one name the
// later holds.
package layer

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"

	"github.com/criserver/criserver/internal/ctxio"
)

// Options bound what a layer may ask for. The zero value means the defaults.
type Options struct {
	// MaxSize is the largest sum of file sizes in bytes, holes included. Default 1 TiB.
	MaxSize int64
	// MaxEntries is the largest number of entries. Default 10 million.
	MaxEntries int
	// Buffered says that small reads of the stream are cheap.
	Buffered bool
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

const bufferSize = 256 << 10

// buffers are shared by all layers that are written; each Write takes one to read ahead and one to copy.
var buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}

var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, bufferSize) }}

// Write unpacks an uncompressed tar into the empty directory dir, which nobody else may change meanwhile. It reads r to its
// end, so that a digest computed on the way is of the whole stream. It does not sync. When the context ends it returns
// at the next read; a Read of r that blocks has to be ended by the caller. After an error the directory holds a part of
// the layer and is good for nothing.
func Write(ctx context.Context, dir *os.File, r io.Reader, o Options) (Result, error) {
	if o.MaxSize <= 0 {
		o.MaxSize = 1 << 40
	}
	if o.MaxEntries <= 0 {
		o.MaxEntries = 10_000_000
	}
	buffer := buffers.Get().(*[]byte)
	defer buffers.Put(buffer)
	var stream io.Reader = ctxio.Reader(ctx, r)
	if !o.Buffered {
		buffered := readers.Get().(*bufio.Reader)
		buffered.Reset(stream)
		stream = buffered
		defer func() {
			buffered.Reset(nil)
			readers.Put(buffered)
		}()
	}
	w := &writer{
		tree: newTree(int(dir.Fd())), tar: tar.NewReader(stream), buffer: *buffer, options: o,
		result: Result{RootImplied: true},
	}
	defer w.tree.close()
	if err := w.run(); err != nil {
		return Result{}, withKind("write layer", err)
	}
	if _, err := io.CopyBuffer(io.Discard, plainReader{stream}, w.buffer); err != nil {
		return Result{}, fmt.Errorf("read layer: %w", err)
	}
	if err := w.finish(ctx, dir); err != nil {
		return Result{}, withKind("write layer", err)
	}
	return w.result, nil
}

// plainReader hides bufio.Reader's WriteTo, which would take a buffer of its own.
type plainReader struct{ io.Reader }

// withKind adds the kind that a caller acts on.
func withKind(what string, err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%s: %w: free space on the filesystem of the root directory: %w", what, err, errdefs.ErrResourceExhausted)
	case errors.Is(err, tar.ErrHeader):
		return fmt.Errorf("%s: not a tar stream: %w: %w", what, err, errdefs.ErrInvalidArgument)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%s: the tar stream is cut off: %w: %w", what, err, errdefs.ErrInvalidArgument)
	}
	return fmt.Errorf("%s: %w", what, err)
}
