package cri

import (
	"context"
	"slices"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/engine"
	"github.com/criserver/criserver/internal/cgstat"
)

// Metrics have the names, labels and meanings that cAdvisor gave them, so that the dashboards and rules that everyone has go on
// to work. A metric whose source the kernel does not have is left out rather than 0.

// commonLabels are the labels of every metric. Those of a pod have no container and image; its network has the pod's id as name.
var commonLabels = []string{"container", "id", "image", "name", "namespace", "pod"}

// source is what the values of metrics are taken from. container is nil for those of a pod.
type source struct {
	pod       *engine.PodStats
	container *engine.ContainerStats
	sample    *cgstat.Sample // never nil
	host      *hostInfo
}

// hostInfo is what is looked up once for all metrics.
type hostInfo struct {
	disk  *diskInfo // nil when it cannot be had
	names map[[2]uint32]string
}

// device is the name of a block device.
func (h *hostInfo) device(d cgstat.Device) string {
	key := [2]uint32{d.Major, d.Minor}
	name, known := h.names[key]
	if !known {
		name = cgstat.DeviceName(d.Major, d.Minor)
		h.names[key] = name
	}
	return name
}

// diskInfo is the filesystem of writable layers.
type diskInfo struct {
	device             string
	bytes              uint64
	inodes, inodesFree uint64
}

// family is a metric with all its label values.
type family struct {
	name, help string
	kind       runtime.MetricType
	// labels are those besides the common ones; emit gets their values in this order.
	labels []string
	values func(s *source, emit emitter)

	keys   []string // all label names, sorted
	places []int    // where in keys each of the common and then of the own labels is
}

// emitter takes a value, when it was read (0: now) and the values of the family's own labels.
type emitter func(value uint64, at int64, labels ...string)

// prepared works out the labels' order.
func prepared(all []family) []family {
	for i := range all {
		f := &all[i]
		unsorted := append(slices.Clone(commonLabels), f.labels...)
		f.keys = slices.Sorted(slices.Values(unsorted))
		for _, label := range unsorted {
			f.places = append(f.places, slices.Index(f.keys, label))
		}
	}
	return all
}

// ListMetricDescriptors implements RuntimeService.
func (s *runtimeService) ListMetricDescriptors(context.Context, *runtime.ListMetricDescriptorsRequest) (*runtime.ListMetricDescriptorsResponse, error) {
	answer := &runtime.ListMetricDescriptorsResponse{}
	for i := range families {
		f := &families[i]
		answer.Descriptors = append(answer.Descriptors, &runtime.MetricDescriptor{Name: f.name, Help: f.help, LabelKeys: f.keys})
	}
	return answer, nil
}

// ListPodSandboxMetrics implements RuntimeService.
func (s *runtimeService) ListPodSandboxMetrics(ctx context.Context, _ *runtime.ListPodSandboxMetricsRequest) (*runtime.ListPodSandboxMetricsResponse, error) {
	return &runtime.ListPodSandboxMetricsResponse{PodMetrics: s.listMetrics(ctx)}, ctx.Err()
}

func (s *runtimeService) listMetrics(ctx context.Context) []*runtime.PodSandboxMetrics {
	host := &hostInfo{disk: diskOf(s.root), names: map[[2]uint32]string{}}
	pods := s.engine.ListPodStats(ctx, engine.PodFilter{Owner: owner}, engine.DetailFull)
	all := make([]*runtime.PodSandboxMetrics, len(pods))
	for i := range pods {
		all[i] = podMetrics(&pods[i], host)
	}
	return all
}

func diskOf(dir string) *diskInfo {
	var fs unix.Statfs_t
	var st unix.Stat_t
	if unix.Statfs(dir, &fs) != nil || unix.Stat(dir, &st) != nil {
		return nil
	}
	return &diskInfo{
		device: cgstat.DeviceName(unix.Major(st.Dev), unix.Minor(st.Dev)),
		bytes:  fs.Blocks * uint64(fs.Frsize), inodes: fs.Files, inodesFree: fs.Ffree,
	}
}

func podMetrics(p *engine.PodStats, host *hostInfo) *runtime.PodSandboxMetrics {
	pod := p.Status.Pod
	answer := &runtime.PodSandboxMetrics{PodSandboxId: pod.ID}
	if len(p.Links) > 0 {
		labels := []string{"", cgroupID(pod.CgroupParent), "", pod.ID, pod.Namespace, pod.Name}
		answer.Metrics = appendMetrics(answer.Metrics, networkFamilies, &source{pod: p, sample: &cgstat.Sample{}, host: host}, labels)
	}
	if p.OwnCgroup {
		labels := []string{"", cgroupID(pod.CgroupParent), "", "", pod.Namespace, pod.Name}
		answer.Metrics = appendMetrics(answer.Metrics, cgroupFamilies, &source{pod: p, sample: p.Cgroup, host: host}, labels)
	}
	for i := range p.Containers {
		c := &p.Containers[i]
		labels := []string{c.Status.Container.Name, cgroupID(c.Status.CgroupsPath), imageSpec(c.Status.Container).Image, c.Status.Container.ID,
			pod.Namespace, pod.Name}
		src := &source{pod: p, container: c, sample: c.Cgroup, host: host}
		metrics := appendMetrics(nil, cgroupFamilies, src, labels)
		answer.ContainerMetrics = append(answer.ContainerMetrics, &runtime.ContainerMetrics{
			ContainerId: c.Status.Container.ID, Metrics: appendMetrics(metrics, containerFamilies, src, labels),
		})
	}
	return answer
}

// cgroupID is the cgroup beneath the root of hierarchies.
func cgroupID(cgroupsPath string) string {
	rel, err := cgstat.Relative(cgroupsPath)
	if err != nil {
		return cgroupsPath
	}
	return "/" + rel
}

func appendMetrics(all []*runtime.Metric, of []family, src *source, common []string) []*runtime.Metric {
	for i := range of {
		f := &of[i]
		f.values(src, func(value uint64, at int64, own ...string) {
			labels := make([]string, len(f.places))
			for j, place := range f.places {
				if j < len(common) {
					labels[place] = common[j]
				} else {
					labels[place] = own[j-len(common)]
				}
			}
			all = append(all, &runtime.Metric{Name: f.name, Timestamp: at, MetricType: f.kind, LabelValues: labels, Value: number(value)})
		})
	}
	return all
}
