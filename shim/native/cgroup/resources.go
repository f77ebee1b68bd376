package cgroup

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	devices "github.com/opencontainers/cgroups/devices/config"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// version is the cgroup version whose controllers get the limits.
type version int

const (
	v1 version = 1
	v2 version = 2
)

// refuse says that a field of linux.resources cannot be honoured on this version.
func refuse(field, why string) error {
	return fmt.Errorf("linux.resources.%s: %s: %w", field, why, errdefs.ErrNotImplemented)
}

func invalid(field, why string) error {
	return fmt.Errorf("linux.resources.%s: %s: %w", field, why, errdefs.ErrInvalidArgument)
}

// convert translates an OCI spec's resources for one cgroup version. It is pure; what only the machine can tell (which
// controllers are there) is checked by layout.resources. A nil spec is no limit at all.
func convert(spec *specs.LinuxResources, v version) (*cgroups.Resources, error) {
	r := &cgroups.Resources{SkipDevices: true}
	if spec == nil {
		return r, nil
	}
	steps := []func(*specs.LinuxResources, version, *cgroups.Resources) error{
		convertDevices, convertMemory, convertCPU, convertBlockIO, convertNetwork, convertUnified,
	}
	for _, step := range steps {
		if err := step(spec, v, r); err != nil {
			return nil, err
		}
	}
	if spec.Pids != nil && spec.Pids.Limit != nil {
		r.PidsLimit = new(*spec.Pids.Limit)
	}
	for _, h := range spec.HugepageLimits {
		if h.Pagesize == "" || strings.ContainsAny(h.Pagesize, "/ \n") {
			return nil, invalid("hugepageLimits", fmt.Sprintf("%q is not a page size, want one like 2MB", h.Pagesize))
		}
		r.HugetlbLimit = append(r.HugetlbLimit, &cgroups.HugepageLimit{Pagesize: h.Pagesize, Limit: h.Limit})
	}
	for device, limit := range spec.Rdma {
		if r.Rdma == nil {
			r.Rdma = map[string]cgroups.LinuxRdma{}
		}
		r.Rdma[device] = cgroups.LinuxRdma{HcaHandles: limit.HcaHandles, HcaObjects: limit.HcaObjects}
	}
	return r, nil
}

func convertMemory(spec *specs.LinuxResources, v version, r *cgroups.Resources) error {
	m := spec.Memory
	if m == nil {
		return nil
	}
	limit, err := limitOf("memory.limit", m.Limit)
	if err != nil {
		return err
	}
	swap, err := limitOf("memory.swap", m.Swap)
	if err != nil {
		return err
	}
	reservation, err := limitOf("memory.reservation", m.Reservation)
	if err != nil {
		return err
	}
	if swap > 0 && limit > 0 && swap < limit {
		return invalid("memory.swap", fmt.Sprintf("%d is less than memory.limit, %d; it is the sum of memory and swap", swap, limit))
	}
	if swap > 0 && limit == 0 && v == v2 {
		return invalid("memory.swap", "is the sum of memory and swap and needs memory.limit beside it")
	}
	r.Memory, r.MemorySwap, r.MemoryReservation = limit, swap, reservation
	switch {
	//lint:ignore SA1019 a deprecated field is refused, not dropped
	case m.Kernel != nil && *m.Kernel > 0:
		return refuse("memory.kernel", "the kernel has had no such limit since 5.16")
	case m.KernelTCP != nil && *m.KernelTCP > 0:
		return refuse("memory.kernelTCP", "not supported, limit memory as a whole")
	case m.UseHierarchy != nil && !*m.UseHierarchy:
		return refuse("memory.useHierarchy", "accounting has always been hierarchical since Linux 5.11")
	}
	if m.CheckBeforeUpdate != nil {
		r.MemoryCheckBeforeUpdate = *m.CheckBeforeUpdate
	}
	return convertMemoryKnobs(m, v, r)
}

