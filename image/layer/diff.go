package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"

	"github.com/criserver/criserver/internal/ctxio"
)

// Diff writes what the upper directory of an overlay holds, the changes to the layers below, as the tar of a layer: deleted
// files are whiteouts. Nobody may change the directory meanwhile. Sockets are left out, since a tar has none; they are of no use
// without the process that made them. What only this overlay can mean, a moved directory or a file without its data
// (redirect_dir, metacopy), is errdefs.ErrFailedPrecondition.
func Diff(ctx context.Context, dir *os.File, w io.Writer) error {
	d := &differ{ctx: ctx, tar: tar.NewWriter(w), links: map[inode]string{}}
	err := d.directory(int(dir.Fd()), ".", "", 0)
	if err == nil {
		err = d.tar.Close()
	}
	if err != nil {
		return fmt.Errorf("changes of a writable layer: %w", err)
	}
	return nil
}

type differ struct {
	ctx   context.Context
	tar   *tar.Writer
	links map[inode]string // files with several names -> the first one written
}

// directory writes a directory and what is in it. path is "" for the root, else it has no slash at its end.
func (d *differ) directory(parent int, name, path string, depth int) error {
	if err := d.ctx.Err(); err != nil {
		return err
	}
	if depth > maxDepth {
		return fmt.Errorf("%q is more than %d directories deep: %w", path, maxDepth, errdefs.ErrFailedPrecondition)
	}
	names, fd, err := readDir(parent, name)
	if err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	header := newHeader(&st, path+"/", tar.TypeDir)
	if path == "" {
		header.Name = "./"
	}
	if err := d.write(header, fd, "."); err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	if opaque, err := isOpaque(fd); err != nil {
		return fmt.Errorf("%q: %w", path, err)
	} else if opaque && path != "" {
		if err := d.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path + "/" + opaqueName, Mode: 0o600}); err != nil {
			return err
		}
	}
	slices.Sort(names) // the same changes give the same tar
	prefix := path
	if prefix != "" {
		prefix += "/"
	}
	for _, child := range names {
		if err := d.entry(fd, child, prefix+child, depth); err != nil {
			return err
		}
	}
	return nil
}

// entry writes one name of a directory.
func (d *differ) entry(dir int, name, path string, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	kind := st.Mode & unix.S_IFMT
	switch {
	case kind == unix.S_IFDIR:
		return d.directory(dir, name, path, depth+1)
	case isWhiteout(&st):
		at := strings.LastIndexByte(path, '/') + 1
		return d.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path[:at] + whiteoutPrefix + name, Mode: 0o600})
	case kind == unix.S_IFSOCK:
		return nil
	}
	key := inode{st.Dev, st.Ino}
	if first, ok := d.links[key]; ok {
		h := newHeader(&st, path, tar.TypeLink)
		h.Linkname = first
		return d.tar.WriteHeader(h)
	}
	if st.Nlink > 1 {
		d.links[key] = path
	}
	err := d.file(dir, name, path, &st)
	if err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	return nil
}

// file writes what is not a directory.
func (d *differ) file(dir int, name, path string, st *unix.Stat_t) error {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		h := newHeader(st, path, tar.TypeSymlink)
		var err error
		if h.Linkname, err = readlinkat(dir, name); err != nil {
			return err
		}
		return d.write(h, dir, name)
	case unix.S_IFCHR, unix.S_IFBLK:
		h := newHeader(st, path, tar.TypeChar)
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
		return d.write(h, dir, name)
	case unix.S_IFIFO:
		return d.write(newHeader(st, path, tar.TypeFifo), dir, name)
	}
	fd, err := openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	h := newHeader(st, path, tar.TypeReg)
	h.Size = st.Size
	if err := d.write(h, dir, name); err != nil {
		return err
	}
	n, err := io.Copy(d.tar, io.LimitReader(ctxio.Reader(d.ctx, f), st.Size))
	if err == nil && n != st.Size {
		err = io.ErrUnexpectedEOF // it was cut meanwhile
	}
	return err
}

// write writes a header with the file's extended attributes.
func (d *differ) write(h *tar.Header, dir int, name string) error {
	path := procPath(dir, name)
	names, err := listXattrs(path)
	if err != nil {
		return err
	}
	for _, attr := range names {
		if attr == "trusted.overlay.redirect" || attr == "trusted.overlay.metacopy" {
			return fmt.Errorf("the overlay keeps it in a form that means nothing elsewhere (%s): mount overlays without redirect_dir and metacopy: %w",
				attr, errdefs.ErrFailedPrecondition)
		}
		if dropXattr(attr) {
			continue
		}
		value, err := getXattr(path, attr)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return err
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[paxXattr+attr] = string(value)
	}
	return d.tar.WriteHeader(h)
}

// newHeader is the header of a file, with times to the nanosecond.
func newHeader(st *unix.Stat_t, path string, kind byte) *tar.Header {
	return &tar.Header{
		Typeflag: kind, Name: path, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()), Format: tar.FormatPAX,
	}
}
