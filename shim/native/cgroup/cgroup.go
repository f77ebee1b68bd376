// Package cgroup makes, limits, empties and removes the cgroups of containers, on v1, on the hybrid layout and on v2.
//
// No function here moves a process: a write that names another process takes cgroup_threadgroup_rwsem for writing and
// waits for an RCU grace period (10 ms and more). A process joins by itself, by writing "0" to the files of TasksFiles
// (v1) and by being cloned into UnifiedDir (CLONE_INTO_CGROUP, Linux 5.7).
//
// A Cgroup is immutable, so every method may be called from several goroutines; the kernel is the only state.
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Cgroup is one container's cgroup in every hierarchy of the machine.
type Cgroup struct {
	layout    *layout
	rel       string // without the leading slash
	resources *cgroups.Resources
}

// New describes the cgroup cgroupsPath ("/kubepods/pod1/c1") and the limits that Create gives it. Nothing is made yet.
// resources may be nil. What they ask for and this machine or its cgroup version cannot do is refused with
// ErrInvalidArgument or ErrNotImplemented, naming the field. An empty list of device rules leaves devices as they are
// in the parent; otherwise they are an allow list to which the devices that OCI promises every container are added.
func New(cgroupsPath string, resources *specs.LinuxResources) (*Cgroup, error) {
	rel, err := relative(cgroupsPath)
	if err != nil {
		return nil, err
	}
	l, err := machine()
	if err != nil {
		return nil, err
	}
	r, err := l.resources(resources)
	if err != nil {
		return nil, fmt.Errorf("cgroup %s: %w", cgroupsPath, err)
	}
	return &Cgroup{layout: l, rel: rel, resources: r}, nil
}

// relative checks a cgroupsPath of the cgroupfs form and takes the leading slash off.
func relative(path string) (string, error) {
	bad := func(why string) error {
		return fmt.Errorf("cgroups path %q %s, want one like /kubepods/pod1/container1: %w", path, why, errdefs.ErrInvalidArgument)
	}
	rel, ok := strings.CutPrefix(path, "/")
	if !ok {
		if strings.Count(path, ":") == 2 {
			return "", bad("is in the form of systemd's driver")
		}
		return "", bad("is not absolute")
	}
	if rel == "" {
		return "", bad("is the root cgroup")
	}
	for part := range strings.SplitSeq(rel, "/") {
		switch {
		case part == "" || part == "." || part == "..":
			return "", bad("has an empty, \".\" or \"..\" component")
		case len(part) > 255:
			return "", bad("has a component of more than 255 bytes")
		case strings.ContainsAny(part, "\x00\n"):
			return "", bad("has a zero byte or a newline")
		}
	}
	return rel, nil
}

// Create makes the directories and writes the limits. It may be called again: what exists is kept and gets the limits.
// After an error what was made is left for Remove.
func (c *Cgroup) Create(ctx context.Context) error {
	if c.layout.pure() {
		return c.createV2(ctx)
	}
	fresh := true
	for _, h := range c.layout.all() {
		if err := ctx.Err(); err != nil {
			return err
		}
		made, err := h.mkdir(c.rel)
		if err != nil {
			return fmt.Errorf("make cgroup /%s in hierarchy %s: %w", c.rel, h.name(), err)
		}
		fresh = fresh && made != ""
		if slices.Contains(h.controllers, "cpuset") {
			if err := inheritCpuset(h, c.rel, made); err != nil {
				return fmt.Errorf("make cgroup /%s: %w", c.rel, err)
			}
		}
	}
	r := c.resources
	if err := c.delegateHybrid(ctx, r); err != nil {
		return fmt.Errorf("make cgroup /%s: %w", c.rel, err)
	}
	if fresh {
		r = withoutDefaultsV1(r)
	}
	return c.applyV1(r)
}

// TasksFiles is, for v1 and hybrid, the "tasks" file of the cgroup in each v1 hierarchy. A single-threaded process that
// writes "0" to each has joined. Nil on v2.
func (c *Cgroup) TasksFiles() []string {
	var files []string
	for _, h := range c.layout.v1 {
		files = append(files, h.path(c.rel)+"/tasks")
	}
	return files
}

// UnifiedDir is the cgroup's directory in the unified hierarchy, for CLONE_INTO_CGROUP; "" when the machine has none.
func (c *Cgroup) UnifiedDir() string {
	if c.layout.unified == nil {
		return ""
	}
	return c.layout.unified.path(c.rel)
}

// Path is the cgroup's path as New got it.
func (c *Cgroup) Path() string { return "/" + c.rel }

// OOMKills counts the processes of this cgroup and those below that the kernel killed for want of memory. It is
// ErrNotFound when the cgroup is gone or the machine has no memory controller.
func (c *Cgroup) OOMKills() (uint64, error) {
	h, file := c.layout.unified, c.rel+"/memory.events"
	if !c.layout.pure() {
		h, file = c.layout.v1With("memory"), c.rel+"/memory.oom_control"
	}
	if h == nil {
		return 0, fmt.Errorf("count OOM kills of cgroup /%s: no memory controller is mounted: %w", c.rel, errdefs.ErrNotFound)
	}
	content, err := h.read(file)
	if err != nil {
		return 0, fmt.Errorf("count OOM kills: %w", c.absent(err))
	}
	return parseOOMKills(content)
}

// parseOOMKills finds the value of the line "oom_kill N" (v1 since Linux 4.19, v2 since 4.13).
func parseOOMKills(content string) (uint64, error) {
	for line := range strings.Lines(content) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); ok {
			return strconv.ParseUint(value, 10, 64)
		}
	}
	return 0, fmt.Errorf("count OOM kills: no oom_kill line in %q", content)
}

// Pids lists the processes in the cgroup and in those below it, in any hierarchy, ascending. Zombies are not in a
// cgroup. ErrNotFound when the cgroup is gone.
func (c *Cgroup) Pids() ([]int, error) {
	if !c.main().exists(c.rel) {
		return nil, c.absent(fs.ErrNotExist)
	}
	return pids(c.layout.all(), c.rel)
}

// main is the hierarchy that stands for all when only one is asked.
func (c *Cgroup) main() *hierarchy { return c.layout.all()[0] }

// absent turns "no such file" into ErrNotFound with the cgroup's name.
func (c *Cgroup) absent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cgroup /%s does not exist: %w", c.rel, errdefs.ErrNotFound)
	}
	return err
}
