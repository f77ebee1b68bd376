package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// float is written with two places, so that results can be compared by eye.
type float float64

// MarshalJSON implements json.Marshaler.
func (f float) MarshalJSON() ([]byte, error) { return fmt.Appendf(nil, "%.2f", float64(f)), nil }

// series are the times of one kind of call, ms.
type series struct {
	Name string `json:"name"`
	N    int    `json:"n"`
	Min  float  `json:"min"`
	P50  float  `json:"p50"`
	P95  float  `json:"p95"`
	Max  float  `json:"max"`
}

func newSeries(name string, took []time.Duration) series {
	slices.Sort(took)
	at := func(q float64) float { // the nearest rank
		if len(took) == 0 {
			return 0
		}
		return float(took[int(q*float64(len(took)-1)+0.5)].Seconds() * 1000)
	}
	return series{name, len(took), at(0), at(0.5), at(0.95), at(1)}
}

// times collects durations by the name of what was done. It may be used concurrently.
type times struct {
	mu    sync.Mutex
	names []string // in the order of their first use
	took  map[string][]time.Duration
}

func (t *times) add(name string, d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.took == nil {
		t.took = map[string][]time.Duration{}
	}
	if _, known := t.took[name]; !known {
		t.names = append(t.names, name)
	}
	t.took[name] = append(t.took[name], d)
}

// time does something and notes how long it took, unless it failed.
func (t *times) time(name string, do func() error) error {
	start := time.Now()
	err := do()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	t.add(name, time.Since(start))
	return nil
}

type bench struct {
	options
	runtime runtimev1.RuntimeServiceClient
	images  runtimev1.ImageServiceClient
	logs    string
	memory  func() map[string]uint64 // nil: not ours to look at
	number  atomic.Int64
	times   times
}

// ownPID gives each container processes of its own, as a kubelet asks by default.
var ownPID = &runtimev1.NamespaceOption{Pid: runtimev1.NamespaceMode_CONTAINER}

// pod is one pod with one container.
type pod struct {
	id, container string
	config        *runtimev1.PodSandboxConfig
}

func (b *bench) measure(ctx context.Context) (*report, error) {
	version, err := b.runtime.Version(ctx, &runtimev1.VersionRequest{})
	if err != nil {
		return nil, err
	}
	r := newReport(b.options, version.RuntimeName+" "+version.RuntimeVersion)
	if _, err := b.images.PullImage(ctx, &runtimev1.PullImageRequest{Image: &runtimev1.ImageSpec{Image: b.image}}); err != nil {
		return nil, err
	}
	if err := b.warmUp(ctx); err != nil {
		return nil, err
	}
	if err := b.serial(ctx); err != nil {
		return nil, err
	}
	if err := b.many(ctx, r); err != nil {
		return nil, err
	}
	for _, name := range b.times.names {
		r.Series = append(r.Series, newSeries(name, b.times.took[name]))
	}
	return r, nil
}

// warmUp makes what is made once, and is not counted.
func (b *bench) warmUp(ctx context.Context) error {
	for range 3 {
		p, err := b.up(ctx, "")
		if err = errors.Join(err, b.exec(ctx, p)); err != nil {
			return err
		}
		if err := b.down(ctx, p, ""); err != nil {
			return err
		}
	}
	b.times = times{}
	return nil
}

// serial measures one pod after the other, and then execs in one of them.
func (b *bench) serial(ctx context.Context) error {
	for range b.pods {
		p, err := b.up(ctx, "pod up")
		if err != nil {
			return err
		}
		if err := b.down(ctx, p, "pod down"); err != nil {
			return err
		}
		time.Sleep(20 * time.Millisecond) // starts that stand alone: what is done behind must not count for the next
	}
	p, err := b.up(ctx, "")
	if err != nil {
		return err
	}
	for range b.execs {
		if err := b.times.time("ExecSync", func() error { return b.exec(ctx, p) }); err != nil {
			return err
		}
	}
	return b.down(ctx, p, "")
}

// many measures with all pods up, several calls at once.
func (b *bench) many(ctx context.Context, r *report) error {
	suffix := fmt.Sprintf(", %d at once", b.concurrency)
	up := make([]*pod, b.pods)
	start := time.Now()
	err := each(b.pods, b.concurrency, func(i int) (err error) {
		up[i], err = b.up(ctx, "pod up"+suffix)
		return err
	})
	if err != nil {
		return err
	}
	r.PodsPerSec["up"] = float(float64(b.pods) / time.Since(start).Seconds())
	if b.memory != nil {
		r.MemoryKiB = b.memory()
	}
	err = each(b.execs, b.concurrency, func(i int) error {
		return b.times.time("ExecSync"+suffix, func() error { return b.exec(ctx, up[i%len(up)]) })
	})
	if err != nil {
		return err
	}
	for range 50 {
		err := b.times.time(fmt.Sprintf("ListContainers, %d pods", b.pods), func() error {
			_, err := b.runtime.ListContainers(ctx, &runtimev1.ListContainersRequest{})
			return err
		})
		if err != nil {
			return err
		}
	}
	start = time.Now()
	err = each(len(up), b.concurrency, func(i int) error { return b.down(ctx, up[i], "pod down"+suffix) })
	r.PodsPerSec["down"] = float(float64(b.pods) / time.Since(start).Seconds())
	return err
}