// convertMemoryKnobs converts what only v1 has.
func convertMemoryKnobs(m *specs.LinuxMemory, v version, r *cgroups.Resources) error {
	if m.DisableOOMKiller != nil && *m.DisableOOMKiller {
		if v == v2 {
			return refuse("memory.disableOOMKiller", "cgroup v2 has no such switch")
		}
		r.OomKillDisable = true
	}
	// -1 as an unsigned number is the customary "unset".
	if m.Swappiness == nil || *m.Swappiness == math.MaxUint64 {
		return nil
	}
	switch {
	case v == v2:
		return refuse("memory.swappiness", "cgroup v2 has no swappiness, limit swap instead")
	case *m.Swappiness > 100:
		return invalid("memory.swappiness", fmt.Sprintf("%d is not between 0 and 100", *m.Swappiness))
	}
	r.MemorySwappiness = new(*m.Swappiness)
	return nil
}

// limitOf reads a limit in bytes: nil and 0 are unset, -1 is unlimited.
func limitOf(field string, value *int64) (int64, error) {
	if value == nil {
		return 0, nil
	}
	if *value < -1 {
		return 0, invalid(field, fmt.Sprintf("%d is neither a number of bytes nor -1", *value))
	}
	return *value, nil
}

func convertCPU(spec *specs.LinuxResources, v version, r *cgroups.Resources) error {
	cpu := spec.CPU
	if cpu == nil {
		return nil
	}
	if cpu.Shares != nil {
		if v == v2 {
			r.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(*cpu.Shares)
		} else {
			r.CpuShares = *cpu.Shares
		}
	}
	if cpu.Quota != nil {
		r.CpuQuota = max(*cpu.Quota, -1)
	}
	if cpu.Period != nil {
		r.CpuPeriod = *cpu.Period
	}
	if cpu.Burst != nil {
		r.CpuBurst = new(*cpu.Burst)
	}
	if cpu.Idle != nil {
		if *cpu.Idle != 0 && *cpu.Idle != 1 {
			return invalid("cpu.idle", fmt.Sprintf("%d is neither 0 nor 1", *cpu.Idle))
		}
		r.CPUIdle = new(*cpu.Idle)
		if *cpu.Idle == 1 && (r.CpuShares != 0 || r.CpuWeight != 0) {
			// The kernel refuses a weight for a cgroup that is SCHED_IDLE (sched_group_set_shares).
			return invalid("cpu.idle", "1 excludes cpu.shares: an idle cgroup has the least weight there is")
		}
	}
	r.CpusetCpus, r.CpusetMems = cpu.Cpus, cpu.Mems
	if cpu.RealtimeRuntime != nil {
		r.CpuRtRuntime = *cpu.RealtimeRuntime
	}
	if cpu.RealtimePeriod != nil {
		r.CpuRtPeriod = *cpu.RealtimePeriod
	}
	if v == v2 && (r.CpuRtRuntime != 0 || r.CpuRtPeriod != 0) {
		return refuse("cpu.realtimeRuntime", "cgroup v2 has no realtime bandwidth")
	}
	return nil
}

func convertNetwork(spec *specs.LinuxResources, v version, r *cgroups.Resources) error {
	if spec.Network == nil {
		return nil
	}
	if id := spec.Network.ClassID; id != nil {
		r.NetClsClassid = *id
	}
	for _, p := range spec.Network.Priorities {
		r.NetPrioIfpriomap = append(r.NetPrioIfpriomap, &cgroups.IfPrioMap{Interface: p.Name, Priority: int64(p.Priority)})
	}
	if v == v2 && (r.NetClsClassid != 0 || len(r.NetPrioIfpriomap) > 0) {
		return refuse("network", "cgroup v2 has neither class ids nor priorities, match the cgroup in nftables instead")
	}
	return nil
}

