package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // plugs the setters of device rules in
	v1fs "github.com/opencontainers/cgroups/fs"
	v2fs "github.com/opencontainers/cgroups/fs2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// resources converts a spec's resources for the machine, and refuses what its controllers cannot do.
func (l *layout) resources(spec *specs.LinuxResources) (*cgroups.Resources, error) {
	v := v1
	if l.pure() {
		v = v2
	}
	r, err := convert(spec, v)
	if err != nil {
		return nil, err
	}
	dropEmptyPools(r, l.hasHugetlb())
	if v == v2 {
		return r, nil
	}
	for _, g := range v1Groups {
		if g.wanted(r) && l.v1With(g.controller) == nil {
			return nil, refuse(g.field, "no "+g.controller+" controller is mounted as a v1 hierarchy")
		}
	}
	return r, l.checkSwap(r)
}

func (l *layout) hasHugetlb() bool {
	if !l.pure() {
		return l.v1With("hugetlb") != nil
	}
	available, err := l.unified.read("cgroup.controllers")
	return err == nil && slices.Contains(strings.Fields(available), "hugetlb")
}

// checkSwap keeps a swap limit from being asked of a kernel that does not account swap, unless the machine has no swap,
// where "none" and "as much as you like" both hold by themselves.
func (l *layout) checkSwap(r *cgroups.Resources) error {
	h := l.v1With("memory")
	if r.MemorySwap == 0 || h == nil || unix.Faccessat(h.root, "memory.memsw.limit_in_bytes", unix.F_OK, 0) == nil {
		return nil
	}
	if r.MemorySwap == -1 || !swapping() {
		r.MemorySwap = 0
		return nil
	}
	return refuse("memory.swap", "the kernel does not account swap (boot it with swapaccount=1, or turn swap off)")
}

// swapping says whether a swap area is in use; when it cannot be told, that one may be.
func swapping() bool {
	data, err := os.ReadFile("/proc/swaps")
	return err != nil || strings.Count(string(data), "\n") > 1
}

// dropEmptyPools drops "no huge pages" for a size of which the machine has none: without a controller it could not be
// set, and it holds anyway. kubelet asks for it for every size in every container.
func dropEmptyPools(r *cgroups.Resources, controller bool) {
	if controller {
		return
	}
	r.HugetlbLimit = slices.DeleteFunc(r.HugetlbLimit, func(h *cgroups.HugepageLimit) bool {
		return h.Limit == 0 && poolEmpty(h.Pagesize)
	})
}

// poolEmpty says whether the machine has no huge pages of a size ("2MB") and may make none.
func poolEmpty(size string) bool {
	for i, unit := range []string{"KB", "MB", "GB"} {
		number, ok := strings.CutSuffix(size, unit)
		n, err := strconv.ParseUint(number, 10, 32)
		if !ok || err != nil {
			continue
		}
		dir := fmt.Sprintf("/sys/kernel/mm/hugepages/hugepages-%dkB/", n<<(10*i))
		for _, file := range []string{"nr_hugepages", "nr_overcommit_hugepages"} {
			data, err := os.ReadFile(dir + file)
			if errors.Is(err, fs.ErrNotExist) {
				return true // the kernel has no pages of this size
			}
			if err != nil || strings.TrimSpace(string(data)) != "0" {
				return false
			}
		}
		return true
	}
	return false
}

// v1Group is what sets the limits of one v1 controller.
type v1Group struct {
	controller, field string
	wanted            func(*cgroups.Resources) bool
	set               func(dir string, r *cgroups.Resources) error
}

