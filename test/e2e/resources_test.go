package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/e2e/rig"
)

// info is a value of a container's verbose status.
func (c *container) info(t testing.TB, key string, value any) {
	t.Helper()
	ctx, cancel := callContext()
	defer cancel()
	r, err := c.p.n.d.Runtime.ContainerStatus(ctx, &runtimev1.ContainerStatusRequest{ContainerId: c.id, Verbose: true})
	if err != nil {
		t.Fatalf("ContainerStatus: %v", err)
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal([]byte(r.Info["info"]), &all); err != nil {
		t.Fatalf("info %q: %v", r.Info, err)
	}
	if err := json.Unmarshal(all[key], value); err != nil {
		t.Fatalf("info %s: %q: %v", key, all[key], err)
	}
}

// cgroupFile reads the file of a cgroup that there is: v1Name in a hierarchy of v1, else v2Name.
func cgroupFile(t testing.TB, path, v1Name, v2Name string) string {
	t.Helper()
	roots, err := rig.CgroupRoots()
	if err != nil {
		t.Fatal(err)
	}
	for _, root := range roots {
		for _, name := range []string{v1Name, v2Name} {
			if text, err := os.ReadFile(filepath.Join(root, path, name)); err == nil {
				return strings.TrimSpace(string(text))
			}
		}
	}
	t.Fatalf("cgroup %s has neither %s nor %s", path, v1Name, v2Name)
	return ""
}

// onV1 says that the controllers are on cgroup v1.
func onV1() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err != nil
}

func (c *container) cgroup(t testing.TB) string {
	var path string
	c.info(t, "cgroupsPath", &path)
	return path
}

// limits are what the kernel has for a cgroup.
type limits struct{ memory, quota, weight, cpus string }

func limitsOf(t testing.TB, path string) limits {
	l := limits{
		memory: cgroupFile(t, path, "memory.limit_in_bytes", "memory.max"),
		weight: cgroupFile(t, path, "cpu.shares", "cpu.weight"),
		cpus:   cgroupFile(t, path, "cpuset.cpus", "cpuset.cpus"),
	}
	if onV1() {
		l.quota = cgroupFile(t, path, "cpu.cfs_quota_us", "") + " " + cgroupFile(t, path, "cpu.cfs_period_us", "")
	} else {
		l.quota = cgroupFile(t, path, "", "cpu.max")
	}
	return l
}

// weight is what CPU shares are on this machine.
func weight(shares, v2 string) string {
	if onV1() {
		return shares
	}
	return v2
}

func (c *container) update(r *runtimev1.LinuxContainerResources) error {
	ctx, cancel := callContext()
	defer cancel()
	_, err := c.p.n.d.Runtime.UpdateContainerResources(ctx, &runtimev1.UpdateContainerResourcesRequest{ContainerId: c.id, Linux: r})
	return err
}

func resources(r *runtimev1.LinuxContainerResources) containerOption {
	return func(c *runtimev1.ContainerConfig) { c.Linux.Resources = r }
}

// scores are those of the processes of a cgroup.
func scores(t testing.TB, path string) map[string]string {
	all := map[string]string{}
	for pid := range strings.FieldsSeq(cgroupFile(t, path, "cgroup.procs", "cgroup.procs")) {
		if text, err := os.ReadFile("/proc/" + pid + "/oom_score_adj"); err == nil {
			all[pid] = strings.TrimSpace(string(text))
		}
	}
	return all
}

// TestUpdateResources changes limits of a container that runs, up and down, and after a refused one all is as before.
func TestUpdateResources(t *testing.T) {
	n := ownNode(t)
	c := n.runPod(t, hostNetwork).run(t, shell("sleep 1000 & sleep 1000 & wait"), resources(&runtimev1.LinuxContainerResources{
		CpuShares: 512, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 300,
	}))
	path := c.cgroup(t)
	eventually(t, 10*time.Second, func() error {
		if s := scores(t, path); len(s) < 3 {
			return fmt.Errorf("processes %v", s)
		}
		return nil
	})
	asked := &runtimev1.LinuxContainerResources{
		CpuShares: 2048, CpuQuota: 50000, CpuPeriod: 100000, CpusetCpus: "0", MemoryLimitInBytes: 128 << 20, OomScoreAdj: 500,
	}
	if err := c.update(asked); err != nil {
		t.Fatal(err)
	}
	want := limits{strconv.Itoa(128 << 20), "50000 100000", weight("2048", "174"), "0"}
	check := func(what string) {
		t.Helper()
		if got := limitsOf(t, path); got != want {
			t.Errorf("%s: limits are %+v, want %+v", what, got, want)
		}
		for pid, score := range scores(t, path) {
			if score != "500" {
				t.Errorf("%s: process %s has the score %s", what, pid, score)
			}
		}
		if got := strings.TrimSpace(c.output(t, "cat", "/proc/self/oom_score_adj")); got != "500" {
			t.Errorf("%s: an exec has the score %s", what, got)
		}
		if got := c.status(t).GetResources().GetLinux(); !proto.Equal(got, asked) {
			t.Errorf("%s: the status says %v", what, got)
		}
	}
	check("after the update")

	err := c.update(&runtimev1.LinuxContainerResources{MemoryLimitInBytes: 32 << 20, CpuShares: 2, OomScoreAdj: 900, CpusetCpus: "4095"})
	wantCode(t, err, codes.InvalidArgument, "linux.resources.cpu.cpus")
	check("after a refused update")

	n.kill(t, killed{daemon: true, shim: true})
	n.recovered(t, killed{daemon: true})
	check("after a restart")

	if err := c.update(&runtimev1.LinuxContainerResources{MemoryLimitInBytes: 16 << 20, CpuQuota: -1}); err != nil {
		t.Fatal(err)
	}
	asked.MemoryLimitInBytes, asked.CpuQuota = 16<<20, -1
	want.memory, want.quota = strconv.Itoa(16<<20), weight("-1", "max")+" 100000"
	check("after a lower limit")
}

