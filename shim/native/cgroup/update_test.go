package cgroup

import (
	"maps"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func memory(limit, swap int64) *specs.LinuxMemory {
	return &specs.LinuxMemory{Limit: &limit, Swap: &swap, CheckBeforeUpdate: new(true)}
}

// limits reads what the tests change.
func limits(t *testing.T, c *Cgroup) map[string]string {
	t.Helper()
	return map[string]string{
		"memory": value(t, c, "memory", "memory.limit_in_bytes", "memory.max"),
		"quota":  value(t, c, "cpu", "cpu.cfs_quota_us", "cpu.max"),
		"weight": value(t, c, "cpu", "cpu.shares", "cpu.weight"),
		"pids":   value(t, c, "pids", "pids.max", "pids.max"),
		"cpus":   value(t, c, "cpuset", "cpuset.cpus", "cpuset.cpus"),
	}
}

func TestSetAllOrNothing(t *testing.T) {
	c := create(t, testRoot(t)+"/c", usual())
	before := limits(t, c)
	for name, tt := range map[string]struct {
		change specs.LinuxResources
		field  string
	}{
		// What is refused comes last, so that all else has been set by then.
		"pids": {specs.LinuxResources{Memory: memory(128<<20, 128<<20), CPU: &specs.LinuxCPU{Shares: new(uint64(2048)), Quota: new(int64(70000)), Period: new(uint64(1))}}, "cpu"},
		"cpus": {specs.LinuxResources{Memory: memory(32<<20, 32<<20), Pids: &specs.LinuxPids{Limit: new(int64(7))},
			CPU: &specs.LinuxCPU{Shares: new(uint64(2048)), Quota: new(int64(20000)), Period: new(uint64(50000)), Cpus: "9999"}}, "cpu.cpus"},
		"pages": {specs.LinuxResources{Memory: memory(32<<20, 32<<20), Pids: &specs.LinuxPids{Limit: new(int64(7))},
			CPU:            &specs.LinuxCPU{Cpus: "0", Quota: new(int64(70000))},
			HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "3MB", Limit: 4 << 20}}}, "hugepageLimits"},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.Set(&tt.change)
			if err == nil || !strings.Contains(err.Error(), "linux.resources."+tt.field) {
				t.Errorf("got %v, want an error about %s", err, tt.field)
			}
			if after := limits(t, c); !maps.Equal(after, before) {
				t.Errorf("before %v, after %v", before, after)
			}
		})
	}
}

func TestSetMemoryUpAndDown(t *testing.T) {
	c := create(t, testRoot(t)+"/c", usual())
	for _, m := range [][2]int64{{128 << 20, 128 << 20}, {32 << 20, 256 << 20}, {16 << 20, 16 << 20}, {-1, -1}, {64 << 20, 64 << 20}} {
		if err := c.Set(&specs.LinuxResources{Memory: memory(m[0], m[1])}); err != nil {
			t.Errorf("limits %d: %v", m, err)
		}
	}
	if got := value(t, c, "memory", "memory.limit_in_bytes", "memory.max"); got != "67108864" {
		t.Errorf("limit %s", got)
	}
}

// TestSetMemoryBelowUse: nobody is killed.
func TestSetMemoryBelowUse(t *testing.T) {
	c := create(t, testRoot(t)+"/c", usual())
	cmd := run(t, c, "a=$(head -c 20000000 /dev/zero | tr '\\0' x); sleep 60; echo $a > /dev/null")
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if n, err := usageOf(memoryHierarchy(c), c.rel); err == nil && n > 16<<20 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the shell does not use memory")
		}
	}
	before := limits(t, c)
	err := c.Set(&specs.LinuxResources{Memory: memory(8<<20, 8<<20)})
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "memory.limit") {
		t.Errorf("got %v", err)
	}
	if after := limits(t, c); !maps.Equal(after, before) {
		t.Errorf("before %v, after %v", before, after)
	}
	if _, err := os.Readlink("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/exe"); err != nil {
		t.Error("the process was killed")
	}
}

func memoryHierarchy(c *Cgroup) *hierarchy {
	if c.layout.pure() {
		return c.layout.unified
	}
	return c.layout.v1With("memory")
}

func TestHugepagesAndUnified(t *testing.T) {
	root := testRoot(t)
	c := create(t, root+"/c", nil)
	if !c.layout.unifiedHas("hugetlb") {
		t.Skip("the kernel has no hugetlb controller on cgroup v2")
	}
	if err := c.Set(&specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}}}); err != nil {
		t.Fatal(err)
	}
	if got, err := c.layout.unified.read(c.rel + "/hugetlb.2MB.max"); err != nil || got != "4194304" {
		t.Errorf("hugetlb.2MB.max is %s, %v", got, err)
	}
	if err := c.Set(&specs.LinuxResources{Unified: map[string]string{"hugetlb.2MB.max": "2097152"}}); err != nil {
		t.Fatal(err)
	}
	if got, err := c.layout.unified.read(c.rel + "/hugetlb.2MB.max"); err != nil || got != "2097152" {
		t.Errorf("hugetlb.2MB.max is %s, %v", got, err)
	}
	err := c.Set(&specs.LinuxResources{Unified: map[string]string{"nosuch.max": "1"}})
	if !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "nosuch") {
		t.Errorf("got %v", err)
	}
	// A new one gets it from the start.
	other := create(t, root+"/d", &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}}})
	if got, err := other.layout.unified.read(other.rel + "/hugetlb.2MB.max"); err != nil || got != "4194304" {
		t.Errorf("hugetlb.2MB.max is %s, %v", got, err)
	}
}
