package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// idle measures memory with pods that do nothing, and list, status and stats, which are asked call by call in turn.
// untilIdle is how long after the last start pods are idle: runtimes give memory back by then.
const untilIdle = 25 * time.Second

func (b *bench) idleness(ctx context.Context) error {
	const concurrency = 10
	pods, used, slopes := map[*subject][]*pod{}, map[*subject]memory{}, map[*subject]slope{}
	for _, s := range b.both() {
		var err error
		if pods[s], err = s.ups(ctx, b.idle, concurrency, ""); err != nil {
			return err
		}
	}
	time.Sleep(untilIdle)
	idleCPU := map[*subject]*float64{}
	for _, s := range b.both() {
		var err error
		if used[s], err = s.memory(); err != nil {
			return err
		}
		const wait = 2 * time.Second
		cpu, err := s.using(func() error { time.Sleep(wait); return nil })
		if err != nil {
			return err
		}
		idleCPU[s] = ptr(cpu / wait.Seconds())
	}
	if err := b.ask(ctx, pods); err != nil {
		return err
	}
	for _, s := range b.both() {
		var err error
		if b.most > 0 {
			slopes[s], err = b.slope(ctx, s, used[s])
		}
		if err == nil {
			err = s.downs(ctx, pods[s], concurrency, "")
		}
		if err != nil {
			return err
		}
	}
	n := float64(b.idle)
	ours, peer := used[b.ours], used[b.peer]
	b.report.add(groupMemory, "a pod, no daemon", "KiB", ptr(ours.others/n), ptr(peer.others/n))
	b.report.add(groupMemory, "daemon alone", "MiB", ptr(ours.daemon/1024), ptr(peer.daemon/1024))
	b.report.add(groupMemory, fmt.Sprintf("all at %d pods", b.idle), "MiB", ptr((ours.daemon+ours.others)/1024), ptr((peer.daemon+peer.others)/1024))
	b.report.add(groupMemory, "CPU while idle, a second", "ms", idleCPU[b.ours], idleCPU[b.peer])
	if b.most > 0 {
		o, p := slopes[b.ours], slopes[b.peer]
		b.report.add(groupMemory, "slope: processes of the runtime", "KiB", ptr(o.runtime), ptr(p.runtime))
		b.report.add(groupMemory, "slope: kernel (slab, stacks, page tables)", "KiB", ptr(o.kernel), ptr(p.kernel))
		b.report.add(groupMemory, "slope: machine (MemAvailable)", "KiB", ptr(o.machine), ptr(p.machine))
	}
	return nil
}

// slope is what each further pod takes, KiB: in the runtime's processes, in the kernel, and of all memory of the machine.
// The last holds the workload too, and what of it is shared but once.
type slope struct{ runtime, kernel, machine float64 }

func (b *bench) slope(ctx context.Context, s *subject, before memory) (slope, error) {
	start, err := meminfo()
	if err != nil {
		return slope{}, err
	}
	pods, err := s.ups(ctx, b.most-b.idle, 10, "")
	if err != nil {
		return slope{}, err
	}
	time.Sleep(40 * settle)
	end, err := meminfo()
	if err != nil {
		return slope{}, err
	}
	after, err := s.memory()
	if err != nil {
		return slope{}, err
	}
	n := float64(len(pods))
	at := slope{
		runtime: (after.daemon + after.others - before.daemon - before.others) / n,
		machine: (start["MemAvailable"] - end["MemAvailable"]) / n,
	}
	for _, name := range []string{"Slab", "KernelStack", "PageTables", "Percpu"} {
		at.kernel += (end[name] - start[name]) / n
	}
	return at, s.downs(ctx, pods, 10, "")
}

// meminfo reads /proc/meminfo, KiB.
func meminfo() (map[string]float64, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil, err
	}
	all := map[string]float64{}
	for line := range strings.Lines(string(text)) {
		var value float64
		name, rest, _ := strings.Cut(line, ":")
		if _, err := fmt.Sscan(rest, &value); err == nil {
			all[name] = value
		}
	}
	return all, nil
}

// ask measures what is asked of a node all the time, with pods on it.
func (b *bench) ask(ctx context.Context, pods map[*subject][]*pod) error {
	calls := []struct {
		name string
		do   func(s *subject, p *pod) error
	}{
		{"ListPodSandbox", func(s *subject, _ *pod) error {
			_, err := s.runtime.ListPodSandbox(ctx, &runtimev1.ListPodSandboxRequest{})
			return err
		}},
		{"ListContainers", func(s *subject, _ *pod) error {
			_, err := s.runtime.ListContainers(ctx, &runtimev1.ListContainersRequest{})
			return err
		}},
		{"PodSandboxStatus", func(s *subject, p *pod) error {
			_, err := s.runtime.PodSandboxStatus(ctx, &runtimev1.PodSandboxStatusRequest{PodSandboxId: p.id})
			return err
		}},
		{"ContainerStatus", func(s *subject, p *pod) error {
			_, err := s.runtime.ContainerStatus(ctx, &runtimev1.ContainerStatusRequest{ContainerId: p.container})
			return err
		}},
		{"ListContainerStats", func(s *subject, _ *pod) error {
			_, err := s.runtime.ListContainerStats(ctx, &runtimev1.ListContainerStatsRequest{})
			return err
		}},
		{"ListPodSandboxStats", func(s *subject, _ *pod) error {
			_, err := s.runtime.ListPodSandboxStats(ctx, &runtimev1.ListPodSandboxStatsRequest{})
			return err
		}},
	}
	for _, call := range calls {
		for i := range b.asks {
			for _, s := range b.both() {
				p := pods[s][i%len(pods[s])]
				if err := s.times.time(call.name, func() error { return call.do(s, p) }); err != nil {
					return s.failed(err)
				}
			}
		}
		b.report.add(groupAsk, call.name, "ms", b.ours.times.ms(call.name, 0.5), b.peer.times.ms(call.name, 0.5))
	}
	return nil
}
