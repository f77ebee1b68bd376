package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (c *container) stats(t testing.TB) *runtimev1.ContainerStats {
	t.Helper()
	ctx, cancel := callContext()
	defer cancel()
	resp, err := c.p.n.d.Runtime.ContainerStats(ctx, &runtimev1.ContainerStatsRequest{ContainerId: c.id})
	if err != nil {
		t.Fatalf("ContainerStats: %v", err)
	}
	return resp.Stats
}

func (p *pod) stats(t testing.TB) *runtimev1.PodSandboxStats {
	t.Helper()
	ctx, cancel := callContext()
	defer cancel()
	resp, err := p.n.d.Runtime.PodSandboxStats(ctx, &runtimev1.PodSandboxStatsRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatalf("PodSandboxStats: %v", err)
	}
	return resp.Stats
}

// ownCgroup gives the pod a cgroup parent of its own, as kubelet does, and takes it away when the test's pods are gone.
func ownCgroup(t testing.TB) podOption {
	parent := fmt.Sprintf("%s/pod-%d", place.CgroupParent, sequence.Add(1))
	t.Cleanup(func() {
		dirs, _ := filepath.Glob("/sys/fs/cgroup/*" + parent)
		for _, dir := range append(dirs, "/sys/fs/cgroup"+parent) {
			_ = os.Remove(dir) // in the one layout it is there, in the other not
		}
	})
	return func(c *runtimev1.PodSandboxConfig) { c.Linux.CgroupParent = parent }
}

// TestStatsOfWork has a container use a known amount of each thing and looks for it.
func TestStatsOfWork(t *testing.T) {
	n := sharedNode(t)
	p := n.runPod(t, ownCgroup(t))
	// 32 MiB of memory (a file on its tmpfs), 1 MiB of writable layer, some CPU.
	c := p.run(t, memoryLimit(128<<20), shell(`dd if=/dev/zero of=/dev/shm/a bs=1M count=32; dd if=/dev/zero of=/b bs=1M count=1
		i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo done; sleep 1000`))
	idle := p.run(t, command("sleep", "1000"))
	eventually(t, 60*time.Second, func() error {
		if text := c.logText(t, "stdout"); text != "done\n" {
			return fmt.Errorf("log %q", text)
		}
		return nil
	})
	var s *runtimev1.ContainerStats
	eventually(t, 60*time.Second, func() error {
		s = c.stats(t)
		switch {
		case s.Cpu.UsageCoreNanoSeconds.Value < 50e6:
			return fmt.Errorf("cpu %v", s.Cpu)
		case s.Memory.WorkingSetBytes.Value < 32<<20:
			return fmt.Errorf("memory %v", s.Memory)
		case s.WritableLayer.GetUsedBytes().GetValue() < 1<<20 || s.WritableLayer.InodesUsed.Value == 0:
			return fmt.Errorf("writable layer %v", s.WritableLayer)
		case s.Memory.PageFaults.Value == 0:
			return fmt.Errorf("memory %v", s.Memory)
		}
		return nil
	})
	if s.Attributes.Id != c.id || s.Attributes.Metadata.Name == "" || s.Cpu.UsageNanoCores == nil || s.Cpu.Timestamp == 0 {
		t.Errorf("stats %v", s)
	}
	if m := s.Memory; m.UsageBytes.Value > 128<<20 || m.AvailableBytes.Value != 128<<20-m.WorkingSetBytes.Value {
		t.Errorf("memory %v", s.Memory)
	}
	if s.WritableLayer.UsedBytes.Value > 2<<20 || s.WritableLayer.FsId.Mountpoint != n.d.RootDir {
		t.Errorf("writable layer %v", s.WritableLayer)
	}
	if _, err := os.Stat("/proc/pressure/cpu"); err == nil && (s.Cpu.Psi == nil || s.Memory.Psi == nil || s.Io.GetPsi() == nil) {
		t.Errorf("the kernel has pressures, the answer has not: %v", s)
	}
	if o := idle.stats(t); o.Cpu.UsageCoreNanoSeconds.Value > s.Cpu.UsageCoreNanoSeconds.Value || o.Memory.AvailableBytes != nil {
		t.Errorf("the idle one: %v", o)
	}
	ps := p.stats(t)
	if l := ps.Linux; len(l.Containers) != 2 || l.Process.ProcessCount.Value != 2 || l.Network.GetDefaultInterface().GetName() != "eth0" ||
		l.Cpu.UsageCoreNanoSeconds.Value < s.Cpu.UsageCoreNanoSeconds.Value || l.Memory.WorkingSetBytes.Value < 32<<20 {
		t.Errorf("pod %v", ps)
	}
	before := ps.Linux.Network.DefaultInterface
	c.output(t, "ping", "-c", "2", gateway(t, c))
	if after := p.stats(t).Linux.Network.DefaultInterface; after.RxBytes.Value <= before.RxBytes.Value || after.TxBytes.Value <= before.TxBytes.Value {
		t.Errorf("after a ping %v, before %v", after, before)
	}
}

