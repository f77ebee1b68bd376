package cgroup

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // plugs the setters of device rules in
	devices "github.com/opencontainers/cgroups/devices/config"
	v1fs "github.com/opencontainers/cgroups/fs"
	"golang.org/x/sys/unix"
)

// v1Group is what sets the limits of one v1 controller.
type v1Group struct {
	controller, field string
	wanted            func(*cgroups.Resources) bool
	set               func(h *hierarchy, rel string, r *cgroups.Resources) error
	files             func(*cgroups.Resources) []string // that set may write; nil where it is not set back
}

var v1MemoryGroup v1fs.MemoryGroup

// v1Groups are in the order in which they are set.
var v1Groups = []v1Group{
	{"cpuset", "cpu.cpus", func(r *cgroups.Resources) bool { return r.CpusetCpus != "" || r.CpusetMems != "" },
		plain(&v1fs.CpusetGroup{}), named("cpuset.cpus", "cpuset.mems")},
	{"devices", "devices", func(r *cgroups.Resources) bool { return !r.SkipDevices },
		setDevices, nil},
	{"memory", "memory", func(r *cgroups.Resources) bool {
		return r.Memory != 0 || r.MemorySwap != 0 || r.MemoryReservation != 0 || r.OomKillDisable || r.MemorySwappiness != nil
	}, setMemoryV1, named("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.soft_limit_in_bytes", "memory.swappiness")},
	{"cpu", "cpu", func(r *cgroups.Resources) bool {
		return r.CpuShares != 0 || r.CpuQuota != 0 || r.CpuPeriod != 0 || r.CpuBurst != nil || r.CPUIdle != nil ||
			r.CpuRtPeriod != 0 || r.CpuRtRuntime != 0
	}, setCPU, named("cpu.shares", "cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.cfs_burst_us", "cpu.idle",
		"cpu.rt_runtime_us", "cpu.rt_period_us")},
	{"pids", "pids", wantsPids, plain(&v1fs.PidsGroup{}), named("pids.max")},
	{"blkio", "blockIO", wantsBlkio, setBlkio, named("blkio.weight", "blkio.bfq.weight", "blkio.bfq.weight_device",
		"blkio.throttle.read_bps_device", "blkio.throttle.write_bps_device",
		"blkio.throttle.read_iops_device", "blkio.throttle.write_iops_device")},
	{"hugetlb", "hugepageLimits", wantsHugetlb, plain(&v1fs.HugetlbGroup{}), hugetlbFiles("limit_in_bytes")},
	{"net_cls", "network.classID", func(r *cgroups.Resources) bool { return r.NetClsClassid != 0 },
		plain(&v1fs.NetClsGroup{}), named("net_cls.classid")},
	{"net_prio", "network.priorities", func(r *cgroups.Resources) bool { return len(r.NetPrioIfpriomap) > 0 },
		plain(&v1fs.NetPrioGroup{}), named("net_prio.ifpriomap")},
	{"rdma", "rdma", func(r *cgroups.Resources) bool { return len(r.Rdma) > 0 },
		plain(&v1fs.RdmaGroup{}), named("rdma.max")},
}

// plain adapts a setter of the library, which writes into the resources that it is given.
func plain(group interface {
	Set(path string, r *cgroups.Resources) error
}) func(*hierarchy, string, *cgroups.Resources) error {
	return func(h *hierarchy, rel string, r *cgroups.Resources) error {
		own := *r
		return group.Set(h.path(rel), &own)
	}
}

// setBlkio uses a setter of its own each time: it keeps in itself what it learned about a directory.
func setBlkio(h *hierarchy, rel string, r *cgroups.Resources) error {
	return plain(&v1fs.BlkioGroup{})(h, rel, r)
}

// setCPU refuses a burst on a kernel without it, which the library would drop.
func setCPU(h *hierarchy, rel string, r *cgroups.Resources) error {
	if r.CpuBurst != nil && *r.CpuBurst != 0 && unix.Faccessat(h.root, rel+"/cpu.cfs_burst_us", unix.F_OK, 0) != nil {
		return refuse("cpu.burst", "this kernel has no cpu.cfs_burst_us (Linux 5.14)")
	}
	return plain(&v1fs.CpuGroup{})(h, rel, r)
}

// setDevices writes the usual kind of list, "nothing, except these", by two opens instead of one a rule, and has the
// kernel's list read back to be sure. Any other kind, or a list that does not come out as written, is left to the
// library, which works out the difference.
func setDevices(h *hierarchy, rel string, r *cgroups.Resources) error {
	if list := allowList(r.Devices); list != nil {
		err := h.write(rel+"/devices.deny", "a")
		if err == nil {
			err = h.write(rel+"/devices.allow", list...)
		}
		if err != nil {
			return err
		}
		written, err := h.read(rel + "/devices.list")
		if err != nil {
			return err
		}
		slices.Sort(list)
		got := strings.Split(written, "\n")
		if slices.Sort(got); slices.Equal(got, list) {
			return nil
		}
	}
	return plain(&v1fs.DevicesGroup{})(h, rel, r)
}

// allowList renders rules that begin by denying everything and then only allow; nil for any other list.
func allowList(rules []*devices.Rule) []string {
	var list []string
	for i, rule := range rules {
		if (rule.Type == devices.WildcardDevice) != (i == 0) || rule.Allow == (i == 0) {
			return nil
		}
		if i > 0 {
			list = append(list, rule.CgroupString())
		}
	}
	return list
}

// applyV1 writes limits, only those that are set: each where its controller is.
func (c *Cgroup) applyV1(r *cgroups.Resources) error {
	for _, g := range v1Groups {
		if !g.wanted(r) || c.layout.v1With(g.controller) == nil {
			continue // resources has made sure that the unified hierarchy has it then
		}
		if err := g.set(c.layout.v1With(g.controller), c.rel, r); err != nil {
			return fmt.Errorf("set linux.resources.%s of cgroup /%s: %w", g.field, c.rel, kind(err))
		}
	}
	if !c.layout.wantsHybrid(r) {
		return nil
	}
	return c.applyV2(r)
}

// wantsHybrid says whether a limit is to be set on the unified hierarchy although there are v1 hierarchies.
func (l *layout) wantsHybrid(r *cgroups.Resources) bool {
	return len(r.Unified) > 0 || wantsHugetlb(r) && l.v1With("hugetlb") == nil
}

// delegateHybrid has the unified hierarchy's controllers in the cgroup where a limit needs them.
func (c *Cgroup) delegateHybrid(ctx context.Context, r *cgroups.Resources) error {
	if !c.layout.wantsHybrid(r) {
		return nil
	}
	return delegate(ctx, c.layout.unified, parent(c.rel))
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
// the topmost directory that was just made. Where that is above rel, rel is the first below new parents, and those are
// told to let the kernel do it from now on (cgroup.clone_children, which children inherit when they are made).
func inheritCpuset(h *hierarchy, rel, made string) error {
	if err := fillCpuset(h, rel); err != nil || made == "" || made == rel {
		return err // older parents are not ours to change
	}
	for dir := rel; len(dir) >= len(made); dir = parent(dir) {
		if err := h.write(dir+"/cgroup.clone_children", "1"); err != nil {
			return err
		}
	}
	return nil
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
