package cri

import (
	"context"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/engine"
	"github.com/criserver/criserver/engine/spec"
	"github.com/criserver/criserver/internal/cgstat"
)

// ContainerStats implements RuntimeService.
func (s *runtimeService) ContainerStats(ctx context.Context, r *runtime.ContainerStatsRequest) (*runtime.ContainerStatsResponse, error) {
	if r.GetContainerId() == "" {
		return nil, required("container_id")
	}
	stats, err := s.engine.ContainerStats(ctx, r.GetContainerId())
	if err != nil {
		return nil, err
	}
	return &runtime.ContainerStatsResponse{Stats: s.containerStats(&stats)}, nil
}

// ListContainerStats implements RuntimeService.
func (s *runtimeService) ListContainerStats(ctx context.Context, r *runtime.ListContainerStatsRequest) (*runtime.ListContainerStatsResponse, error) {
	return &runtime.ListContainerStatsResponse{Stats: s.listContainerStats(ctx, r.GetFilter())}, ctx.Err()
}

func (s *runtimeService) listContainerStats(ctx context.Context, f *runtime.ContainerStatsFilter) []*runtime.ContainerStats {
	all := s.engine.ListContainerStats(ctx, engine.ContainerFilter{
		ID: f.GetId(), PodID: f.GetPodSandboxId(), Labels: f.GetLabelSelector(), Owner: owner,
	})
	out := make([]*runtime.ContainerStats, len(all))
	for i := range all {
		out[i] = s.containerStats(&all[i])
	}
	return out
}

