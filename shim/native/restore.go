package native

import (
	"context"
	"fmt"
	"os"
	"path"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native/plan"
	"github.com/criserver/criserver/shim/native/stage"
)

// RestoreConfig is a container whose processes a program, criu, makes from their images.
type RestoreConfig struct {
	Config
	// Program and its arguments, for the place where the root filesystem is mounted and the numbers that Files have.
	Program string
	Args    func(root string, first int) ([]string, error)
	Files   []*os.File
	// ShmPlace is a directory where the program finds Config.Shm mounted.
	ShmPlace string
}

// Restore runs the program in the container's cgroup and in a mount namespace that has the root filesystem. The process is
// the program's own; what it makes by CLONE_PARENT are children of the caller. The process waits for Start, with everything
// mounted.
func (r *Runtime) Restore(ctx context.Context, c RestoreConfig) (*Process, error) {
	in, _, err := r.input(c.Spec, c.Spec.Process, c.Cgroup)
	if err != nil {
		return nil, err
	}
	in.rootfs = c.Rootfs
	if in.rootfs == nil && c.Spec.Root != nil {
		in.rootfs = &Mount{Type: "bind", Source: c.Spec.Root.Path, Options: []string{"rbind"}}
	}
	extra := append([]*os.File{}, c.Files...)
	if c.Shm != nil {
		in.shm = stage.Extra + len(extra)
		extra = append(extra, c.Shm)
	}
	root, err := rootPlace(in.rootfs)
	if err != nil {
		return nil, err
	}
	args, err := c.Args(root, stage.Extra)
	if err != nil {
		return nil, err
	}
	b, err := compileRestore(in, c.Program, args, c.ShmPlace)
	if err != nil {
		return nil, err
	}
	return r.launch(ctx, b, launch{extra: extra, cgroup: c.Cgroup, waits: true})
}

// rootPlace is the directory that the plan attaches the root filesystem to.
func rootPlace(m *Mount) (string, error) {
	switch {
	case m == nil:
		return "", fmt.Errorf("root: neither a root filesystem nor root.path is given: %w", errdefs.ErrInvalidArgument)
	case m.Type != "overlay":
		return m.Source, nil
	}
	o, err := parseOverlay(m.Options)
	if err != nil {
		return "", fmt.Errorf("root: %w", err)
	}
	return o.place(), nil
}

// compileRestore plans what criu needs around it: the cgroup and the cgroup namespace, which its children inherit, and
// the mounts. All the rest of the container is in the images.
func compileRestore(in *input, program string, args []string, shmPlace string) (*built, error) {
	plain := *in.spec
	linux := *in.spec.Linux
	linux.MaskedPaths = nil // criu makes those, too
	plain.Linux = &linux
	in.spec = &plain
	c := &compiler{Plan: plan.New(createOperations), in: in}
	b := &built{plan: c.Plan, cloneflags: unix.CLONE_NEWNS, argv: append([]string{program}, args...)}
	c.cgroups()
	if c.namespaceOf(specs.CgroupNamespace) != nil {
		c.At("linux.namespaces cgroup")
		c.Unshare(unix.CLONE_NEWCGROUP)
	}
	if err := c.rootfs(); err != nil {
		return nil, err
	}
	if r := in.spec.Root; r != nil && r.Readonly {
		c.MountSetattr(c.root, 0, unix.MOUNT_ATTR_RDONLY, 0, 0)
	}
	if in.shm != 0 {
		c.At("mounts /dev/shm")
		tree := c.Reg()
		if in.host.CloneDetached {
			c.OpenTree(tree, in.shm, "", unix.OPEN_TREE_CLONE|unix.AT_EMPTY_PATH)
		} else {
			c.copyRoot(tree, in.shm)
		}
		c.place(tree, shmPlace)
	}
	c.At("restore")
	c.Chdir("/")
	c.wait()
	c.Simple(unix.SYS_CLOSE_RANGE, "close_range", stage.Plan, stage.Start, unix.CLOSE_RANGE_CLOEXEC)
	c.Execve(program, b.argv, []string{"PATH=" + defaultPath})
	return b, nil
}

// CgroupMounts are the directories that a container shows of its cgroup, by their places in the container.
func CgroupMounts(c Config) map[string]string {
	if c.Cgroup == nil {
		return nil
	}
	mounts := map[string]string{}
	for _, m := range c.Spec.Mounts {
		if m.Type != "cgroup" && m.Type != "cgroup2" {
			continue
		}
		destination := path.Clean("/" + m.Destination)
		tasks, unified := c.Cgroup.TasksFiles(), c.Cgroup.UnifiedDir()
		if len(tasks) == 0 {
			mounts[destination] = unified
			continue
		}
		for _, t := range tasks {
			mounts[destination+"/"+hierarchy(path.Dir(t), c.Spec.Linux.CgroupsPath)] = path.Dir(t)
		}
		if unified != "" {
			mounts[destination+"/unified"] = unified
		}
	}
	return mounts
}