// TestUpdateBeforeStart changes what a container will be started with.
func TestUpdateBeforeStart(t *testing.T) {
	c := sharedNode(t).runPod(t, hostNetwork).create(t, command("sleep", "1000"), memoryLimit(64<<20))
	if err := c.update(&runtimev1.LinuxContainerResources{MemoryLimitInBytes: 32 << 20, CpuShares: 2048, OomScoreAdj: 700}); err != nil {
		t.Fatal(err)
	}
	c.start(t)
	path := c.cgroup(t)
	if got := limitsOf(t, path); got.memory != strconv.Itoa(32<<20) || got.weight != weight("2048", "174") {
		t.Errorf("limits are %+v", got)
	}
	for pid, score := range scores(t, path) {
		if score != "700" {
			t.Errorf("process %s has the score %s", pid, score)
		}
	}
	c.stop(t, 0)
	wantCode(t, c.update(&runtimev1.LinuxContainerResources{CpuShares: 2}), codes.FailedPrecondition, "exited")
}

// TestPodResources has a pod that names no cgroup, so that its limits are ours to set.
func TestPodResources(t *testing.T) {
	n := sharedNode(t)
	p := n.runPod(t, hostNetwork, func(c *runtimev1.PodSandboxConfig) {
		c.Linux.Resources = &runtimev1.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 512}
		c.Linux.Overhead = &runtimev1.LinuxContainerResources{MemoryLimitInBytes: 16 << 20}
	})
	c := p.run(t, command("sleep", "1000"))
	path := filepath.Dir(c.cgroup(t))
	if want := "pod" + p.id; filepath.Base(path) != want {
		t.Fatalf("the pod's cgroup is %s", path)
	}
	memory := func() string { return cgroupFile(t, path, "memory.limit_in_bytes", "memory.max") }
	if got := memory(); got != strconv.Itoa(80<<20) {
		t.Errorf("the pod's limit is %s", got)
	}
	update := func(r *runtimev1.UpdatePodSandboxResourcesRequest) error {
		ctx, cancel := callContext()
		defer cancel()
		_, err := n.d.Runtime.UpdatePodSandboxResources(ctx, r)
		return err
	}
	if err := update(&runtimev1.UpdatePodSandboxResourcesRequest{PodSandboxId: p.id, Resources: &runtimev1.LinuxContainerResources{MemoryLimitInBytes: 128 << 20}}); err != nil {
		t.Fatal(err)
	}
	if got := memory(); got != strconv.Itoa(144<<20) {
		t.Errorf("the pod's limit is %s", got)
	}
	wantCode(t, update(&runtimev1.UpdatePodSandboxResourcesRequest{}), codes.InvalidArgument, "pod_sandbox_id")
	wantCode(t, update(&runtimev1.UpdatePodSandboxResourcesRequest{PodSandboxId: "nosuch"}), codes.NotFound, "nosuch")
	wantCode(t, update(&runtimev1.UpdatePodSandboxResourcesRequest{PodSandboxId: p.id, Overhead: &runtimev1.LinuxContainerResources{CpuShares: -1}}),
		codes.InvalidArgument, "overhead.cpu_shares")
}

// TestExecIntoDividedCgroup has a container that gives controllers to cgroups of its own, as an init system does.
func TestExecIntoDividedCgroup(t *testing.T) {
	if onV1() {
		t.Skip("the controllers are on cgroup v1")
	}
	n := ownNode(t)
	n.configure(t, "", "[runtimes.native]\ncgroup_writable = true\n")
	c := n.runPod(t).run(t, shell("cd /sys/fs/cgroup && mkdir init && echo 1 > init/cgroup.procs && "+
		"echo +memory > cgroup.subtree_control && echo divided && exec sleep 1000"))
	eventually(t, 20*time.Second, func() error {
		if text := c.logText(t, "stdout"); !strings.Contains(text, "divided") {
			return fmt.Errorf("it says %q, %q", text, c.logText(t, "stderr"))
		}
		return nil
	})
	if got := strings.TrimSpace(c.output(t, "cat", "/proc/self/cgroup")); got != "0::/init" {
		t.Errorf("an exec is in %s", got)
	}
}