// PodSandboxStats implements RuntimeService.
func (s *runtimeService) PodSandboxStats(ctx context.Context, r *runtime.PodSandboxStatsRequest) (*runtime.PodSandboxStatsResponse, error) {
	if r.GetPodSandboxId() == "" {
		return nil, required("pod_sandbox_id")
	}
	stats, err := s.engine.PodStats(ctx, r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	return &runtime.PodSandboxStatsResponse{Stats: s.podStats(&stats)}, nil
}

// ListPodSandboxStats implements RuntimeService.
func (s *runtimeService) ListPodSandboxStats(ctx context.Context, r *runtime.ListPodSandboxStatsRequest) (*runtime.ListPodSandboxStatsResponse, error) {
	return &runtime.ListPodSandboxStatsResponse{Stats: s.listPodStats(ctx, r.GetFilter())}, ctx.Err()
}

func (s *runtimeService) listPodStats(ctx context.Context, f *runtime.PodSandboxStatsFilter) []*runtime.PodSandboxStats {
	all := s.engine.ListPodStats(ctx, engine.PodFilter{ID: f.GetId(), Labels: f.GetLabelSelector(), Owner: owner}, engine.DetailBasic)
	out := make([]*runtime.PodSandboxStats, len(all))
	for i := range all {
		out[i] = s.podStats(&all[i])
	}
	return out
}

// containerStats translates. Swap and IO are left out where the kernel does not account for them.
func (s *runtimeService) containerStats(c *engine.ContainerStats) *runtime.ContainerStats {
	stats := &runtime.ContainerStats{Attributes: containerAttributes(c.Status.Container)}
	if c.Layer != nil {
		stats.WritableLayer = filesystem(s.root, c.Layer.At, c.Layer.Bytes, c.Layer.Inodes)
	}
	if c.Cgroup != nil {
		stats.Cpu, stats.Memory = cpuUsage(c.Cgroup, c.NanoCores), memoryUsage(c.Cgroup)
		stats.Swap, stats.Io = swapUsage(c.Cgroup), ioUsage(c.Cgroup)
	}
	return stats
}

func containerAttributes(c spec.Container) *runtime.ContainerAttributes {
	return &runtime.ContainerAttributes{Id: c.ID, Metadata: containerMetadata(c), Labels: c.Labels, Annotations: c.Annotations}
}

func (s *runtimeService) podStats(p *engine.PodStats) *runtime.PodSandboxStats {
	pod := p.Status.Pod
	linux := &runtime.LinuxPodSandboxStats{Network: networkUsage(p)}
	if p.Cgroup != nil {
		linux.Cpu, linux.Memory, linux.Io = cpuUsage(p.Cgroup, p.NanoCores), memoryUsage(p.Cgroup), ioUsage(p.Cgroup)
		linux.Process = &runtime.ProcessUsage{Timestamp: p.Cgroup.At.UnixNano(), ProcessCount: number(p.Processes)}
	}
	for i := range p.Containers {
		linux.Containers = append(linux.Containers, s.containerStats(&p.Containers[i]))
	}
	return &runtime.PodSandboxStats{
		Attributes: &runtime.PodSandboxAttributes{Id: pod.ID, Metadata: podMetadata(pod), Labels: pod.Labels, Annotations: pod.Annotations},
		Linux:      linux,
	}
}

func cpuUsage(s *cgstat.Sample, nanoCores uint64) *runtime.CpuUsage {
	return &runtime.CpuUsage{
		Timestamp: s.At.UnixNano(), UsageCoreNanoSeconds: number(s.CPU.Usage), UsageNanoCores: number(nanoCores), Psi: psi(s.CPUPressure),
	}
}

func memoryUsage(s *cgstat.Sample) *runtime.MemoryUsage {
	m := s.Memory
	if m == nil {
		return nil
	}
	usage := &runtime.MemoryUsage{
		Timestamp: s.At.UnixNano(), WorkingSetBytes: number(m.WorkingSet()), UsageBytes: number(m.Usage), RssBytes: number(m.Anon),
		PageFaults: number(m.PageFaults), MajorPageFaults: number(m.MajorFaults), Psi: psi(s.MemoryPressure),
	}
	if available, limited := m.Available(); limited {
		usage.AvailableBytes = number(available)
	}
	return usage
}

func swapUsage(s *cgstat.Sample) *runtime.SwapUsage {
	m := s.Memory
	if m == nil || !m.HasSwap {
		return nil
	}
	usage := &runtime.SwapUsage{Timestamp: s.At.UnixNano(), SwapUsageBytes: number(m.Swap)}
	if limit, limited := m.SwapAllowed(); limited {
		usage.SwapAvailableBytes = number(limit - min(limit, m.Swap))
	}
	return usage
}

// ioUsage has nothing but the pressure.
func ioUsage(s *cgstat.Sample) *runtime.IoUsage {
	if s.IOPressure == nil {
		return nil
	}
	return &runtime.IoUsage{Timestamp: s.At.UnixNano(), Psi: psi(s.IOPressure)}
}

func psi(p *cgstat.Pressure) *runtime.PsiStats {
	if p == nil {
		return nil
	}
	return &runtime.PsiStats{Full: psiData(p.Full), Some: psiData(p.Some)}
}

func psiData(s cgstat.Stall) *runtime.PsiData {
	return &runtime.PsiData{Total: s.Total, Avg10: s.Avg10, Avg60: s.Avg60, Avg300: s.Avg300}
}

func networkUsage(p *engine.PodStats) *runtime.NetworkUsage {
	if len(p.Links) == 0 {
		return nil
	}
	usage := &runtime.NetworkUsage{Timestamp: p.LinksAt.UnixNano()}
	for i, l := range p.Links {
		one := &runtime.NetworkInterfaceUsage{
			Name: l.Name, RxBytes: number(l.RxBytes), RxErrors: number(l.RxErrors), TxBytes: number(l.TxBytes), TxErrors: number(l.TxErrors),
		}
		if i == 0 {
			usage.DefaultInterface = one
		} else {
			usage.Interfaces = append(usage.Interfaces, one)
		}
	}
	return usage
}

func number(n uint64) *runtime.UInt64Value { return &runtime.UInt64Value{Value: n} }

// filesystem is the usage of a directory's filesystem.
func filesystem(mountpoint string, at time.Time, bytes, inodes uint64) *runtime.FilesystemUsage {
	return &runtime.FilesystemUsage{
		Timestamp: at.UnixNano(), FsId: &runtime.FilesystemIdentifier{Mountpoint: mountpoint},
		UsedBytes: number(bytes), InodesUsed: number(inodes),
	}
}
