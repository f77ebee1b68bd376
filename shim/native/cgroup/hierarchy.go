package cgroup

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// hierarchy is one mounted cgroup hierarchy. It is immutable; the descriptor is held for the life of the process.
type hierarchy struct {
	dir         string   // where it is mounted
	controllers []string // of v1: "cpu", "cpuacct", or "name=systemd"; nil for the unified hierarchy
	root        int      // O_PATH descriptor of dir
}

// layout is what this machine has: v1 hierarchies, the unified one, or (hybrid) both.
type layout struct {
	v1      []*hierarchy
	unified *hierarchy
}

// machine finds the hierarchies once a process: they do not change while a node runs, and mountinfo is long on a busy
// one.
var machine = sync.OnceValues(func() (*layout, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("read the mount table to find cgroup hierarchies: %w", err)
	}
	l, err := newLayout(mounts)
	if err != nil {
		return nil, err
	}
	for _, h := range l.all() {
		h.root, err = unix.Open(h.dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("open cgroup hierarchy %s: %w", h.dir, err)
		}
	}
	return l, nil
})

// v1Controllers are the names under which the kernel lists v1 controllers in a mount's options (kernel/cgroup, every
// SUBSYS of cgroup_subsys.h that v1 can mount). Named hierarchies other than systemd's belong to somebody else.
var v1Controllers = []string{
	"blkio", "cpu", "cpuacct", "cpuset", "debug", "devices", "freezer", "hugetlb", "memory", "misc", "net_cls", "net_prio",
	"perf_event", "pids", "rdma", "name=systemd",
}

// newLayout sorts cgroup mounts. A hierarchy that is mounted more than once is used by its first mount.
func newLayout(mounts []*mountinfo.Info) (*layout, error) {
	l := &layout{}
	seen := map[string]bool{}
	for _, m := range mounts {
		if m.FSType == "cgroup2" {
			if l.unified == nil {
				l.unified = &hierarchy{dir: m.Mountpoint}
			}
			continue
		}
		h := &hierarchy{dir: m.Mountpoint}
		for option := range strings.SplitSeq(m.VFSOptions, ",") {
			if slices.Contains(v1Controllers, option) {
				h.controllers = append(h.controllers, option)
			}
		}
		if len(h.controllers) == 0 || seen[h.controllers[0]] {
			continue
		}
		for _, c := range h.controllers {
			seen[c] = true
		}
		l.v1 = append(l.v1, h)
	}
	if len(l.v1) == 0 && l.unified == nil {
		return nil, fmt.Errorf("no cgroup hierarchy is mounted (mount cgroup2 on /sys/fs/cgroup): %w", errdefs.ErrFailedPrecondition)
	}
	return l, nil
}

// pure says that every controller is on the unified hierarchy.
func (l *layout) pure() bool { return len(l.v1) == 0 }

func (l *layout) all() []*hierarchy {
	all := slices.Clone(l.v1)
	if l.unified != nil {
		all = append(all, l.unified)
	}
	return all
}

// v1With returns the v1 hierarchy of a controller, nil when there is none.
func (l *layout) v1With(controller string) *hierarchy {
	for _, h := range l.v1 {
		if slices.Contains(h.controllers, controller) {
			return h
		}
	}
	return nil
}

// path is the directory of the cgroup rel, for a caller that has to name it.
func (h *hierarchy) path(rel string) string { return h.dir + "/" + rel }

// name says which hierarchy it is, for errors.
func (h *hierarchy) name() string {
	if h.controllers == nil {
		return "unified"
	}
	return strings.Join(h.controllers, ",")
}

// open opens a file or directory beneath the hierarchy's root; links and mounts on the way are refused. The caller closes
// the descriptor, which is a bare one because an os.File costs more than the call that it is for.
func (h *hierarchy) open(rel string, flags uint64) (int, error) {
	how := &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd, err := unix.Openat2(h.root, rel, how)
		switch err {
		case nil:
			return fd, nil
		case unix.EINTR, unix.EAGAIN: // EAGAIN: a rename beside the walk
			continue
		}
		return -1, &os.PathError{Op: "open", Path: h.path(rel), Err: err}
	}
}

// read returns a file's content without surrounding space. Cgroup files have no size, so it reads until the end.
func (h *hierarchy) read(rel string) (string, error) {
	fd, err := h.open(rel, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	buffer := make([]byte, 1024)
	n := 0
	for {
		if n == len(buffer) {
			buffer = append(buffer, make([]byte, len(buffer))...)
		}
		m, err := unix.Read(fd, buffer[n:])
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return "", &os.PathError{Op: "read", Path: h.path(rel), Err: err}
		case m == 0:
			return strings.TrimSpace(string(buffer[:n])), nil
		}
		n += m
	}
}

// write writes each of the lines by one call, as cgroup files want it.
func (h *hierarchy) write(rel string, lines ...string) error {
	fd, err := h.open(rel, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, line := range lines {
		err := ignoreEINTR(func() error {
			_, err := unix.Write(fd, []byte(line))
			return err
		})
		if err != nil {
			return fmt.Errorf("write %q to %s: %w", line, h.path(rel), err)
		}
	}
	return nil
}

// mkdir makes the cgroup rel and the parents it lacks, and says whether rel itself was made by this call. made is the
// topmost directory that was made, "" for none.
func (h *hierarchy) mkdir(rel string) (made string, err error) {
	err = ignoreEINTR(func() error { return unix.Mkdirat(h.root, rel, 0o755) })
	switch err {
	case nil:
		return rel, nil
	case unix.EEXIST:
		return "", nil
	case unix.ENOENT:
	default:
		return "", &os.PathError{Op: "mkdir", Path: h.path(rel), Err: err}
	}
	above := parent(rel)
	if above == "" {
		return "", &os.PathError{Op: "mkdir", Path: h.path(rel), Err: err}
	}
	top, err := h.mkdir(above)
	if err != nil {
		return "", err
	}
	made, err = h.mkdir(rel)
	if top != "" {
		made = top
	}
	return made, err
}

// exists says whether the cgroup rel is there.
func (h *hierarchy) exists(rel string) bool {
	return unix.Faccessat(h.root, rel, unix.F_OK, 0) == nil
}

// children lists the cgroups directly below rel. A directory of cgroupfs has 2 links and one more for each child, so
// that the common case, no child, costs no listing.
func (h *hierarchy) children(rel string) ([]string, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(h.root, rel, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, &os.PathError{Op: "stat", Path: h.path(rel), Err: err}
	}
	if st.Nlink == 2 {
		return nil, nil
	}
	fd, err := h.open(rel, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	d := os.NewFile(uintptr(fd), h.path(rel))
	defer d.Close()
	entries, err := d.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	var children []string
	for _, e := range entries {
		if e.IsDir() {
			children = append(children, rel+"/"+e.Name())
		}
	}
	return children, nil
}

// parent is the cgroup above rel, "" for the hierarchy's root.
func parent(rel string) string {
	i := strings.LastIndexByte(rel, '/')
	if i < 0 {
		return ""
	}
	return rel[:i]
}

func ignoreEINTR(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}