// up brings a pod with a sleeping container up. With a name the whole is noted under it; the single calls are noted for
// the serial measurement only.
func (b *bench) up(ctx context.Context, name string) (*pod, error) {
	number := b.number.Add(1)
	p := &pod{config: &runtimev1.PodSandboxConfig{
		Metadata: &runtimev1.PodSandboxMetadata{
			Name: fmt.Sprintf("bench-%d", number), Namespace: "bench", Uid: fmt.Sprintf("bench-%d-%d", os.Getpid(), number),
		},
		LogDirectory: filepath.Join(b.logs, fmt.Sprint(number)),
		Linux:        &runtimev1.LinuxPodSandboxConfig{SecurityContext: &runtimev1.LinuxSandboxSecurityContext{NamespaceOptions: ownPID}},
	}}
	if err := os.MkdirAll(p.config.LogDirectory, 0o755); err != nil {
		return nil, err
	}
	part := func(call string) string {
		if name == "pod up" {
			return "  " + call
		}
		return ""
	}
	return p, b.step(name, func() error {
		err := b.step(part("RunPodSandbox"), func() error {
			resp, err := b.runtime.RunPodSandbox(ctx, &runtimev1.RunPodSandboxRequest{Config: p.config})
			p.id = resp.GetPodSandboxId()
			return err
		})
		if err != nil {
			return err
		}
		err = b.step(part("CreateContainer"), func() error {
			resp, err := b.runtime.CreateContainer(ctx, &runtimev1.CreateContainerRequest{
				PodSandboxId: p.id, SandboxConfig: p.config, Config: &runtimev1.ContainerConfig{
					Metadata: &runtimev1.ContainerMetadata{Name: "sleep"}, Image: &runtimev1.ImageSpec{Image: b.image},
					Command: []string{"sleep", "3600"}, LogPath: "sleep.log", Linux: &runtimev1.LinuxContainerConfig{
						SecurityContext: &runtimev1.LinuxContainerSecurityContext{NamespaceOptions: ownPID},
					},
				},
			})
			p.container = resp.GetContainerId()
			return err
		})
		if err != nil {
			return err
		}
		return b.step(part("StartContainer"), func() error {
			_, err := b.runtime.StartContainer(ctx, &runtimev1.StartContainerRequest{ContainerId: p.container})
			return err
		})
	})
}

// down stops and removes the pod. The container is killed at once, as it is process 1 and sleeps on.
func (b *bench) down(ctx context.Context, p *pod, name string) error {
	return b.step(name, func() error {
		_, err := b.runtime.StopContainer(ctx, &runtimev1.StopContainerRequest{ContainerId: p.container})
		if err != nil {
			return err
		}
		if _, err := b.runtime.StopPodSandbox(ctx, &runtimev1.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
			return err
		}
		_, err = b.runtime.RemovePodSandbox(ctx, &runtimev1.RemovePodSandboxRequest{PodSandboxId: p.id})
		return err
	})
}

func (b *bench) exec(ctx context.Context, p *pod) error {
	resp, err := b.runtime.ExecSync(ctx, &runtimev1.ExecSyncRequest{ContainerId: p.container, Cmd: []string{"true"}, Timeout: 10})
	if err == nil && resp.ExitCode != 0 {
		err = fmt.Errorf("exit code %d: %s", resp.ExitCode, resp.Stderr)
	}
	return err
}

// step times what has a name and just does the rest.
func (b *bench) step(name string, do func() error) error {
	if name == "" {
		return do()
	}
	return b.times.time(name, do)
}

// each calls do for 0 to n-1, so many at a time, waits, and answers with all errors.
func each(n, concurrency int, do func(i int) error) error {
	var (
		wait sync.WaitGroup
		mu   sync.Mutex
		all  error
	)
	slots := make(chan struct{}, concurrency)
	for i := range n {
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			if err := do(i); err != nil {
				mu.Lock()
				all = errors.Join(all, err)
				mu.Unlock()
			}
		})
	}
	wait.Wait()
	return all
}
