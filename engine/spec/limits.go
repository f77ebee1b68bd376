package spec

import (
	"maps"
	"math"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Relimit lays limits over those that a container's spec has. Devices, and whatever a client cannot set, stay. Warnings
// say what could not be given. s is not changed by an error.
func Relimit(s *specs.Spec, r Resources, host Host) (warnings []string, err error) {
	limits, err := LinuxResources(r, host)
	if err != nil {
		return nil, err
	}
	s.Linux.Resources = layResources(s.Linux.Resources, limits)
	if r.OOMScoreAdj != 0 {
		score, warning := OOMScoreAdj(r, host)
		if s.Process.OOMScoreAdj = &score; warning != "" {
			warnings = append(warnings, warning)
		}
	}
	s.Version = LowestVersion(s)
	return warnings, nil
}

// layResources lays limits over others: a field that is set replaces the one below.
func layResources(below, over *specs.LinuxResources) *specs.LinuxResources {
	if below == nil {
		below = &specs.LinuxResources{}
	}
	out := *below
	if over.CPU != nil {
		cpu := specs.LinuxCPU{}
		if below.CPU != nil {
			cpu = *below.CPU
		}
		setPointer(&cpu.Shares, over.CPU.Shares)
		setPointer(&cpu.Quota, over.CPU.Quota)
		setPointer(&cpu.Period, over.CPU.Period)
		if over.CPU.Cpus != "" {
			cpu.Cpus = over.CPU.Cpus
		}
		if over.CPU.Mems != "" {
			cpu.Mems = over.CPU.Mems
		}
		out.CPU = &cpu
	}
	if over.Memory != nil {
		memory := specs.LinuxMemory{}
		if below.Memory != nil {
			memory = *below.Memory
		}
		setPointer(&memory.Limit, over.Memory.Limit)
		setPointer(&memory.Swap, over.Memory.Swap)
		out.Memory = &memory
	}
	if over.BlockIO != nil {
		out.BlockIO = over.BlockIO
	}
	if len(over.HugepageLimits) > 0 {
		sizes := map[string]bool{}
		for _, l := range over.HugepageLimits {
			sizes[l.Pagesize] = true
		}
		out.HugepageLimits = nil
		for _, l := range below.HugepageLimits {
			if !sizes[l.Pagesize] {
				out.HugepageLimits = append(out.HugepageLimits, l)
			}
		}
		out.HugepageLimits = append(out.HugepageLimits, over.HugepageLimits...)
	}
	if len(over.Unified) > 0 {
		out.Unified = maps.Clone(below.Unified)
		if out.Unified == nil {
			out.Unified = map[string]string{}
		}
		maps.Copy(out.Unified, over.Unified)
	}
	return &out
}

func setPointer[T any](to **T, value *T) {
	if value != nil {
		*to = value
	}
}

// PodLimits are those of a pod's cgroup: what its containers may use together, and the overhead. What the containers
// have no limit for has none.
func PodLimits(p *Pod) Resources {
	sum, over := p.Resources, p.Overhead
	sum.OOMScoreAdj = 0 // it is of processes
	if sum.CPUShares > 0 {
		sum.CPUShares = min(sum.CPUShares+over.CPUShares, maxShares)
	}
	if sum.CPUQuota > 0 && over.CPUQuota > 0 {
		sum.CPUQuota = addLimit(sum.CPUQuota, scaleQuota(over, sum))
	}
	if sum.Memory > 0 && over.Memory > 0 {
		sum.Memory = addLimit(sum.Memory, over.Memory)
		if sum.MemorySwap > 0 {
			sum.MemorySwap = addLimit(sum.MemorySwap, over.Memory)
		}
	}
	return sum
}

const (
	maxShares     = 262144 // the kernel takes no more (sched.h, MAX_SHARES)
	defaultPeriod = 100000 // microseconds, of the kernel
)

// scaleQuota is the quota of r for the period of other.
func scaleQuota(r, other Resources) int64 {
	from, to := r.CPUPeriod, other.CPUPeriod
	if from == 0 {
		from = defaultPeriod
	}
	if to == 0 {
		to = defaultPeriod
	}
	scaled := float64(r.CPUQuota) * float64(to) / float64(from)
	if scaled >= math.MaxInt64 {
		return math.MaxInt64
	}
	return int64(math.Ceil(scaled))
}

// addLimit adds two limits that are not negative, without overflow.
func addLimit(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}
