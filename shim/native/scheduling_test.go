package native

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TestSchedulingOfTheProcess asks the kernel about a process that waits for its start.
func TestSchedulingOfTheProcess(t *testing.T) {
	spec := baseSpec("view", "/proc/self/personality")
	spec.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 7}
	spec.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 6}
	spec.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32}
	p, r, w := create(t, newRuntime(t), Config{ID: "s", Spec: spec, Rootfs: rootfs(t)})
	attr, err := unix.SchedGetAttr(p.Pid, 0)
	if err != nil || attr.Policy != unix.SCHED_BATCH || attr.Nice != 7 {
		t.Errorf("scheduling is %+v, %v", attr, err)
	}
	priority, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, 1, uintptr(p.Pid), 0)
	if errno != 0 || priority != 2<<13|6 {
		t.Errorf("I/O priority is %#x, %v", priority, errno)
	}
	out, _ := finish(t, p, r, w)
	if got := strings.TrimSpace(look(t, out).Files["/proc/self/personality"]); got != "00000008" {
		t.Errorf("personality is %q", got)
	}
}

func TestSchedulingPlan(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*specs.Spec)
		want   []string // lines of the plan contain these; or the error does
		bad    bool
	}{
		"deadline": {func(s *specs.Spec) {
			s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedDeadline, Runtime: 1, Deadline: 2, Period: 3, Flags: []specs.LinuxSchedulerFlag{specs.SchedFlagResetOnFork, specs.SchedFlagReclaim}}
		}, []string{"sched_setattr(0, {SCHED_DEADLINE, flags=0x3, nice=0, priority=0, 1/2/3}, 0)"}, false},
		"memory policy": {func(s *specs.Spec) {
			s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolInterleave, Nodes: "0,2-3", Flags: []specs.MemoryPolicyFlagType{specs.MpolFStaticNodes}}
		}, []string{"set_mempolicy(32771, {0,2-3}, 65)"}, false},
		"memory policy without nodes": {func(s *specs.Spec) { s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolLocal} },
			[]string{"set_mempolicy(4, 0, 0)"}, false},
		"mode": {func(s *specs.Spec) { s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: "MPOL_X", Nodes: "0"} },
			[]string{"linux.memoryPolicy.mode", "MPOL_X"}, true},
		"flag of a memory policy": {func(s *specs.Spec) {
			s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "0", Flags: []specs.MemoryPolicyFlagType{"X"}}
		}, []string{"linux.memoryPolicy.flags"}, true},
		"nodes": {func(s *specs.Spec) {
			s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "3-1"}
		},
			[]string{"linux.memoryPolicy.nodes", "3-1"}, true},
		"affinity of execs": {func(s *specs.Spec) { s.Process.ExecCPUAffinity = &specs.CPUAffinity{Initial: "0"} }, nil, false},
		"policy": {func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{Policy: "SCHED_ISO"} },
			[]string{"process.scheduler.policy", "SCHED_ISO"}, true},
		"flag": {func(s *specs.Spec) {
			s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedOther, Flags: []specs.LinuxSchedulerFlag{"X"}}
		}, []string{"process.scheduler.flags"}, true},
		"clamp": {func(s *specs.Spec) {
			s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedOther, Flags: []specs.LinuxSchedulerFlag{specs.SchedFlagUtilClampMin}}
		}, []string{"process.scheduler.flags", "no field"}, true},
		"idle": {func(s *specs.Spec) { s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_IDLE} },
			[]string{fmt.Sprintf("ioprio_set(1, 0, %d)", 3<<13)}, false},
		"class": {func(s *specs.Spec) { s.Process.IOPriority = &specs.LinuxIOPriority{Class: "X"} },
			[]string{"process.ioPriority.class"}, true},
		"priority": {func(s *specs.Spec) {
			s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 8}
		}, []string{"process.ioPriority.priority"}, true},
		"domain": {func(s *specs.Spec) { s.Linux.Personality = &specs.LinuxPersonality{Domain: "BSD"} },
			[]string{"linux.personality.domain"}, true},
		"flags of a personality": {func(s *specs.Spec) {
			s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux, Flags: []specs.LinuxPersonalityFlag{"X"}}
		}, []string{"linux.personality.flags"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			spec := goldenSpec()
			tt.change(spec)
			b, err := compileCreate(goldenInput(spec, newKernel))
			if tt.bad {
				if !errdefs.IsInvalidArgument(err) || slices.ContainsFunc(tt.want, func(w string) bool { return !strings.Contains(err.Error(), w) }) {
					t.Errorf("got %v, want %q", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range tt.want {
				if text := b.plan.Text(); !strings.Contains(text, want) {
					t.Errorf("the plan lacks %s:\n%s", want, text)
				}
			}
		})
	}
}
