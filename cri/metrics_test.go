package cri

import (
	"slices"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/internal/cgstat"
)

func TestMetricsGolden(t *testing.T) {
	host := &hostInfo{disk: &diskInfo{device: "/dev/vda1", bytes: 1 << 30, inodes: 1000, inodesFree: 900}, names: map[[2]uint32]string{{8, 0}: "/dev/sda"}}
	golden(t, "metrics-full.json", podMetrics(someStats(), host))
	bare := someStats()
	bare.Links, bare.OwnCgroup = nil, false
	bare.Containers[0].Cgroup, bare.Containers[0].Layer, bare.Containers[0].Processes = &cgstat.Sample{}, nil, nil
	golden(t, "metrics-bare.json", podMetrics(bare, &hostInfo{names: map[[2]uint32]string{}}))
	descriptors, err := (&runtimeService{}).ListMetricDescriptors(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "metric-descriptors.json", descriptors)
}

// Every metric is described, once, and has a value for each label of its description.
func TestMetricsFitDescriptors(t *testing.T) {
	described := map[string][]string{}
	descriptors, _ := (&runtimeService{}).ListMetricDescriptors(t.Context(), nil)
	for _, d := range descriptors.Descriptors {
		if described[d.Name] != nil || !slices.IsSorted(d.LabelKeys) || d.Help == "" {
			t.Errorf("%v is described twice, without help, or its labels are not sorted", d)
		}
		described[d.Name] = d.LabelKeys
	}
	all := podMetrics(someStats(), &hostInfo{disk: &diskInfo{}, names: map[[2]uint32]string{}})
	seen := map[string]bool{}
	for _, m := range slices.Concat(all.Metrics, all.ContainerMetrics[0].Metrics) {
		seen[m.Name] = true
		if keys := described[m.Name]; len(keys) == 0 || len(keys) != len(m.LabelValues) {
			t.Errorf("%s has %d values for labels %q", m.Name, len(m.LabelValues), keys)
		} else if m.LabelValues[slices.Index(keys, "pod")] != "web" || m.LabelValues[slices.Index(keys, "namespace")] != "default" {
			t.Errorf("%s: %q for %q", m.Name, m.LabelValues, keys)
		}
	}
	for name := range described {
		if !seen[name] {
			t.Errorf("%s never has a value", name)
		}
	}
}

func TestMetricsCall(t *testing.T) {
	f := newFront(t)
	pod, _ := f.running(t, "web")
	all, err := f.ListPodSandboxMetrics(t.Context(), &runtime.ListPodSandboxMetricsRequest{})
	if err != nil || len(all.PodMetrics) != 1 || all.PodMetrics[0].PodSandboxId != pod || len(all.PodMetrics[0].Metrics) == 0 {
		t.Errorf("%v, %v", all, err)
	}
}
