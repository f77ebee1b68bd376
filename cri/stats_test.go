package cri

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/cni"
	"github.com/criserver/criserver/engine"
	"github.com/criserver/criserver/engine/spec"
	"github.com/criserver/criserver/internal/cgstat"
)

// aSample has another value in each field.
func aSample() *cgstat.Sample {
	at := time.Unix(1000, 5)
	stall := func(n uint64) cgstat.Stall {
		return cgstat.Stall{Avg10: float64(n) + .1, Avg60: float64(n) + .2, Avg300: float64(n) + .3, Total: n * 1e9}
	}
	return &cgstat.Sample{
		At:  at,
		CPU: cgstat.CPU{Usage: 11e9, User: 8e9, System: 3e9, Periods: 21, Throttled: 22, ThrottledTime: 23e9},
		Memory: &cgstat.Memory{
			Usage: 3100, Limit: 3900, Anon: 3200, File: 3300, Mapped: 3400, ActiveFile: 3500, InactiveFile: 360,
			Swap: 370, SwapLimit: 380, HasSwap: true, SwapLimited: true, PageFaults: 39, MajorFaults: 40, OwnPageFaults: 41,
			OwnMajorFaults: 42, Peak: 4300, Kernel: 44, Failures: 45,
		},
		CPUPressure: &cgstat.Pressure{Some: stall(51), Full: stall(52)}, MemoryPressure: &cgstat.Pressure{Some: stall(53), Full: stall(54)},
		IOPressure: &cgstat.Pressure{Some: stall(55), Full: stall(56)},
		Pids:       &cgstat.Pids{Current: 61, Limit: 62},
		Devices:    []cgstat.Device{{Major: 8, Minor: 0, ReadBytes: 71, WriteBytes: 72, Reads: 73, Writes: 74}},
		HugeTLB:    []cgstat.HugeTLB{{PageSize: "2MB", Usage: 81, Peak: 82, Failures: 83}},
		OOMKills:   91,
	}
}

func someStats() *engine.PodStats {
	pod := spec.Pod{ID: "pod1", Name: "web", Namespace: "default", UID: "u1", Labels: map[string]string{"a": "b"},
		Annotations: map[string]string{"c": "d"}, Owner: owner, CgroupParent: "/kubepods/podu1"}
	container := spec.Container{
		ID: "c1", PodID: "pod1", Name: "main", Image: "busybox", ImageRef: "busybox@sha256:22", Labels: map[string]string{"e": "f"},
		Resources: spec.Resources{CPUPeriod: 100000, CPUQuota: 50000, CPUShares: 512, Memory: 3900, MemorySwap: 4280},
	}
	return &engine.PodStats{
		Status: engine.PodStatus{Pod: pod, State: engine.PodReady, CreatedAt: time.Unix(900, 0)}, Cgroup: aSample(), NanoCores: 12, OwnCgroup: true,
		Processes: 7, LinksAt: time.Unix(1001, 0),
		Links: []cni.LinkStats{
			{Name: "eth0", RxBytes: 101, TxBytes: 102, RxPackets: 103, TxPackets: 104, RxErrors: 105, TxErrors: 106, RxDropped: 107, TxDropped: 108},
			{Name: "net1", RxBytes: 111},
		},
		Containers: []engine.ContainerStats{{
			Status: engine.ContainerStatus{Container: container, State: engine.ContainerRunning, StartedAt: time.Unix(950, 0), CgroupsPath: "/kubepods/podu1/c1"},
			Cgroup: aSample(), NanoCores: 13, Layer: &engine.LayerUsage{Bytes: 4096, Inodes: 3, At: time.Unix(999, 0)},
			Processes: &engine.ProcessUsage{Processes: 121, Threads: 122, Descriptors: 123, Sockets: 124, MaxOpenFiles: 125, ThreadsMax: 126},
		}},
	}
}

func TestStatsGolden(t *testing.T) {
	s := &runtimeService{root: "/var/lib/criserver"}
	golden(t, "stats-full.json", s.podStats(someStats()))
	// What a kernel or a pod lacks is left out, not 0.
	bare := someStats()
	bare.Links, bare.Cgroup = nil, &cgstat.Sample{At: time.Unix(1000, 5), CPU: cgstat.CPU{Usage: 1}}
	bare.Containers[0].Cgroup, bare.Containers[0].Layer = bare.Cgroup, nil
	golden(t, "stats-bare.json", s.podStats(bare))
}

func TestStatsCalls(t *testing.T) {
	f := newFront(t)
	ctx := t.Context()
	pod, container := f.running(t, "web")
	for what, call := range map[string]func() error{
		"container_id ContainerStats":    func() error { _, err := f.ContainerStats(ctx, &runtime.ContainerStatsRequest{}); return err },
		"pod_sandbox_id PodSandboxStats": func() error { _, err := f.PodSandboxStats(ctx, &runtime.PodSandboxStatsRequest{}); return err },
	} {
		field, _, _ := strings.Cut(what, " ")
		wantCode(t, what, call(), codes.InvalidArgument, field+": required")
	}
	_, err := f.ContainerStats(ctx, &runtime.ContainerStatsRequest{ContainerId: "nope"})
	wantCode(t, "an unknown container", err, codes.NotFound, "nope")
	_, err = f.PodSandboxStats(ctx, &runtime.PodSandboxStatsRequest{PodSandboxId: "nope"})
	wantCode(t, "an unknown pod", err, codes.NotFound, "nope")

	// Its process is made up, so there is no cgroup: it has what else there is, and is in no list.
	c, err := f.ContainerStats(ctx, &runtime.ContainerStatsRequest{ContainerId: container})
	if err != nil || c.Stats.Attributes.Id != container || c.Stats.Cpu != nil || c.Stats.WritableLayer.GetUsedBytes().GetValue() != 4096 {
		t.Errorf("%v, %v", c, err)
	}
	list, err := f.ListContainerStats(ctx, &runtime.ListContainerStatsRequest{})
	if err != nil || len(list.Stats) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	for name, tt := range map[string]struct {
		filter *runtime.PodSandboxStatsFilter
		want   int
	}{
		"all":         {nil, 1},
		"id":          {&runtime.PodSandboxStatsFilter{Id: pod[:9]}, 1},
		"other id":    {&runtime.PodSandboxStatsFilter{Id: "zz"}, 0},
		"label":       {&runtime.PodSandboxStatsFilter{LabelSelector: map[string]string{"app": "web"}}, 1},
		"other label": {&runtime.PodSandboxStatsFilter{LabelSelector: map[string]string{"app": "x"}}, 0},
	} {
		list, err := f.ListPodSandboxStats(ctx, &runtime.ListPodSandboxStatsRequest{Filter: tt.filter})
		if err != nil || len(list.Stats) != tt.want {
			t.Errorf("%s: %v, %v", name, list, err)
		}
	}
	fs, err := f.images.ImageFsInfo(ctx, &runtime.ImageFsInfoRequest{})
	if err != nil || len(fs.ContainerFilesystems) != 1 || fs.ContainerFilesystems[0].UsedBytes.Value != 4096 ||
		fs.ContainerFilesystems[0].FsId.Mountpoint != fs.ImageFilesystems[0].FsId.Mountpoint {
		t.Errorf("%v, %v", fs, err)
	}
}
