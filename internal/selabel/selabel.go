// Package selabel writes SELinux labels on files. What they are in may be a container's, which moves them about meanwhile: each
// file is found in the directory above it by descriptor, no link is followed, and nothing outside gets a label.
package selabel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const attribute = "security.selinux"

// maxDepth bounds how deep directories may lie in one another, since one descriptor is open for each.
const maxDepth = 512

// kept are directories of the node that a mistake must not take from all others.
var kept = strings.Fields("/ /bin /boot /dev /etc /home /lib /lib64 /media /mnt /opt /proc /root /run /sbin /srv /sys /tmp /usr /var /var/lib /var/log /var/run /var/tmp")

// File labels one file, which is not followed if it is a link.
func File(path, label string) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	return set(fd, path, label)
}

// Tree labels all beneath a path and at last itself. Files that have the label already are left alone, so that a second run is
// cheap. What the filesystem keeps no labels of is left out; with a context of the mount's own that is all.
func Tree(ctx context.Context, path, label string) error {
	if slices.Contains(kept, filepath.Clean(path)) || strings.HasPrefix(path, "/proc/") || strings.HasPrefix(path, "/sys/") {
		return fmt.Errorf("%s is the node's, so it gets no container's label: leave out selinux_relabel: %w", path, errdefs.ErrInvalidArgument)
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	return tree(ctx, fd, path, label, 0)
}

// tree labels what fd, opened with O_PATH, stands for.
func tree(ctx context.Context, fd int, path, label string, depth int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if depth == maxDepth {
			return fmt.Errorf("%s lies more than %d directories deep: leave out selinux_relabel: %w", path, maxDepth, errdefs.ErrInvalidArgument)
		}
		if err := inside(ctx, fd, path, label, depth); err != nil {
			return err
		}
	}
	return set(fd, path, label)
}

// inside labels what is in a directory.
func inside(ctx context.Context, fd int, path, label string, depth int) error {
	read, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	dir := os.NewFile(uintptr(read), path)
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(256)
		for _, name := range names {
			if err := entry(ctx, read, name, filepath.Join(path, name), label, depth+1); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func entry(ctx context.Context, dir int, name, path, label string, depth int) error {
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) { // it vanished
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	return tree(ctx, fd, path, label, depth)
}

// set labels what a descriptor with O_PATH stands for, which its link in /proc leads to and nowhere further.
func set(fd int, path, label string) error {
	at := "/proc/self/fd/" + strconv.Itoa(fd)
	old := make([]byte, 256)
	if n, err := unix.Getxattr(at, attribute, old); err == nil && strings.TrimRight(string(old[:n]), "\x00") == label {
		return nil
	}
	err := unix.Setxattr(at, attribute, append([]byte(label), 0), 0)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("label %s as %s: %w", path, label, err)
	}
	return nil
}