func convertUnified(spec *specs.LinuxResources, _ version, r *cgroups.Resources) error {
	if len(spec.Unified) == 0 {
		return nil
	}
	r.Unified = map[string]string{}
	for key, value := range spec.Unified {
		controller, _, ok := strings.Cut(key, ".")
		if !ok || controller == "" || strings.ContainsAny(key, "/\x00\n") {
			return invalid("unified", fmt.Sprintf("%q is not of the form CONTROLLER.PARAMETER", key))
		}
		// These would undo the engine's hold on the cgroup rather than limit it.
		if slices.Contains([]string{"cgroup.procs", "cgroup.threads", "cgroup.kill", "cgroup.freeze", "cgroup.type"}, key) {
			return invalid("unified", fmt.Sprintf("%s is not a limit", key))
		}
		r.Unified[key] = value
	}
	return nil
}

func convertDevices(spec *specs.LinuxResources, _ version, r *cgroups.Resources) error {
	if len(spec.Devices) == 0 {
		return nil
	}
	r.SkipDevices = false
	var rules []*devices.Rule
	for i, d := range spec.Devices {
		converted, err := convertDevice(fmt.Sprintf("devices[%d]", i), d)
		if err != nil {
			return err
		}
		rules = append(rules, converted...)
	}
	// The promised devices come after a leading "deny all" and before whatever else the spec says, so that it can still
	// take one away.
	first := 0
	if rules[0].Type == devices.WildcardDevice && !rules[0].Allow {
		first = 1
	}
	r.Devices = slices.Insert(rules, first, promised()...)
	return nil
}

// convertDevice translates one rule. A wildcard type with a number or with only some kinds of access becomes a rule for
// each type, because a "a" rule of the kernel means everything whatever else it says.
func convertDevice(field string, d specs.LinuxDeviceCgroup) ([]*devices.Rule, error) {
	rule := devices.Rule{Major: devices.Wildcard, Minor: devices.Wildcard, Permissions: "rwm", Allow: d.Allow}
	if d.Access != "" {
		rule.Permissions = devices.Permissions(d.Access)
		if rule.Permissions = rule.Permissions.Union(""); len(rule.Permissions) != len(d.Access) {
			return nil, invalid(field+".access", fmt.Sprintf("%q is not made of r, w and m", d.Access))
		}
	}
	for _, n := range []struct {
		name string
		from *int64
		to   *int64
	}{{".major", d.Major, &rule.Major}, {".minor", d.Minor, &rule.Minor}} {
		if n.from == nil {
			continue
		}
		if *n.from < devices.Wildcard || *n.from > math.MaxUint32 {
			return nil, invalid(field+n.name, fmt.Sprintf("%d is not a device number", *n.from))
		}
		*n.to = *n.from
	}
	switch d.Type {
	case "b":
		rule.Type = devices.BlockDevice
	case "c", "u":
		rule.Type = devices.CharDevice
	case "", "a":
		if rule.Major == devices.Wildcard && rule.Minor == devices.Wildcard && rule.Permissions == "rwm" {
			rule.Type = devices.WildcardDevice
			return []*devices.Rule{&rule}, nil
		}
		block, char := rule, rule
		block.Type, char.Type = devices.BlockDevice, devices.CharDevice
		return []*devices.Rule{&block, &char}, nil
	default:
		return nil, invalid(field+".type", fmt.Sprintf("%q is not a, b, c or u", d.Type))
	}
	return []*devices.Rule{&rule}, nil
}

// promised are the rules for what OCI's runtime-spec (config-linux.md, default devices) says every container has. Making
// a node is allowed for all because it gives no access.
func promised() []*devices.Rule {
	rules := []*devices.Rule{
		{Type: devices.CharDevice, Major: devices.Wildcard, Minor: devices.Wildcard, Permissions: "m", Allow: true},
		{Type: devices.BlockDevice, Major: devices.Wildcard, Minor: devices.Wildcard, Permissions: "m", Allow: true},
	}
	for _, n := range [][2]int64{
		{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, // null, zero, full, random, urandom
		{5, 0}, {5, 1}, {5, 2}, {136, devices.Wildcard}, // tty, console, ptmx, pts/*
	} {
		rules = append(rules, &devices.Rule{Type: devices.CharDevice, Major: n[0], Minor: n[1], Permissions: "rwm", Allow: true})
	}
	return rules
}
