package cri

import (
	"context"
	"regexp"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/engine/spec"
)

// UpdatePodSandboxResources implements RuntimeService. kubelet calls it after it has set the limits of the pod's cgroup.
func (s *runtimeService) UpdatePodSandboxResources(ctx context.Context, r *runtime.UpdatePodSandboxResourcesRequest) (*runtime.UpdatePodSandboxResourcesResponse, error) {
	if r.GetPodSandboxId() == "" {
		return nil, required("pod_sandbox_id")
	}
	overhead, err := givenResources("overhead", r.GetOverhead())
	if err != nil {
		return nil, err
	}
	resources, err := givenResources("resources", r.GetResources())
	if err != nil {
		return nil, err
	}
	return &runtime.UpdatePodSandboxResourcesResponse{}, s.engine.UpdatePod(ctx, r.GetPodSandboxId(), resources, overhead)
}

// givenResources is nil for a message that was not given.
func givenResources(at string, r *runtime.LinuxContainerResources) (*spec.Resources, error) {
	if r == nil {
		return nil, nil
	}
	resources, err := resourcesOf(at, r)
	return &resources, err
}

var (
	pageSize = regexp.MustCompile(`^[1-9][0-9]*[KMGT]B$`)
	// cpus is the list format of the kernel (cpuset(7)).
	cpus = regexp.MustCompile(`^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$`)
)

func cpuList(field, list string) error {
	if list != "" && !cpus.MatchString(list) {
		return invalid(field, "%q is not a list such as 0-3,7", list)
	}
	return nil
}

func resourcesOf(at string, r *runtime.LinuxContainerResources) (spec.Resources, error) {
	for field, value := range map[string]int64{"cpu_period": r.GetCpuPeriod(), "cpu_shares": r.GetCpuShares()} {
		if value < 0 {
			return spec.Resources{}, invalid(at+"."+field, "%d is negative", value)
		}
	}
	for field, value := range map[string]int64{
		"cpu_quota": r.GetCpuQuota(), "memory_limit_in_bytes": r.GetMemoryLimitInBytes(), "memory_swap_limit_in_bytes": r.GetMemorySwapLimitInBytes(),
	} {
		if value < -1 {
			return spec.Resources{}, invalid(at+"."+field, "%d is less than -1, which is unlimited", value)
		}
	}
	if adj := r.GetOomScoreAdj(); adj < -1000 || adj > 1000 {
		return spec.Resources{}, invalid(at+".oom_score_adj", "%d is not between -1000 and 1000", adj)
	}
	resources := spec.Resources{
		CPUShares: uint64(r.GetCpuShares()), CPUQuota: r.GetCpuQuota(), CPUPeriod: uint64(r.GetCpuPeriod()),
		CPUs: r.GetCpusetCpus(), Mems: r.GetCpusetMems(),
		Memory: r.GetMemoryLimitInBytes(), MemorySwap: r.GetMemorySwapLimitInBytes(),
		OOMScoreAdj: r.GetOomScoreAdj(), Unified: r.GetUnified(),
	}
	for field, list := range map[string]string{"cpuset_cpus": resources.CPUs, "cpuset_mems": resources.Mems} {
		if err := cpuList(at+"."+field, list); err != nil {
			return spec.Resources{}, err
		}
	}
	for key := range resources.Unified {
		if key == "" || strings.ContainsAny(key, "/\x00") || !strings.Contains(key, ".") {
			return spec.Resources{}, invalid(at+".unified", "%q is not the name of a cgroup file", key)
		}
	}
	for _, limit := range r.GetHugepageLimits() {
		if limit.GetPageSize() == "" {
			return spec.Resources{}, required(at + ".hugepage_limits.page_size")
		}
		if !pageSize.MatchString(limit.GetPageSize()) {
			return spec.Resources{}, invalid(at+".hugepage_limits.page_size", "%q is not of the form 2MB or 1GB", limit.GetPageSize())
		}
		if resources.HugepageLimit == nil {
			resources.HugepageLimit = map[string]uint64{}
		}
		resources.HugepageLimit[limit.GetPageSize()] = limit.GetLimit()
	}
	return resources, nil
}
