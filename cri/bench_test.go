package cri

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// BenchmarkCalls measures what kubelet asks every second, through gRPC, with 100 pods of one container. cpu-us/op is the CPU
// time of client and server together, which says more than the wall time on a machine that does other things.
func BenchmarkCalls(b *testing.B) {
	f := newFront(b)
	ctx := b.Context()
	var container string
	for i := range 100 {
		config := podConfig(fmt.Sprintf("pod-%d", i))
		config.Labels = map[string]string{"io.kubernetes.pod.name": config.Metadata.Name, "io.kubernetes.pod.uid": config.Metadata.Uid}
		p, err := f.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: config})
		if err != nil {
			b.Fatal(err)
		}
		c, err := f.CreateContainer(ctx, &runtime.CreateContainerRequest{PodSandboxId: p.PodSandboxId, Config: containerConfig("main")})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := f.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
			b.Fatal(err)
		}
		container = c.ContainerId
	}
	for name, call := range map[string]func() error{
		"ListPodSandbox": func() error { _, err := f.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{}); return err },
		"ListContainers": func() error { _, err := f.ListContainers(ctx, &runtime.ListContainersRequest{}); return err },
		"ContainerStatus": func() error {
			_, err := f.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: container})
			return err
		},
		"Version": func() error { _, err := f.Version(ctx, &runtime.VersionRequest{}); return err },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			before := cpuTime()
			for b.Loop() {
				if err := call(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(cpuTime()-before)/float64(b.N), "cpu-us/op")
		})
	}
}

// cpuTime is what this process has used, in microseconds.
func cpuTime() int64 {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return u.Utime.Nano()/1000 + u.Stime.Nano()/1000
}