// v1Groups are in the order in which they are set. Each setter is a value of its own: the library's blkio group keeps
// what it learned about a directory in itself.
var v1Groups = []v1Group{
	{"cpuset", "cpu.cpus", func(r *cgroups.Resources) bool { return r.CpusetCpus != "" || r.CpusetMems != "" },
		func(d string, r *cgroups.Resources) error { return (&v1fs.CpusetGroup{}).Set(d, r) }},
	{"devices", "devices", func(r *cgroups.Resources) bool { return !r.SkipDevices },
		func(d string, r *cgroups.Resources) error { return (&v1fs.DevicesGroup{}).Set(d, r) }},
	{"memory", "memory", func(r *cgroups.Resources) bool {
		return r.Memory != 0 || r.MemorySwap != 0 || r.MemoryReservation != 0 || r.OomKillDisable || r.MemorySwappiness != nil
	}, func(d string, r *cgroups.Resources) error {
		own := *r // the library writes into what it is given
		return (&v1fs.MemoryGroup{}).Set(d, &own)
	}},
	{"cpu", "cpu", func(r *cgroups.Resources) bool {
		return r.CpuShares != 0 || r.CpuQuota != 0 || r.CpuPeriod != 0 || r.CpuBurst != nil || r.CPUIdle != nil ||
			r.CpuRtPeriod != 0 || r.CpuRtRuntime != 0
	}, setCPU},
	{"pids", "pids", func(r *cgroups.Resources) bool { return r.PidsLimit != nil },
		func(d string, r *cgroups.Resources) error { return (&v1fs.PidsGroup{}).Set(d, r) }},
	{"blkio", "blockIO", func(r *cgroups.Resources) bool {
		return r.BlkioWeight != 0 || len(r.BlkioWeightDevice) > 0 || len(r.BlkioThrottleReadBpsDevice) > 0 ||
			len(r.BlkioThrottleWriteBpsDevice) > 0 || len(r.BlkioThrottleReadIOPSDevice) > 0 || len(r.BlkioThrottleWriteIOPSDevice) > 0
	}, func(d string, r *cgroups.Resources) error { return (&v1fs.BlkioGroup{}).Set(d, r) }},
	{"hugetlb", "hugepageLimits", func(r *cgroups.Resources) bool { return len(r.HugetlbLimit) > 0 },
		func(d string, r *cgroups.Resources) error { return (&v1fs.HugetlbGroup{}).Set(d, r) }},
	{"net_cls", "network.classID", func(r *cgroups.Resources) bool { return r.NetClsClassid != 0 },
		func(d string, r *cgroups.Resources) error { return (&v1fs.NetClsGroup{}).Set(d, r) }},
	{"net_prio", "network.priorities", func(r *cgroups.Resources) bool { return len(r.NetPrioIfpriomap) > 0 },
		func(d string, r *cgroups.Resources) error { return (&v1fs.NetPrioGroup{}).Set(d, r) }},
	{"rdma", "rdma", func(r *cgroups.Resources) bool { return len(r.Rdma) > 0 },
		func(d string, r *cgroups.Resources) error { return (&v1fs.RdmaGroup{}).Set(d, r) }},
}

// setCPU refuses a burst on a kernel without it, which the library would drop.
func setCPU(dir string, r *cgroups.Resources) error {
	if r.CpuBurst != nil && *r.CpuBurst != 0 && unix.Access(dir+"/cpu.cfs_burst_us", unix.F_OK) != nil {
		return refuse("cpu.burst", "this kernel has no cpu.cfs_burst_us (Linux 5.14)")
	}
	return (&v1fs.CpuGroup{}).Set(dir, r)
}

// applyV1 writes limits, only those that are set.
func (c *Cgroup) applyV1(r *cgroups.Resources) error {
	for _, g := range v1Groups {
		if !g.wanted(r) {
			continue
		}
		if err := g.set(c.layout.v1With(g.controller).path(c.rel), r); err != nil {
			return fmt.Errorf("set linux.resources.%s of cgroup /%s: %w", g.field, c.rel, kind(err))
		}
	}
	return nil
}