func gateway(t testing.TB, c *container) string {
	t.Helper()
	for line := range strings.Lines(c.output(t, "route", "-n")) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "0.0.0.0" {
			return f[1]
		}
	}
	t.Fatal("no default route")
	return ""
}

// TestStatsLists filters, leaves out what does not run, and goes on when containers vanish.
func TestStatsLists(t *testing.T) {
	n := sharedNode(t)
	one, two := n.runPod(t), n.runPod(t, hostNetwork)
	a := one.run(t, command("sleep", "1000"), func(c *runtimev1.ContainerConfig) { c.Labels = map[string]string{"l": "a"} })
	b := two.run(t, command("sleep", "1000"))
	created := two.create(t, command("true"))
	ended := two.run(t, command("true"))
	ended.wait(t, 20*time.Second)
	list := func(f *runtimev1.ContainerStatsFilter) string {
		ctx, cancel := callContext()
		defer cancel()
		resp, err := n.d.Runtime.ListContainerStats(ctx, &runtimev1.ListContainerStatsRequest{Filter: f})
		if err != nil {
			t.Fatal(err)
		}
		names := map[string]string{a.id: "a", b.id: "b", created.id: "created", ended.id: "ended"}
		var all []string
		for _, s := range resp.Stats {
			all = append(all, names[s.Attributes.Id])
		}
		return strings.Join(all, " ")
	}
	for name, tt := range map[string]struct {
		filter *runtimev1.ContainerStatsFilter
		want   string
	}{
		"all":   {nil, "a b"},
		"id":    {&runtimev1.ContainerStatsFilter{Id: a.id[:12]}, "a"},
		"pod":   {&runtimev1.ContainerStatsFilter{PodSandboxId: two.id}, "b"},
		"label": {&runtimev1.ContainerStatsFilter{LabelSelector: map[string]string{"l": "a"}}, "a"},
		"none":  {&runtimev1.ContainerStatsFilter{Id: a.id, PodSandboxId: two.id}, ""},
	} {
		if got := list(tt.filter); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
	if s := ended.stats(t); s.Cpu != nil || s.WritableLayer == nil {
		t.Errorf("one that has ended: %v", s)
	}
	if s := two.stats(t); s.Linux.Network != nil || len(s.Linux.Containers) != 1 || s.Linux.Cpu == nil {
		t.Errorf("a pod in the host's network: %v", s)
	}
	ctx, cancel := callContext()
	defer cancel()
	resp, err := n.d.Runtime.ListPodSandboxStats(ctx, &runtimev1.ListPodSandboxStatsRequest{Filter: &runtimev1.PodSandboxStatsFilter{Id: one.id}})
	if err != nil || len(resp.Stats) != 1 || resp.Stats[0].Attributes.Metadata.Name != one.config.Metadata.Name {
		t.Errorf("%v, %v", resp, err)
	}
	fs, err := n.d.Images.ImageFsInfo(ctx, &runtimev1.ImageFsInfoRequest{})
	if err != nil || len(fs.ContainerFilesystems) != 1 || fs.ContainerFilesystems[0].FsId.Mountpoint != n.d.RootDir {
		t.Errorf("%v, %v", fs, err)
	}
	_, err = n.d.Runtime.ContainerStats(ctx, &runtimev1.ContainerStatsRequest{ContainerId: "nope"})
	wantCode(t, err, codes.NotFound, "nope")
	each(12, 4, func(i int) { // lists while containers come and go
		if i%2 == 0 {
			list(nil)
			return
		}
		if v, err := two.tryCreate(command("true")); err != nil {
			t.Error(err)
		} else if err := v.tryStart(); err != nil {
			t.Error(err)
		}
	})
}
