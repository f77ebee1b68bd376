package cgroup

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	v2fs "github.com/opencontainers/cgroups/fs2"
)

// v2Group is what sets the limits of one field on the unified hierarchy.
type v2Group struct {
	controller, field string // no controller: any, or none
	wanted            func(*cgroups.Resources) bool
	// only is the part of the resources that is of this field.
	only func(*cgroups.Resources) cgroups.Resources
	// files are those that setting it may write.
	files func(*cgroups.Resources) []string
}

func named(files ...string) func(*cgroups.Resources) []string {
	return func(*cgroups.Resources) []string { return files }
}

// v2Groups are in the order in which they are set. What unified says goes over the rest.
var v2Groups = []v2Group{
	{"pids", "pids", wantsPids,
		func(r *cgroups.Resources) cgroups.Resources { return cgroups.Resources{PidsLimit: r.PidsLimit} },
		named("pids.max")},
	{"memory", "memory", func(r *cgroups.Resources) bool { return r.Memory != 0 || r.MemorySwap != 0 || r.MemoryReservation != 0 },
		func(r *cgroups.Resources) cgroups.Resources {
			return cgroups.Resources{Memory: r.Memory, MemorySwap: r.MemorySwap, MemoryReservation: r.MemoryReservation}
		},
		named("memory.max", "memory.swap.max", "memory.low")},
	{"io", "blockIO", wantsBlkio,
		func(r *cgroups.Resources) cgroups.Resources {
			return cgroups.Resources{BlkioWeight: r.BlkioWeight, BlkioWeightDevice: r.BlkioWeightDevice,
				BlkioThrottleReadBpsDevice: r.BlkioThrottleReadBpsDevice, BlkioThrottleWriteBpsDevice: r.BlkioThrottleWriteBpsDevice,
				BlkioThrottleReadIOPSDevice: r.BlkioThrottleReadIOPSDevice, BlkioThrottleWriteIOPSDevice: r.BlkioThrottleWriteIOPSDevice}
		},
		named("io.weight", "io.bfq.weight", "io.max")},
	{"cpu", "cpu", func(r *cgroups.Resources) bool {
		return r.CpuWeight != 0 || r.CpuQuota != 0 || r.CpuPeriod != 0 || r.CPUIdle != nil || r.CpuBurst != nil
	},
		func(r *cgroups.Resources) cgroups.Resources {
			return cgroups.Resources{CpuWeight: r.CpuWeight, CpuQuota: r.CpuQuota, CpuPeriod: r.CpuPeriod, CPUIdle: r.CPUIdle, CpuBurst: r.CpuBurst}
		},
		named("cpu.max", "cpu.max.burst", "cpu.weight", "cpu.idle")},
	{"", "devices", func(r *cgroups.Resources) bool { return !r.SkipDevices },
		func(r *cgroups.Resources) cgroups.Resources { return cgroups.Resources{Devices: r.Devices} },
		named()},
	{"cpuset", "cpu.cpus", func(r *cgroups.Resources) bool { return r.CpusetCpus != "" || r.CpusetMems != "" },
		func(r *cgroups.Resources) cgroups.Resources {
			return cgroups.Resources{CpusetCpus: r.CpusetCpus, CpusetMems: r.CpusetMems}
		},
		named("cpuset.cpus", "cpuset.mems")},
	{"hugetlb", "hugepageLimits", wantsHugetlb,
		func(r *cgroups.Resources) cgroups.Resources { return cgroups.Resources{HugetlbLimit: r.HugetlbLimit} },
		hugetlbFiles("max")},
	{"rdma", "rdma", func(r *cgroups.Resources) bool { return len(r.Rdma) > 0 },
		func(r *cgroups.Resources) cgroups.Resources { return cgroups.Resources{Rdma: r.Rdma} },
		named("rdma.max")},
	{"", "unified", func(r *cgroups.Resources) bool { return len(r.Unified) > 0 },
		func(r *cgroups.Resources) cgroups.Resources { return cgroups.Resources{Unified: r.Unified} },
		func(r *cgroups.Resources) []string { return slices.Sorted(maps.Keys(r.Unified)) }},
}

func wantsPids(r *cgroups.Resources) bool    { return r.PidsLimit != nil }
func wantsHugetlb(r *cgroups.Resources) bool { return len(r.HugetlbLimit) > 0 }
func wantsBlkio(r *cgroups.Resources) bool {
	return r.BlkioWeight != 0 || len(r.BlkioWeightDevice) > 0 || len(r.BlkioThrottleReadBpsDevice) > 0 ||
		len(r.BlkioThrottleWriteBpsDevice) > 0 || len(r.BlkioThrottleReadIOPSDevice) > 0 || len(r.BlkioThrottleWriteIOPSDevice) > 0
}

// hugetlbFiles are hugetlb.SIZE.NAME and hugetlb.SIZE.rsvd.NAME of each size.
func hugetlbFiles(name string) func(*cgroups.Resources) []string {
	return func(r *cgroups.Resources) []string {
		var files []string
		for _, l := range r.HugetlbLimit {
			files = append(files, "hugetlb."+l.Pagesize+"."+name, "hugetlb."+l.Pagesize+".rsvd."+name)
		}
		return files
	}
}

// onUnified says whether the limits of a controller are set on the unified hierarchy: all of them without v1, else those
// of the controllers that are not mounted as v1. "" stands for what belongs to no one controller.
func (l *layout) onUnified(controller string) bool {
	return l.pure() || l.unified != nil && (controller == "" || l.v1With(controller) == nil)
}

// unifiedHas says whether the unified hierarchy has a controller.
func (l *layout) unifiedHas(controller string) bool {
	if l.unified == nil {
		return false
	}
	available, err := l.unified.read("cgroup.controllers")
	return err == nil && slices.Contains(strings.Fields(available), controller)
}

// applyV2 writes the limits that are set on the unified hierarchy.
func (c *Cgroup) applyV2(r *cgroups.Resources) error {
	h := c.layout.unified
	if r.MemoryCheckBeforeUpdate && c.layout.onUnified("memory") {
		if err := fitMemory(h, c.rel, r.Memory); err != nil {
			return fmt.Errorf("set linux.resources.memory of cgroup /%s: %w", c.rel, kind(err))
		}
	}
	var m *v2fs.Manager
	for _, g := range v2Groups {
		if !g.wanted(r) || !c.layout.onUnified(g.controller) || !c.layout.pure() && g.field == "devices" {
			continue
		}
		only := g.only(r)
		only.SkipDevices = g.field != "devices"
		if m == nil {
			var err error
			if m, err = v2fs.NewManager(&cgroups.Cgroup{Resources: &cgroups.Resources{}}, h.path(c.rel)); err != nil {
				return fmt.Errorf("cgroup /%s: %w", c.rel, err)
			}
		}
		if err := m.Set(&only); err != nil {
			return c.explainV2(g.field, err)
		}
	}
	return nil
}

func (c *Cgroup) explainV2(field string, err error) error {
	if kindOf, readErr := c.layout.unified.read(c.rel + "/cgroup.type"); readErr == nil && kindOf != "domain" {
		return fmt.Errorf("set linux.resources.%s of cgroup /%s: it is %q because a cgroup above it has processes or is threaded: %w: %w",
			field, c.rel, kindOf, err, errdefs.ErrFailedPrecondition)
	}
	return fmt.Errorf("set linux.resources.%s of cgroup /%s: %w", field, c.rel, kind(err))
}
