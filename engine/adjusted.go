package engine

import (
	"fmt"
	"maps"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/engine/spec"
)

// adjust brings in line with s, which plugins have changed, what is kept of it: namespaces that plugins set are no longer
// the pod's, and limits that this host cannot set are not asked of it. The answer is warnings.
func (m *madeSpec) adjust(s *specs.Spec, a Adjusted, host spec.Host) (warnings []string) {
	own := func(t specs.LinuxNamespaceType) bool { return !slices.Contains(a.Namespaces, t) }
	m.podNamespaces = slices.DeleteFunc(slices.Clone(m.podNamespaces), func(name string) bool {
		return name == "shm" && a.Shm || name != "shm" && !own(specs.LinuxNamespaceType(name))
	})
	if !own(specs.PIDNamespace) {
		m.pidTarget, m.ownPID = "", slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool {
			return n.Type == specs.PIDNamespace && n.Path == ""
		})
	}
	if score := s.Process.OOMScoreAdj; score != nil && *score < host.OOMScoreAdjMin {
		warnings = append(warnings, fmt.Sprintf("oom_score_adj %d of a plugin is raised to %d: lowering it needs CAP_SYS_RESOURCE, which this daemon lacks",
			*score, host.OOMScoreAdjMin))
		s.Process.OOMScoreAdj = &host.OOMScoreAdjMin
	}
	if r := s.Linux.Resources; r != nil && r.Memory != nil && r.Memory.Swap != nil && !host.SwapAccounting {
		memory := *r.Memory
		memory.Swap = nil
		r.Memory = &memory
	}
	m.cgroupsPath = s.Linux.CgroupsPath
	s.Version = spec.LowestVersion(s)
	return warnings
}

// resourcesIn are the limits that a spec sets.
func resourcesIn(s *specs.Spec) spec.Resources {
	var out spec.Resources
	if s.Process.OOMScoreAdj != nil {
		out.OOMScoreAdj = int64(*s.Process.OOMScoreAdj)
	}
	r := s.Linux.Resources
	if r == nil {
		return out
	}
	if c := r.CPU; c != nil {
		out.CPUShares, out.CPUQuota, out.CPUPeriod = value(c.Shares), value(c.Quota), value(c.Period)
		out.CPUs, out.Mems = c.Cpus, c.Mems
	}
	if m := r.Memory; m != nil {
		out.Memory, out.MemorySwap = value(m.Limit), value(m.Swap)
	}
	for _, h := range r.HugepageLimits {
		if out.HugepageLimit == nil {
			out.HugepageLimit = map[string]uint64{}
		}
		out.HugepageLimit[h.Pagesize] = h.Limit
	}
	out.Unified = maps.Clone(r.Unified)
	return out
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}