// kind gives an error of the kernel the kind that tells a caller whose fault it is.
func kind(err error) error {
	switch {
	case errdefs.IsNotImplemented(err), errdefs.IsInvalidArgument(err):
		return err
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w (the kernel or the cgroup lacks this file): %w", err, errdefs.ErrNotImplemented)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return err
}

// withoutDefaultsV1 leaves out what a new v1 cgroup has anyway: each write costs 5 to 10 us, and more where the kernel
// takes a lock that others hold.
func withoutDefaultsV1(r *cgroups.Resources) *cgroups.Resources {
	n := *r
	if n.CpuShares == 1024 {
		n.CpuShares = 0
	}
	if n.CpuQuota == -1 && n.CpuBurst == nil {
		n.CpuQuota = 0
	}
	if n.CpuPeriod == 100000 {
		n.CpuPeriod = 0
	}
	if n.CpuBurst != nil && *n.CpuBurst == 0 {
		n.CpuBurst = nil
	}
	if n.CPUIdle != nil && *n.CPUIdle == 0 {
		n.CPUIdle = nil
	}
	if n.PidsLimit != nil && *n.PidsLimit < 0 {
		n.PidsLimit = nil
	}
	if n.Memory == -1 && n.MemorySwap <= 0 {
		n.Memory, n.MemorySwap = 0, 0
	}
	if n.MemoryReservation == -1 {
		n.MemoryReservation = 0
	}
	return &n
}

// inheritCpuset gives a v1 cpuset the cpus and nodes of its parent: a new one has none, and nothing can join it. made is
// the topmost directory that was just made; from there on the kernel does it by itself (cgroup.clone_children, which
// children inherit).
func inheritCpuset(h *hierarchy, rel, made string) error {
	if made != "" && made != rel {
		if err := fillCpuset(h, made); err != nil {
			return err
		}
		if err := h.write(made+"/cgroup.clone_children", "1"); err != nil {
			return err
		}
	}
	return fillCpuset(h, rel)
}

func fillCpuset(h *hierarchy, rel string) error {
	for _, file := range []string{"/cpuset.cpus", "/cpuset.mems"} {
		own, err := h.read(rel + file)
		if err != nil {
			return err
		}
		above := parent(rel)
		if own != "" {
			continue
		}
		if above != "" {
			if err := fillCpuset(h, above); err != nil {
				return err
			}
		}
		inherited, err := h.read(strings.TrimPrefix(above+file, "/"))
		if err != nil {
			return err
		}
		if err := h.write(rel+file, inherited); err != nil {
			return err
		}
	}
	return nil
}

// createV2 is Create where all controllers are on the unified hierarchy.
func (c *Cgroup) createV2(ctx context.Context) error {
	h := c.layout.unified
	above := parent(c.rel)
	if above != "" {
		if _, err := h.mkdir(above); err != nil {
			return fmt.Errorf("make cgroup /%s: %w", above, err)
		}
	}
	if err := delegate(ctx, h, above); err != nil {
		return fmt.Errorf("make cgroup /%s: %w", c.rel, err)
	}
	if _, err := h.mkdir(c.rel); err != nil {
		return fmt.Errorf("make cgroup /%s: %w", c.rel, err)
	}
	return c.applyV2(c.resources)
}

// delegate gives the children of rel every controller that the root has. A controller that the kernel refuses is left
// out: only a limit that needs it is an error, when it is set.
func delegate(ctx context.Context, h *hierarchy, rel string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	available, err := h.read("cgroup.controllers")
	if err != nil {
		return err
	}
	control := strings.TrimPrefix(rel+"/cgroup.subtree_control", "/")
	enabled, err := h.read(control)
	if err != nil {
		return err
	}
	have := strings.Fields(enabled)
	missing := slices.DeleteFunc(strings.Fields(available), func(c string) bool { return slices.Contains(have, c) })
	if len(missing) == 0 {
		return nil
	}
	if rel != "" {
		if err := delegate(ctx, h, parent(rel)); err != nil {
			return err
		}
	}
	if h.write(control, "+"+strings.Join(missing, " +")) == nil {
		return nil
	}
	for _, controller := range missing {
		_ = h.write(control, "+"+controller) // refused ones come up in applyV2, if anybody wants them
	}
	return nil
}

func (c *Cgroup) applyV2(r *cgroups.Resources) error {
	dir := c.layout.unified.path(c.rel)
	own := *r
	m, err := v2fs.NewManager(&cgroups.Cgroup{Resources: &own}, dir)
	if err != nil {
		return fmt.Errorf("cgroup /%s: %w", c.rel, err)
	}
	err = m.Set(&own)
	if err == nil {
		return nil
	}
	if kindOf, readErr := c.layout.unified.read(c.rel + "/cgroup.type"); readErr == nil && kindOf != "domain" {
		return fmt.Errorf("set limits of cgroup /%s: it is %q because a cgroup above it has processes or is threaded: %w: %w",
			c.rel, kindOf, err, errdefs.ErrFailedPrecondition)
	}
	return fmt.Errorf("set limits of cgroup /%s: %w", c.rel, kind(err))
}
