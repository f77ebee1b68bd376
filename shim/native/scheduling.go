package native

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native/plan"
)

// schedulingPolicies are the numbers of sched(7).
var schedulingPolicies = map[specs.LinuxSchedulerPolicy]uint32{
	specs.SchedOther: 0, specs.SchedFIFO: 1, specs.SchedRR: 2, specs.SchedBatch: 3, specs.SchedIdle: 5, specs.SchedDeadline: 6,
}

// schedulingFlags are those of sched_setattr(2).
var schedulingFlags = map[specs.LinuxSchedulerFlag]uint64{
	specs.SchedFlagResetOnFork: 0x01, specs.SchedFlagReclaim: 0x02, specs.SchedFlagDLOverrun: 0x04,
	specs.SchedFlagKeepPolicy: 0x08, specs.SchedFlagKeepParams: 0x10,
	specs.SchedFlagUtilClampMin: 0x20, specs.SchedFlagUtilClampMax: 0x40,
}

// priorityClasses are the numbers of ioprio_set(2).
var priorityClasses = map[specs.IOPriorityClass]int{specs.IOPRIO_CLASS_RT: 1, specs.IOPRIO_CLASS_BE: 2, specs.IOPRIO_CLASS_IDLE: 3}

// personalities are the numbers of personality(2).
var personalities = map[specs.LinuxPersonalityDomain]int{specs.PerLinux: 0x0000, specs.PerLinux32: 0x0008}

// scheduling sets how the process is scheduled, what its I/O comes before, its execution domain, and where its memory is. Children and
// the program inherit all of it. It comes after the cgroups were joined, which a real-time policy may need, and before the
// capabilities are dropped that it needs.
func (c *compiler) scheduling() error {
	if s := c.in.process.Scheduler; s != nil {
		c.At("process.scheduler")
		attributes, err := schedulerAttributes(s)
		if err != nil {
			return err
		}
		c.Simple(unix.SYS_SCHED_SETATTR, "sched_setattr", 0, attributes, 0)
	}
	if p := c.in.process.IOPriority; p != nil {
		c.At("process.ioPriority")
		class, known := priorityClasses[p.Class]
		switch {
		case !known:
			return fmt.Errorf("process.ioPriority.class: %q is not a class such as IOPRIO_CLASS_BE: %w", p.Class, errdefs.ErrInvalidArgument)
		case p.Priority < 0 || p.Priority > 7:
			return fmt.Errorf("process.ioPriority.priority: %d is not between 0 and 7: %w", p.Priority, errdefs.ErrInvalidArgument)
		}
		const whoProcess, classShift = 1, 13
		c.Simple(unix.SYS_IOPRIO_SET, "ioprio_set", whoProcess, 0, class<<classShift|p.Priority)
	}
	if p := c.in.spec.Linux.Personality; p != nil {
		c.At("linux.personality")
		number, known := personalities[p.Domain]
		switch {
		case !known:
			return fmt.Errorf("linux.personality.domain: %q is neither LINUX nor LINUX32: %w", p.Domain, errdefs.ErrInvalidArgument)
		case len(p.Flags) > 0:
			return fmt.Errorf("linux.personality.flags: the runtime spec defines none: %w", errdefs.ErrInvalidArgument)
		}
		c.Simple(unix.SYS_PERSONALITY, "personality", plan.Octal(number))
	}
	return c.memoryPolicy()
}

// schedulerAttributes is a struct sched_attr of sched_setattr(2).
func schedulerAttributes(s *specs.Scheduler) (plan.Struct, error) {
	policy, known := schedulingPolicies[s.Policy]
	if !known {
		return plan.Struct{}, fmt.Errorf("process.scheduler.policy: %q is not a policy such as SCHED_BATCH: %w", s.Policy, errdefs.ErrInvalidArgument)
	}
	var flags uint64
	for _, f := range s.Flags {
		bit, known := schedulingFlags[f]
		if !known {
			return plan.Struct{}, fmt.Errorf("process.scheduler.flags: %q is not a flag such as SCHED_FLAG_RESET_ON_FORK: %w", f, errdefs.ErrInvalidArgument)
		}
		if slices.Contains([]specs.LinuxSchedulerFlag{specs.SchedFlagUtilClampMin, specs.SchedFlagUtilClampMax}, f) {
			return plan.Struct{}, fmt.Errorf("process.scheduler.flags: %s needs a value, for which the runtime spec has no field: %w", f, errdefs.ErrInvalidArgument)
		}
		flags |= bit
	}
	const size = 48 // SCHED_ATTR_SIZE_VER0
	b := make([]byte, 0, size)
	b = binary.NativeEndian.AppendUint32(b, size)
	b = binary.NativeEndian.AppendUint32(b, policy)
	b = binary.NativeEndian.AppendUint64(b, flags)
	b = binary.NativeEndian.AppendUint32(b, uint32(s.Nice))
	b = binary.NativeEndian.AppendUint32(b, uint32(s.Priority))
	for _, v := range []uint64{s.Runtime, s.Deadline, s.Period} {
		b = binary.NativeEndian.AppendUint64(b, v)
	}
	text := fmt.Sprintf("{%s, flags=%#x, nice=%d, priority=%d, %d/%d/%d}", s.Policy, flags, s.Nice, s.Priority, s.Runtime, s.Deadline, s.Period)
	return plan.Struct{Data: b, Text: text}, nil
}
