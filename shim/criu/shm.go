package criu

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// PackShm writes what is in a directory of shared memory as a tar. Files that have no name any more are in criu's images.
// What POSIX shared memory and semaphores are not made of, such as sockets, is errdefs.ErrFailedPrecondition.
func PackShm(root *os.Root, w io.Writer) error {
	t := tar.NewWriter(w)
	err := fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		return packShm(root, name, t)
	})
	if err != nil {
		return fmt.Errorf("shared memory: %w", err)
	}
	return t.Close()
}

func packShm(root *os.Root, name string, t *tar.Writer) error {
	info, err := root.Lstat(name)
	if err != nil {
		return err
	}
	link := ""
	switch info.Mode().Type() {
	case 0, fs.ModeDir:
	case fs.ModeSymlink:
		if link, err = root.Readlink(name); err != nil {
			return err
		}
	default:
		return fmt.Errorf("/dev/shm/%s is neither a file, a directory nor a symbolic link: %w", name, errdefs.ErrFailedPrecondition)
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	h.Name, h.Format, h.Uname, h.Gname = name, tar.FormatPAX, "", ""
	if info.IsDir() {
		h.Name += "/"
	}
	if err := t.WriteHeader(h); err != nil || h.Typeflag != tar.TypeReg {
		return err
	}
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyN(t, f, h.Size)
	return err
}

// UnpackShm fills a directory of shared memory, which is a tmpfs of bounded size. One that is not empty is left as it is:
// another container of the pod has filled it.
func UnpackShm(root *os.Root, r io.Reader) error {
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		return nil
	}
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = unpackShm(root, h, t)
		}
		if err != nil {
			return fmt.Errorf("shared memory: %w", err)
		}
	}
}

func unpackShm(root *os.Root, h *tar.Header, r io.Reader) error {
	name := path.Clean(h.Name)
	if !filepath.IsLocal(name) {
		return fmt.Errorf("%q is not a name beneath /dev/shm: %w", h.Name, errdefs.ErrInvalidArgument)
	}
	mode := fs.FileMode(h.Mode).Perm()
	switch h.Typeflag {
	case tar.TypeDir:
		if err := root.Mkdir(name, 0o700); err != nil {
			return err
		}
	case tar.TypeSymlink:
		if err := root.Symlink(h.Linkname, name); err != nil {
			return err
		}
		return root.Lchown(name, h.Uid, h.Gid)
	case tar.TypeReg:
		f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		if err := errors.Join(copySparse(f, r, h.Size), f.Close()); err != nil {
			return err
		}
	default:
		return fmt.Errorf("%q is neither a file, a directory nor a symbolic link: %w", h.Name, errdefs.ErrInvalidArgument)
	}
	if h.Mode&0o1000 != 0 {
		mode |= fs.ModeSticky
	}
	return errors.Join(root.Lchown(name, h.Uid, h.Gid), root.Chmod(name, mode))
}

// copySparse writes what is not zero: shared memory is mostly larger than what is in it.
func copySparse(f *os.File, r io.Reader, size int64) error {
	if size < 0 {
		return fmt.Errorf("a size of %d bytes: %w", size, errdefs.ErrInvalidArgument)
	}
	if err := f.Truncate(size); err != nil {
		return err
	}
	block := make([]byte, 4096)
	for at := int64(0); at < size; {
		n, err := io.ReadFull(r, block[:min(size-at, int64(len(block)))])
		if err != nil {
			return err
		}
		for _, b := range block[:n] {
			if b == 0 {
				continue
			}
			if _, err := f.WriteAt(block[:n], at); err != nil {
				return err
			}
			break
		}
		at += int64(n)
	}
	return nil
}
