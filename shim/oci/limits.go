package oci

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/shim/native/cgroup"
)

// running finds a container whose process lives, and its cgroup.
func (a *app) running(name string, args []string) (*container, *cgroup.Cgroup, error) {
	id, err := a.id(a.flags(name), args)
	if err != nil {
		return nil, nil, err
	}
	c, err := a.find(id)
	if err != nil {
		return nil, nil, err
	}
	g, err := a.live(c)
	return c, g, err
}

func (a *app) live(c *container) (*cgroup.Cgroup, error) {
	status, err := c.status()
	if err != nil {
		return nil, err
	}
	g, err := c.group()
	if err != nil {
		return nil, err
	}
	if status == specs.StateStopped || g == nil {
		return nil, fmt.Errorf("container %s: container not running: %w", c.ID, errdefs.ErrFailedPrecondition)
	}
	return g, nil
}

func pause(a *app, args []string) error {
	_, g, err := a.running("pause", args)
	if err != nil {
		return err
	}
	if err := g.Freeze(a.ctx); err != nil {
		_ = g.Thaw()
		return err
	}
	return nil
}

func resume(a *app, args []string) error {
	c, g, err := a.running("resume", args)
	if err != nil {
		return err
	}
	if !g.Frozen() {
		return fmt.Errorf("container %s: container not paused: %w", c.ID, errdefs.ErrFailedPrecondition)
	}
	return g.Thaw()
}

// update sets limits: those of a file (linux.resources of the OCI spec), or the common ones by options.
func update(a *app, args []string) error {
	set := a.flags("update")
	file := set.String("resources", "", "file with linux.resources as JSON; - is standard input")
	set.StringVar(file, "r", "", "")
	memory := set.Int64("memory", 0, "bytes")
	swap := set.Int64("memory-swap", 0, "bytes of memory and swap")
	reservation := set.Int64("memory-reservation", 0, "bytes")
	period := set.Uint64("cpu-period", 0, "microseconds")
	quota := set.Int64("cpu-quota", 0, "microseconds a period")
	shares := set.Uint64("cpu-share", 0, "weight")
	cpus := set.String("cpuset-cpus", "", "list of CPUs")
	mems := set.String("cpuset-mems", "", "list of memory nodes")
	pids := set.Int64("pids-limit", 0, "processes")
	id, err := a.id(set, args)
	if err != nil {
		return err
	}
	var r specs.LinuxResources
	if *file != "" {
		if err := readResources(*file, &r); err != nil {
			return err
		}
	} else {
		r.Memory = &specs.LinuxMemory{Limit: given(memory), Swap: given(swap), Reservation: given(reservation)}
		r.CPU = &specs.LinuxCPU{Period: given(period), Quota: given(quota), Shares: given(shares), Cpus: *cpus, Mems: *mems}
		if *pids != 0 {
			r.Pids = &specs.LinuxPids{Limit: pids}
		}
	}
	c, err := a.find(id)
	if err != nil {
		return err
	}
	g, err := a.live(c)
	if err != nil {
		return err
	}
	return g.Set(&r)
}

func given[T int64 | uint64](v *T) *T {
	if *v == 0 {
		return nil
	}
	return v
}

func readResources(file string, r *specs.LinuxResources) error {
	var b []byte
	var err error
	if file == "-" {
		b, err = io.ReadAll(os.Stdin)
	} else {
		b, err = os.ReadFile(file)
	}
	if err == nil {
		err = json.Unmarshal(b, r)
	}
	if err != nil {
		return fmt.Errorf("--resources %s: %w: %w", file, err, errdefs.ErrInvalidArgument)
	}
	return nil
}
