package native

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native/stage"
)

func TestParseBitmap(t *testing.T) {
	for list, want := range map[string]bitmap{
		"0": {1}, "0-3,7": {0x8f}, "1, 63": {1<<63 | 2}, "64-65": {0, 3}, "0,128": {1, 0, 1},
		"": nil, "-": nil, "3-1": nil, "x": nil, "1-": nil, "0,": nil, "8192": nil, "0-4294967295": nil, "+1": nil,
	} {
		got, err := parseBitmap(list)
		if !slices.Equal(got, want) || (err != nil) != (want == nil) || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %#x, %v; want %#x", list, got, err, want)
		}
	}
}

// TestExecCPUAffinity has a process run on the last CPU that there is, whatever it ran on before it joined the cgroup.
func TestExecCPUAffinity(t *testing.T) {
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	last := 0
	for n := range 1024 {
		if all.IsSet(n) {
			last = n
		}
	}
	rt, g := newRuntime(t), group(t)
	spec := baseSpec("sleep")
	spec.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "0"}
	c := Config{ID: "a", Spec: spec, Rootfs: rootfs(t), Cgroup: g}
	target := running(t, rt, c)
	if maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/numa_maps", target.Pid)); err == nil && !strings.Contains(string(maps), " bind:0 ") {
		t.Errorf("the policy of its memory is not bind:\n%s", maps)
	}
	for name, tt := range map[string]struct {
		affinity *specs.CPUAffinity
		want     string
	}{
		"none":    {nil, ""},
		"initial": {&specs.CPUAffinity{Initial: fmt.Sprint(last)}, ""},
		"final":   {&specs.CPUAffinity{Final: fmt.Sprint(last)}, fmt.Sprint(last) + "\n"},
		"both":    {&specs.CPUAffinity{Initial: "0", Final: fmt.Sprint(last)}, fmt.Sprint(last) + "\n"},
	} {
		t.Run(name, func(t *testing.T) {
			process := *spec.Process
			process.ExecCPUAffinity = tt.affinity
			p, err := rt.Exec(t.Context(), ExecConfig{Spec: spec, Process: &process, Target: target.Pidfd, Cgroup: g})
			if err != nil {
				t.Fatal(err)
			}
			defer stage.End(p.Pidfd)
			if pids, err := g.Pids(); err != nil || !slices.Contains(pids, p.Pid) {
				t.Errorf("process %d is not among those of the cgroup: %v, %v", p.Pid, pids, err)
			}
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid))
			if want := "\nCpus_allowed_list:\t" + tt.want; err != nil || !strings.Contains(string(text), want) {
				t.Errorf("it may run on other CPUs than %q: %s, %v", tt.want, text, err)
			}
		})
	}
	process := *spec.Process
	process.ExecCPUAffinity = &specs.CPUAffinity{Final: "x"}
	if _, err := rt.Exec(t.Context(), ExecConfig{Spec: spec, Process: &process, Target: target.Pidfd, Cgroup: g}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "process.execCPUAffinity.final") {
		t.Errorf("a bad list: %v", err)
	}
}

func TestRDTClass(t *testing.T) {
	for name, tt := range map[string]struct {
		rdt  specs.LinuxIntelRdt
		want string
		kind func(error) bool
	}{
		"schemata":   {specs.LinuxIntelRdt{ClosID: "gold", Schemata: []string{"L3:0=f"}}, "linux.intelRdt.schemata", errdefs.IsNotImplemented},
		"monitoring": {specs.LinuxIntelRdt{ClosID: "gold", EnableMonitoring: true}, "linux.intelRdt.enableMonitoring", errdefs.IsNotImplemented},
		"no class":   {specs.LinuxIntelRdt{}, "closID", errdefs.IsNotImplemented},
		"a path":     {specs.LinuxIntelRdt{ClosID: "../etc"}, "../etc", errdefs.IsInvalidArgument},
		"reserved":   {specs.LinuxIntelRdt{ClosID: "mon_groups"}, "mon_groups", errdefs.IsInvalidArgument},
		"no resctrl": {specs.LinuxIntelRdt{ClosID: "gold"}, "no resctrl filesystem is mounted", errdefs.IsFailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := rdtTasks(&tt.rdt, "22 1 0:20 / /sys rw - sysfs sysfs rw\n")
			if !tt.kind(err) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
	const mounted = "22 1 0:20 / /sys rw - sysfs sysfs rw\n41 22 0:36 / /nowhere/resctrl rw,nosuid shared:9 - resctrl resctrl rw\n"
	if got := resctrlMount(mounted); got != "/nowhere/resctrl" {
		t.Errorf("resctrl is mounted on %q", got)
	}
	if _, err := rdtTasks(&specs.LinuxIntelRdt{ClosID: "gold"}, mounted); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "no such class") {
		t.Errorf("a class that is not there: %v", err)
	}
}
