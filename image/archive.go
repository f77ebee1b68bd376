package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// The bounds of an archive. No file is ever made by a name of it; what is bounded is memory and the disk.
const (
	maxArchive        = 1 << 40 // bytes
	maxArchiveEntries = 100_000
	maxArchiveName    = 4096
)

// The files of an archive that say what the others are.
const (
	layoutFile   = ocispec.ImageLayoutFile
	indexFile    = ocispec.ImageIndexFile
	manifestFile = "manifest.json"
)

// archive is what was read of an OCI layout or of what docker saved: the files that say what it is, and of all others where
// their content went, the content store.
type archive struct {
	s     *Store
	texts map[string][]byte             // layoutFile, indexFile, manifestFile
	files map[string]ocispec.Descriptor // all others
	links map[string]string             // symbolic links, to names in the archive
	size  int64
	count int
}

// readArchive reads a tar, compressed or not, once and in the order in which it comes. All that it stores belongs to the
// lease of the context.
func (s *Store) readArchive(ctx context.Context, r io.Reader) (*archive, error) {
	plain, stop, err := unpacked(r)
	if err != nil {
		return nil, fmt.Errorf("archive: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	defer stop()
	a := &archive{s: s, texts: map[string][]byte{}, files: map[string]ocispec.Descriptor{}, links: map[string]string{}}
	for t := tar.NewReader(plain); ; {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		header, err := t.Next()
		if errors.Is(err, io.EOF) && a.count > 0 {
			return a, nil
		}
		if err != nil {
			return nil, fmt.Errorf("archive: after %d entries: not a tar, or cut off: %w: %w", a.count, errdefs.ErrInvalidArgument, err)
		}
		if err := a.entry(ctx, header, t); err != nil {
			return nil, fmt.Errorf("archive: entry %.200q: %w", header.Name, err)
		}
	}
}

func refused(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

func (a *archive) entry(ctx context.Context, h *tar.Header, r io.Reader) error {
	if a.count++; a.count > maxArchiveEntries {
		return refused("the archive has more than %d entries", maxArchiveEntries)
	}
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := archiveName(h.Name)
	if err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		return nil
	}
	if _, twice := a.files[name]; twice || a.texts[name] != nil || a.links[name] != "" {
		return refused("it is there twice")
	}
	switch h.Typeflag {
	case tar.TypeReg:
		for record := range h.PAXRecords {
			if strings.HasPrefix(record, "GNU.sparse.") {
				return refused("it has holes, which no file of an image archive has")
			}
		}
		return a.file(ctx, name, h.Size, r)
	case tar.TypeSymlink:
		if path.IsAbs(h.Linkname) {
			return refused("it links to %.200q, out of the archive", h.Linkname)
		}
		target := path.Join(path.Dir(name), h.Linkname)
		if target == ".." || strings.HasPrefix(target, "../") || len(h.Linkname) > maxArchiveName || strings.ContainsRune(h.Linkname, 0) {
			return refused("it links to %.200q, out of the archive", h.Linkname)
		}
		a.links[name] = target
		return nil
	}
	return refused("its type %q has no place in an image archive", h.Typeflag)
}

// archiveName is a name without "./" before it. One that leaves the archive is refused, though no file is made by it: who
// writes such names means harm to somebody.
func archiveName(name string) (string, error) {
	if len(name) > maxArchiveName || strings.ContainsRune(name, 0) {
		return "", refused("its name is too long or has a NUL byte")
	}
	if path.IsAbs(name) {
		return "", refused("its name is absolute")
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", refused("its name leaves the archive")
		}
	}
	return path.Clean(name), nil
}

// file takes a regular file.
func (a *archive) file(ctx context.Context, name string, size int64, r io.Reader) error {
	if size < 0 || size > maxArchive-a.size {
		return refused("the archive's files are larger than %d bytes", int64(maxArchive))
	}
	a.size += size
	switch name {
	case layoutFile, indexFile, manifestFile:
		if size > maxDocument {
			return refused("it has %d bytes, at most %d are allowed", size, maxDocument)
		}
		text, err := io.ReadAll(io.LimitReader(r, maxDocument))
		if err != nil {
			return fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
		}
		a.texts[name] = append([]byte{}, text...) // not nil, though it be empty
		return nil
	}
	d := ocispec.Descriptor{Size: size}
	if algorithm, encoded, ok := strings.Cut(strings.TrimPrefix(name, "blobs/"), "/"); ok && strings.HasPrefix(name, "blobs/") {
		d.Digest = digest.NewDigestFromEncoded(digest.Algorithm(algorithm), encoded)
		if err := d.Digest.Validate(); err != nil {
			return refused("its name is no digest: %v", err)
		}
	}
	stored, err := a.store(ctx, name, d, r)
	if err != nil {
		return err
	}
	a.files[name] = stored
	return nil
}

// store writes a file into the content store. With a digest it has to have that, and is not written when it is there.
func (a *archive) store(ctx context.Context, name string, d ocispec.Descriptor, r io.Reader) (ocispec.Descriptor, error) {
	lease, _ := leases.FromContext(ctx)
	ref := fmt.Sprintf("%s-%d", lease, a.count)
	w, err := content.OpenWriter(ctx, a.s.content, content.WithRef(ref), content.WithDescriptor(d))
	if errdefs.IsAlreadyExists(err) {
		return d, a.s.leases.AddResource(ctx, leases.Lease{ID: lease}, leases.Resource{ID: d.Digest.String(), Type: "content"})
	}
	if err != nil {
		return d, err
	}
	done := false
	defer func() {
		_ = w.Close()
		if !done {
			_ = a.s.content.Abort(context.WithoutCancel(ctx), ref)
		}
	}()
	if err := w.Truncate(0); err != nil { // the content store may have the bytes without a record of them
		return d, err
	}
	n, err := io.Copy(w, io.LimitReader(r, d.Size))
	if err == nil && n < d.Size {
		err = io.ErrUnexpectedEOF
	}
	switch {
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		return d, fmt.Errorf("%w: free space on the filesystem of the root directory: %w", err, errdefs.ErrResourceExhausted)
	case err != nil:
		return d, fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
	}
	got := w.Digest()
	if d.Digest == "" {
		d.Digest = got
	}
	if got != d.Digest {
		return d, fmt.Errorf("its content has the digest %s: %w", got, errdefs.ErrDataLoss)
	}
	if err := w.Commit(ctx, d.Size, d.Digest); err != nil && !errdefs.IsAlreadyExists(err) {
		return d, fmt.Errorf("store it: %w", err)
	}
	done = true
	return d, a.s.leases.AddResource(ctx, leases.Lease{ID: lease}, leases.Resource{ID: d.Digest.String(), Type: "content"})
}

// find is the file that a name in the archive means, by one symbolic link at most.
func (a *archive) find(name string) (ocispec.Descriptor, error) {
	clean, err := archiveName(name)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("%.200q: %w", name, err)
	}
	if target, ok := a.links[clean]; ok {
		clean = target
	}
	d, ok := a.files[clean]
	if !ok {
		return d, refused("%.200q is not in the archive", name)
	}
	return d, nil
}
