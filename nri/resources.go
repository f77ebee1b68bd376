package nri

import (
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/api"

	"github.com/criserver/criserver/engine"
	"github.com/criserver/criserver/engine/spec"
)

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// showResources are limits as plugins see them. What is not set is not shown.
func showResources(r spec.Resources) *api.LinuxResources {
	shown := &api.LinuxResources{Memory: &api.LinuxMemory{}, Cpu: &api.LinuxCPU{Cpus: r.CPUs, Mems: r.Mems}, Unified: maps.Clone(r.Unified)}
	if r.Memory != 0 {
		shown.Memory.Limit = api.Int64(r.Memory)
	}
	if r.MemorySwap != 0 {
		shown.Memory.Swap = api.Int64(r.MemorySwap)
	}
	if r.CPUShares != 0 {
		shown.Cpu.Shares = api.UInt64(r.CPUShares)
	}
	if r.CPUQuota != 0 {
		shown.Cpu.Quota = api.Int64(r.CPUQuota)
	}
	if r.CPUPeriod != 0 {
		shown.Cpu.Period = api.UInt64(r.CPUPeriod)
	}
	for _, size := range slices.Sorted(maps.Keys(r.HugepageLimit)) {
		shown.HugepageLimits = append(shown.HugepageLimits, &api.HugepageLimit{PageSize: size, Limit: r.HugepageLimit[size]})
	}
	return shown
}

// resourcesOf are limits that a plugin wants of a container that exists. A limit that cannot be changed is an error that
// names it.
func resourcesOf(r *api.LinuxResources) (spec.Resources, error) {
	m, c := r.GetMemory(), r.GetCpu()
	for field, set := range map[string]bool{
		"memory.reservation": m.GetReservation() != nil, "memory.kernel": m.GetKernel() != nil, "memory.kernel_tcp": m.GetKernelTcp() != nil,
		"memory.swappiness": m.GetSwappiness() != nil, "memory.disable_oom_killer": m.GetDisableOomKiller() != nil,
		"memory.use_hierarchy": m.GetUseHierarchy() != nil, "cpu.realtime_runtime": c.GetRealtimeRuntime() != nil,
		"cpu.realtime_period": c.GetRealtimePeriod() != nil, "blockio_class": r.GetBlockioClass() != nil,
		"rdt_class": r.GetRdtClass() != nil, "devices": len(r.GetDevices()) > 0, "pids": r.GetPids() != nil,
	} {
		if set {
			return spec.Resources{}, fmt.Errorf("%s of a container that exists cannot be changed by a plugin: %w", field, errdefs.ErrNotImplemented)
		}
	}
	out := spec.Resources{
		CPUShares: c.GetShares().GetValue(), CPUQuota: c.GetQuota().GetValue(), CPUPeriod: c.GetPeriod().GetValue(),
		CPUs: c.GetCpus(), Mems: c.GetMems(), Memory: m.GetLimit().GetValue(), MemorySwap: m.GetSwap().GetValue(), Unified: r.GetUnified(),
	}
	for _, h := range r.GetHugepageLimits() {
		if h.GetPageSize() == "" {
			return spec.Resources{}, invalid("hugepage_limits.page_size is empty")
		}
		if out.HugepageLimit == nil {
			out.HugepageLimit = map[string]uint64{}
		}
		out.HugepageLimit[h.GetPageSize()] = h.GetLimit()
	}
	return out, nil
}

// changes are what plugins want of other containers. Entries without a container are what the library leaves where
// nothing is wanted.
func changes(updates []*api.ContainerUpdate, evictions []*api.ContainerEviction) (engine.Changes, error) {
	var all engine.Changes
	for _, u := range updates {
		if u.GetContainerId() == "" {
			continue
		}
		r, err := resourcesOf(u.GetLinux().GetResources())
		if err != nil && u.GetIgnoreFailure() {
			continue
		}
		if err != nil {
			return engine.Changes{}, fmt.Errorf("update of container %s: %w", u.GetContainerId(), err)
		}
		all.Updates = append(all.Updates, engine.ResourceUpdate{ContainerID: u.GetContainerId(), Resources: r, Optional: u.GetIgnoreFailure()})
	}
	for _, e := range evictions {
		if e.GetContainerId() != "" {
			all.Evict = append(all.Evict, engine.Eviction{ContainerID: e.GetContainerId(), Reason: e.GetReason()})
		}
	}
	return all, nil
}
