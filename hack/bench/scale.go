package main

import (
	"context"
	"fmt"
	"os"
	"time"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/e2e/rig"
)

// batch is how many starts make a point of the curve.
const batch = 50

// scale brings many pods up with ours, one after the other, and looks at how it fares with them. The others have stopped.
func (b *bench) scale(ctx context.Context, d *rig.Daemon, n int) error {
	start, err := meminfo()
	if err != nil {
		return err
	}
	began := time.Now()
	pods := make([]*pod, 0, n)
	for len(pods) < n {
		name := fmt.Sprintf("batch %d", len(pods)/batch)
		p, err := b.ours.up(ctx, name)
		if err != nil {
			return fmt.Errorf("with %d pods: %w", len(pods), err)
		}
		pods = append(pods, p)
		if len(pods)%batch == 0 {
			b.report.Curve = append(b.report.Curve, point{len(pods), *b.ours.times.ms(name, 0.5), *b.ours.times.ms(name, 0.95)})
		}
	}
	took := time.Since(began)
	time.Sleep(40 * settle)
	end, err := meminfo()
	if err != nil {
		return err
	}
	first, last := b.hundred(0), b.hundred(n/100-1)
	b.report.add(groupScale, "pods", "", ptr(float64(n)), nil)
	b.report.add(groupScale, "start, first hundred p50", "ms", first, nil)
	b.report.add(groupScale, "start, last hundred p50", "ms", last, nil)
	if first != nil && last != nil {
		b.report.add(groupScale, "start, last to first", "x", ptr(*last / *first), nil)
	}
	b.report.add(groupScale, "starts, one after the other", "1/s", ptr(float64(n)/took.Seconds()), nil)
	m, err := b.ours.memory()
	if err != nil {
		return err
	}
	b.report.add(groupScale, "daemon", "MiB", ptr(m.daemon/1024), nil)
	b.report.add(groupScale, "shim and keeper", "MiB", ptr(m.others/1024), nil)
	b.report.add(groupScale, "machine a pod (MemAvailable)", "KiB", ptr((start["MemAvailable"]-end["MemAvailable"])/float64(n)), nil)
	if err := b.askMany(ctx, n); err != nil {
		return err
	}
	if err := b.restart(ctx, d, pods); err != nil {
		return err
	}
	began = time.Now()
	err = b.ours.downs(ctx, pods, 10, "")
	b.report.add(groupScale, "all down, 10 at once", "1/s", ptr(float64(n)/time.Since(began).Seconds()), nil)
	return err
}

// hundred is the median start of the i-th hundred.
func (b *bench) hundred(i int) *float64 {
	var all []time.Duration
	for k := range 100 / batch {
		all = append(all, b.ours.times.took[fmt.Sprintf("batch %d", i*100/batch+k)]...)
	}
	return quantile(all, 0.5)
}

// askMany is list and stats with all up.
func (b *bench) askMany(ctx context.Context, n int) error {
	s := b.ours
	for _, call := range []struct {
		name string
		do   func() (int, error)
	}{
		{"ListPodSandbox", func() (int, error) {
			r, err := s.runtime.ListPodSandbox(ctx, &runtimev1.ListPodSandboxRequest{})
			return len(r.GetItems()), err
		}},
		{"ListContainers", func() (int, error) {
			r, err := s.runtime.ListContainers(ctx, &runtimev1.ListContainersRequest{})
			return len(r.GetContainers()), err
		}},
		{"ListContainerStats", func() (int, error) {
			r, err := s.runtime.ListContainerStats(ctx, &runtimev1.ListContainerStatsRequest{})
			return len(r.GetStats()), err
		}},
	} {
		for range 10 {
			err := s.times.time("many "+call.name, func() error {
				got, err := call.do()
				if err == nil && got != n {
					err = fmt.Errorf("it names %d of %d", got, n)
				}
				return err
			})
			if err != nil {
				return s.failed(err)
			}
		}
		b.report.add(groupScale, call.name, "ms", s.times.ms("many "+call.name, 0.5), nil)
	}
	return nil
}

// restart kills the daemon. It is back when it answers, and has reconciled when it says of all that they run, and one of
// them can be used.
func (b *bench) restart(ctx context.Context, d *rig.Daemon, pods []*pod) error {
	d.Kill()
	start := time.Now()
	if err := d.Start(ctx); err != nil {
		return err
	}
	b.report.add(groupScale, "restart until it answers", "ms", ptr(time.Since(start).Seconds()*1000), nil)
	for {
		running, err := b.running(ctx)
		if err != nil {
			return b.ours.failed(err)
		}
		if running == 2*len(pods) {
			break
		}
		if time.Since(start) > time.Minute {
			return fmt.Errorf("a minute after the restart %d of %d pods and containers run", running, 2*len(pods))
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := b.ours.exec(ctx, pods[len(pods)-1], ""); err != nil {
		return err
	}
	b.report.add(groupScale, "restart", "ms", ptr(time.Since(start).Seconds()*1000), nil)
	return nil
}

// running counts pods that are ready and containers that run.
func (b *bench) running(ctx context.Context) (n int, err error) {
	pods, err := b.ours.runtime.ListPodSandbox(ctx, &runtimev1.ListPodSandboxRequest{})
	if err != nil {
		return 0, err
	}
	containers, err := b.ours.runtime.ListContainers(ctx, &runtimev1.ListContainersRequest{})
	if err != nil {
		return 0, err
	}
	for _, p := range pods.Items {
		if p.State == runtimev1.PodSandboxState_SANDBOX_READY {
			n++
		}
	}
	for _, c := range containers.Containers {
		if c.State == runtimev1.ContainerState_CONTAINER_RUNNING {
			n++
		}
	}
	return n, nil
}

// alone stops all but ours.
func (b *bench) alone() {
	for _, s := range []*subject{b.peer, b.plugins, b.without} {
		if err := s.stop(); err != nil {
			fmt.Fprintf(os.Stderr, "bench: stop %s: %v\n", s.name, err)
		}
	}
}
