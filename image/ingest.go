package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// backend is a content store of files whose writers, for those who ask by trusted, neither hash what is written nor make it
// durable: a pull has hashed it already, and one syncfs serves a blob and the layer that was unpacked from it.
type backend struct {
	content.Store
	root string
	// apart says that no sync of the layers reaches the blobs.
	apart bool
}

// compare finds out whether a sync of the filesystem of layers is one of the blobs', too.
func (b *backend) compare(layers string) error {
	var ours, theirs unix.Stat_t
	for path, st := range map[string]*unix.Stat_t{b.root: &ours, layers: &theirs} {
		if err := unix.Stat(path, st); err != nil {
			return &os.PathError{Op: "stat", Path: path, Err: err}
		}
	}
	b.apart = ours.Dev != theirs.Dev
	return nil
}

type trustedKey struct{}

// trusted is a context for content.OpenWriter by a caller who verifies what is written, and syncs it before Commit.
func trusted(ctx context.Context) context.Context { return context.WithValue(ctx, trustedKey{}, true) }

// Writer implements content.Ingester.
func (b *backend) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	if ctx.Value(trustedKey{}) == nil {
		return b.Store.Writer(ctx, opts...)
	}
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, err
		}
	}
	// The places are those of the store, which lists and aborts what is there.
	w := &ingest{b: b, ref: o.Ref, total: o.Desc.Size, began: time.Now(), dir: filepath.Join(b.root, "ingest", digest.FromString(o.Ref).Encoded())}
	if err := w.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("write blob: %w", err), os.RemoveAll(w.dir))
	}
	return w, nil
}

// ingest is a blob being written.
type ingest struct {
	b      *backend
	ref    string
	dir    string
	file   *os.File // nil before the first byte and after Close
	closed bool
	size   int64
	total  int64
	began  time.Time
	digest digest.Digest // when committed
}

func (w *ingest) open() error {
	if err := os.RemoveAll(w.dir); err != nil { // of an earlier run
		return err
	}
	if err := os.MkdirAll(w.dir, 0o755); err != nil {
		return err
	}
	now, err := w.began.MarshalText()
	if err != nil {
		return err
	}
	// The data comes last: with it the store knows the place for one of a writer.
	for _, file := range []struct {
		name string
		text []byte
	}{{"ref", []byte(w.ref)}, {"startedat", now}, {"updatedat", now}, {"data", nil}} {
		if err := os.WriteFile(filepath.Join(w.dir, file.name), file.text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// sweep removes places of writers that an earlier run had not finished making. The store does not list those.
func (b *backend) sweep() error {
	places, err := filepath.Glob(filepath.Join(b.root, "ingest", "*"))
	if err != nil {
		return err
	}
	for _, place := range places {
		if _, err := os.Lstat(filepath.Join(place, "data")); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := os.RemoveAll(place); err != nil {
			return err
		}
	}
	return nil
}

// create opens the file when something is written. Until then there is nothing to close, as the metadata store forgets to
// when it cannot record a writer.
func (w *ingest) create() (err error) {
	if w.file != nil {
		return nil
	}
	if w.closed {
		return fmt.Errorf("the blob's writer is closed: %w", errdefs.ErrFailedPrecondition)
	}
	w.file, err = os.OpenFile(filepath.Join(w.dir, "data"), os.O_WRONLY|os.O_TRUNC, 0)
	return err
}

// Write implements content.Writer.
func (w *ingest) Write(p []byte) (int, error) {
	if err := w.create(); err != nil {
		return 0, err
	}
	n, err := w.file.Write(p)
	w.size += int64(n)
	return n, err
}

// Digest implements content.Writer. It is known once the writer is committed.
func (w *ingest) Digest() digest.Digest { return w.digest }

// Status implements content.Writer.
func (w *ingest) Status() (content.Status, error) {
	return content.Status{Ref: w.ref, Offset: w.size, Total: w.total, StartedAt: w.began, UpdatedAt: time.Now()}, nil
}

// Truncate implements content.Writer, for a size of 0.
func (w *ingest) Truncate(size int64) error {
	if size != 0 {
		return fmt.Errorf("truncate a blob to %d: %w", size, errdefs.ErrNotImplemented)
	}
	w.size = 0
	if w.file == nil {
		return nil
	}
	if _, err := w.file.Seek(0, 0); err != nil {
		return err
	}
	return w.file.Truncate(0)
}

// Commit implements content.Writer. It replaces a file that is there without a record, as that may be broken.
func (w *ingest) Commit(_ context.Context, size int64, expected digest.Digest, _ ...content.Opt) error {
	if err := w.create(); err != nil {
		return err
	}
	if size != w.size {
		return fmt.Errorf("commit a blob of %d bytes, %d were written: %w", size, w.size, errdefs.ErrFailedPrecondition)
	}
	if err := expected.Validate(); err != nil {
		return fmt.Errorf("commit a blob as %q: %w: %w", expected, err, errdefs.ErrInvalidArgument)
	}
	if w.b.apart {
		if err := w.file.Sync(); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	dir := filepath.Join(w.b.root, "blobs", expected.Algorithm().String())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(w.dir, "data"), filepath.Join(dir, expected.Encoded())); err != nil {
		return err
	}
	if err := os.Chmod(filepath.Join(dir, expected.Encoded()), 0o444); err != nil {
		return err
	}
	w.digest = expected
	return os.RemoveAll(w.dir)
}

// Close implements content.Writer.
func (w *ingest) Close() error {
	w.closed = true
	if w.file == nil {
		return nil
	}
	err := w.file.Close()
	w.file = nil
	return err
}
