package runc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native"
)

// The files of a bundle, which lies in the container's run directory.
const (
	bundleDir  = "bundle"
	rootfsName = "rootfs"
	shmName    = "shm"
	pidName    = "pid"
)

// bundleSpec is the spec for a program that gets everything by path: what native.Config passes by descriptor is named by the
// descriptor's path in /proc/pid, and what was attached by where it is. Nothing of c is changed.
func bundleSpec(c native.Config, bundle string, pid int) *specs.Spec {
	spec := *c.Spec
	linux := *spec.Linux
	spec.Linux = &linux
	if c.Rootfs != nil {
		root := specs.Root{}
		if spec.Root != nil {
			root = *spec.Root
		}
		root.Path = filepath.Join(bundle, rootfsName)
		spec.Root = &root
	}
	linux.Namespaces = slices.Clone(linux.Namespaces)
	for i, n := range linux.Namespaces {
		if f := c.Namespaces[n.Type]; f != nil {
			linux.Namespaces[i].Path = "/proc/" + strconv.Itoa(pid) + "/fd/" + strconv.Itoa(int(f.Fd()))
		}
	}
	if c.Shm != nil {
		spec.Mounts = slices.Clone(spec.Mounts)
		for i, m := range spec.Mounts {
			if path.Clean(m.Destination) == "/dev/shm" && m.Type == "tmpfs" {
				spec.Mounts[i] = specs.Mount{
					Destination: m.Destination, Type: "bind", Source: filepath.Join(bundle, shmName),
					Options: []string{"rbind", "rprivate", "nosuid", "noexec", "nodev"},
				}
			}
		}
	}
	return &spec
}

// removeBundle unmounts and removes a bundle, or what is left of it. It may be repeated. Nothing is removed by way of a
// mount that could not be unmounted.
func removeBundle(bundle string) error {
	if _, err := os.Lstat(bundle); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, name := range []string{rootfsName, shmName} {
		if err := unmount(filepath.Join(bundle, name)); err != nil {
			return err
		}
	}
	// Mount points are removed by rmdir, which fails where something is mounted.
	for _, name := range []string{rootfsName, shmName} {
		if err := unix.Rmdir(filepath.Join(bundle, name)); err != nil && !errors.Is(err, unix.ENOENT) {
			return &os.PathError{Op: "rmdir", Path: filepath.Join(bundle, name), Err: err}
		}
	}
	return os.RemoveAll(bundle)
}

// unmount takes away all that is mounted on a directory; nothing is no error.
func unmount(dir string) error {
	for {
		switch err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err {
		case nil, unix.EINTR:
		case unix.EINVAL, unix.ENOENT:
			return nil
		default:
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
}

// attachment is what bundleSpec takes for granted.
func attachment(c native.Config, bundle string) native.Attachment {
	return native.Attachment{
		Rootfs: c.Rootfs, Root: filepath.Join(bundle, rootfsName), Shm: c.Shm, ShmAt: filepath.Join(bundle, shmName),
	}
}
