package runc

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native"
	"github.com/criserver/criserver/shim/native/cgroup"
)

// The files of a bundle, which lies in the container's run directory.
const (
	bundleDir  = "bundle"
	rootfsName = "rootfs"
	shmName    = "shm"
	pidName    = "pid"
)

// bundle is where things of a container are for a program that gets everything by path.
type bundle struct {
	dir    string
	root   string // where the root filesystem is attached
	shm    string
	mounts string         // a directory to be made that anybody may search; "": none
	places map[int]string // in there: mounts of the spec that are attached as well, with their places
}

// showing are the filesystems that show a namespace, and that only who owns it may mount.
var showing = map[string]specs.LinuxNamespaceType{"sysfs": specs.NetworkNamespace, "mqueue": specs.IPCNamespace, "proc": specs.PIDNamespace}

// plan says what is to be where. A container with a user namespace cannot mount what is not that namespace's, so it is all made before.
func (c *Container) plan(config native.Config) bundle {
	dir := c.bundle()
	b := bundle{dir: dir, root: filepath.Join(dir, rootfsName), shm: filepath.Join(dir, shmName), mounts: c.mounts}
	if c.mounts == "" {
		return b
	}
	b.root, b.places = filepath.Join(c.mounts, rootfsName), map[int]string{}
	for i, m := range config.Spec.Mounts {
		kind, shows := showing[m.Type]
		ofHost := shows && !slices.ContainsFunc(config.Spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == kind })
		if m.Type == "overlay" || ofHost || m.Type == "proc" && config.Proc != nil {
			b.places[i] = filepath.Join(c.mounts, strconv.Itoa(i))
		}
	}
	return b
}

func (b bundle) mkdirs() error {
	for _, dir := range []string{b.dir, b.shm} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
	}
	if b.mounts == "" {
		return os.Mkdir(b.root, 0o700)
	}
	for _, dir := range append([]string{b.mounts, b.root}, slices.Collect(maps.Values(b.places))...) {
		if err := os.Mkdir(dir, 0o711); err != nil {
			return err
		}
	}
	return nil
}

// spec is the spec for the program: what native.Config passes by descriptor is named by the descriptor's path in /proc/pid, and what
// was attached by where it is. Nothing of c is changed.
func (b bundle) spec(c native.Config, pid int) *specs.Spec {
	spec := *c.Spec
	linux := *spec.Linux
	spec.Linux = &linux
	if c.Rootfs != nil {
		root := specs.Root{}
		if spec.Root != nil {
			root = *spec.Root
		}
		root.Path = b.root
		spec.Root = &root
	}
	linux.CgroupsPath = cgroup.SystemdForm(linux.CgroupsPath)
	linux.Namespaces = slices.Clone(linux.Namespaces)
	for i, n := range linux.Namespaces {
		if f := c.Namespaces[n.Type]; f != nil {
			linux.Namespaces[i].Path = "/proc/" + strconv.Itoa(pid) + "/fd/" + strconv.Itoa(int(f.Fd()))
			if n.Type == specs.UserNamespace { // one that is joined has them
				linux.UIDMappings, linux.GIDMappings = nil, nil
			}
		}
	}
	spec.Mounts = slices.Clone(spec.Mounts)
	for i, m := range spec.Mounts {
		at, attached := b.places[i]
		switch {
		case attached:
			spec.Mounts[i] = specs.Mount{
				Destination: m.Destination, Type: "bind", Source: at, Options: append([]string{"rbind", "rprivate"}, bindOptions(m.Options)...),
			}
		case c.Shm != nil && path.Clean(m.Destination) == "/dev/shm" && m.Type == "tmpfs":
			spec.Mounts[i] = specs.Mount{
				Destination: m.Destination, Type: "bind", Source: b.shm,
				Options: []string{"rbind", "rprivate", "nosuid", "noexec", "nodev"},
			}
		}
	}
	return &spec
}

// bindOptions are those of a mount's options that a bind of what was made with the others must have as well.
func bindOptions(options []string) []string {
	var all []string
	for _, o := range options {
		if native.IsMountAttribute(o) {
			all = append(all, o)
		}
	}
	return all
}

// attachment is what spec takes for granted.
func (b bundle) attachment(c native.Config) native.Attachment {
	a := native.Attachment{Label: c.Spec.Linux.MountLabel, Rootfs: c.Rootfs, Root: b.root, Shm: c.Shm, ShmAt: b.shm}
	if b.mounts == "" {
		return a
	}
	a.Spec, a.User = c.Spec, c.Namespaces[specs.UserNamespace]
	for _, i := range slices.Sorted(maps.Keys(b.places)) {
		switch m, at := c.Spec.Mounts[i], b.places[i]; {
		case m.Type == "overlay":
			a.Overlays = append(a.Overlays, native.Overlay{Options: m.Options, At: at})
		case m.Type == "proc" && c.Proc != nil:
			a.Proc, a.ProcAt = c.Proc, at
		default:
			a.Filesystems = append(a.Filesystems, native.Filesystem{Type: m.Type, At: at})
		}
	}
	return a
}

// removeMountsIn removes a directory of mounts, or what is left of it. See removeMounts.
func removeMountsIn(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return removeMounts(dir, names)
}

// removeMounts unmounts the directories in dir that have these names, and removes dir, or what is left of it. It may be repeated.
// Nothing is removed by way of a mount that could not be unmounted.
func removeMounts(dir string, names []string) error {
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, name := range names {
		if err := unmount(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	// Mount points are removed by rmdir, which fails where something is mounted.
	for _, name := range names {
		if err := unix.Rmdir(filepath.Join(dir, name)); err != nil && !errors.Is(err, unix.ENOENT) {
			return &os.PathError{Op: "rmdir", Path: filepath.Join(dir, name), Err: err}
		}
	}
	return os.RemoveAll(dir)
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
