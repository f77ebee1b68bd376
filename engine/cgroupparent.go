package engine

import (
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups/systemd"

	"github.com/criserver/criserver/engine/spec"
)

// DefaultSlice is the slice of pods that ask for none, with the systemd cgroup driver.
const DefaultSlice = "criserver.slice"

// checkCgroupParent brings a pod's cgroup parent to the form in which it is kept: a path, by either driver.
func (e *Engine) checkCgroupParent(p *spec.Pod) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("pod's cgroup parent %q "+format+": %w", append(append([]any{p.CgroupParent}, args...), errdefs.ErrInvalidArgument)...)
	}
	slice := strings.HasSuffix(p.CgroupParent, ".slice")
	if e.cfg.SystemdCgroup {
		// kubelet names the slice alone, others with the path to it; the name has all of it.
		full, err := systemd.ExpandSlice(path.Base(p.CgroupParent))
		if err != nil || full == "/" {
			return bad("is not a slice: this node's cgroup driver is systemd, which wants a name such as kubepods-burstable.slice")
		}
		p.CgroupParent, p.SystemdCgroup = full, true
		return nil
	}
	if slice && !strings.Contains(p.CgroupParent, "/") {
		return bad("is a systemd slice, and this node's cgroup driver is cgroupfs: use a path, such as /kubepods/burstable")
	}
	for part := range strings.SplitSeq(p.CgroupParent, "/") {
		if part == ".." || strings.ContainsRune(part, 0) {
			return bad("must be a path without \"..\"")
		}
	}
	p.CgroupParent = path.Join("/", p.CgroupParent)
	return nil
}

// completeCgroups sets the parent of pods that ask for none.
func (c *Config) completeCgroups() error {
	if !c.SystemdCgroup {
		if c.CgroupParent == "" {
			c.CgroupParent = "/criserver"
		}
		return nil
	}
	if c.CgroupParent == "" {
		c.CgroupParent = DefaultSlice
	}
	full, err := systemd.ExpandSlice(path.Base(c.CgroupParent))
	if err != nil || full == "/" {
		return fmt.Errorf("cgroup parent %q (workload.cgroup_parent) is not a slice, such as %s: %w", c.CgroupParent, DefaultSlice, errdefs.ErrInvalidArgument)
	}
	c.CgroupParent = full
	return nil
}

// SystemdCgroup says that the cgroup driver is systemd's.
func (e *Engine) SystemdCgroup() bool { return e.cfg.SystemdCgroup }
