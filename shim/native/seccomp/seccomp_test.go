package seccomp

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	moby "github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// machine runs a filter and counts nothing; the kernel's verifier is stricter than it in nothing that matters here.
type machine struct{ vm *bpf.VM }

func newMachine(t testing.TB, filter []unix.SockFilter) machine {
	t.Helper()
	var instructions []bpf.Instruction
	for _, f := range filter {
		instructions = append(instructions, bpf.RawInstruction{Op: f.Code, Jt: f.Jt, Jf: f.Jf, K: f.K}.Disassemble())
	}
	vm, err := bpf.NewVM(instructions)
	if err != nil {
		t.Fatal(err)
	}
	return machine{vm}
}

// call runs the filter on a system call of a little-endian architecture. The machine loads words in network order, so
// each word of seccomp_data is laid down in that order.
func (m machine) call(t testing.TB, audit, number uint32, arguments ...uint64) uint32 {
	t.Helper()
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data[offsetNumber:], number)
	binary.BigEndian.PutUint32(data[offsetArch:], audit)
	for i, a := range arguments {
		binary.BigEndian.PutUint32(data[offsetArguments+8*i:], uint32(a))
		binary.BigEndian.PutUint32(data[offsetArguments+8*i+4:], uint32(a>>32))
	}
	ret, err := m.vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(ret)
}

func mustLookup(t testing.TB, name specs.Arch) *architecture {
	t.Helper()
	a, err := lookup(name)
	if err != nil || a == nil {
		t.Fatalf("lookup %s: %v, %v", name, a, err)
	}
	return a
}

func mustCompile(t testing.TB, s *specs.LinuxSeccomp, on specs.Arch) machine {
	t.Helper()
	p, err := compile(s, mustLookup(t, on))
	if err != nil {
		t.Fatal(err)
	}
	return newMachine(t, p.Filter)
}

func allow(names string, args ...specs.LinuxSeccompArg) specs.LinuxSyscall {
	return specs.LinuxSyscall{Names: strings.Fields(names), Action: specs.ActAllow, Args: args}
}

func arg(index uint, op specs.LinuxSeccompOperator, value uint64, second ...uint64) specs.LinuxSeccompArg {
	a := specs.LinuxSeccompArg{Index: index, Op: op, Value: value}
	if len(second) > 0 {
		a.ValueTwo = second[0]
	}
	return a
}

const (
	allowed = uint32(unix.SECCOMP_RET_ALLOW)
	killed  = uint32(unix.SECCOMP_RET_KILL_THREAD)
	eperm   = uint32(unix.SECCOMP_RET_ERRNO) | uint32(unix.EPERM)
	enosys  = uint32(unix.SECCOMP_RET_ERRNO) | uint32(unix.ENOSYS)
)

func TestActions(t *testing.T) {
	five := uint(5)
	for action, want := range map[specs.LinuxSeccompAction]uint32{
		specs.ActKill: 0, specs.ActKillThread: 0, specs.ActKillProcess: 0x80000000, specs.ActTrap: 0x30000,
		specs.ActErrno: 0x50005, specs.ActTrace: 0x7ff00005, specs.ActLog: 0x7ffc0000, specs.ActAllow: 0x7fff0000,
	} {
		rule := specs.LinuxSyscall{Names: []string{"read"}, Action: action}
		if action == specs.ActErrno || action == specs.ActTrace {
			rule.ErrnoRet = &five
		}
		other := uint(77)
		m := mustCompile(t, &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: &other, Syscalls: []specs.LinuxSyscall{rule, allow("write")}}, specs.ArchX86_64)
		if got := m.call(t, unix.AUDIT_ARCH_X86_64, 0); got != want {
			t.Errorf("%s returns %#x, want %#x", action, got, want)
		}
		if got := m.call(t, unix.AUDIT_ARCH_X86_64, 1); got != allowed {
			t.Errorf("write returns %#x", got)
		}
	}
}

func TestOperators(t *testing.T) {
	const big = 0x1_0000_0005
	values := []uint64{0, 4, 5, 6, 0xffffffff, 0x1_0000_0000, big - 1, big, big + 1, 0x2_0000_0005, 0x2_0000_0000, 1 << 63, ^uint64(0)}
	for _, value := range []uint64{0, 5, 0xffffffff, big, ^uint64(0)} {
		for op, holds := range map[specs.LinuxSeccompOperator]func(uint64) bool{
			specs.OpEqualTo:      func(a uint64) bool { return a == value },
			specs.OpNotEqual:     func(a uint64) bool { return a != value },
			specs.OpLessThan:     func(a uint64) bool { return a < value },
			specs.OpLessEqual:    func(a uint64) bool { return a <= value },
			specs.OpGreaterThan:  func(a uint64) bool { return a > value },
			specs.OpGreaterEqual: func(a uint64) bool { return a >= value },
			specs.OpMaskedEqual:  func(a uint64) bool { return a&value == big&value },
		} {
			// A second argument's condition keeps the rule from being turned into ranges.
			for _, args := range [][]specs.LinuxSeccompArg{
				{arg(2, op, value, big)},
				{arg(2, op, value, big), arg(0, specs.OpEqualTo, 7)},
			} {
				m := mustCompile(t, &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{allow("ioctl", args...)}}, specs.ArchX86_64)
				for _, v := range values {
					want := eperm
					if holds(v) {
						want = allowed
					}
					if got := m.call(t, unix.AUDIT_ARCH_X86_64, unix.SYS_IOCTL, 7, 0, v); got != want {
						t.Errorf("%#x %s %#x returns %#x, want %#x", v, op, value, got, want)
					}
				}
			}
		}
	}
}

func TestRules(t *testing.T) {
	const ioctl = 16
	errno := func(n uint, names string, args ...specs.LinuxSeccompArg) specs.LinuxSyscall {
		return specs.LinuxSyscall{Names: strings.Fields(names), Action: specs.ActErrno, ErrnoRet: &n, Args: args}
	}
	returns := func(n uint32) uint32 { return uint32(unix.SECCOMP_RET_ERRNO) | n }
	tests := map[string]struct {
		rules []specs.LinuxSyscall
		args  []uint64
		want  uint32
	}{
		"all arguments must hold":             {[]specs.LinuxSyscall{allow("ioctl", arg(0, specs.OpEqualTo, 1), arg(1, specs.OpEqualTo, 2))}, []uint64{1, 3}, eperm},
		"both hold":                           {[]specs.LinuxSyscall{allow("ioctl", arg(0, specs.OpEqualTo, 1), arg(1, specs.OpEqualTo, 2))}, []uint64{1, 2}, allowed},
		"one argument twice: first":           {[]specs.LinuxSyscall{allow("ioctl", arg(0, specs.OpEqualTo, 1), arg(0, specs.OpEqualTo, 2))}, []uint64{1}, allowed},
		"one argument twice: second":          {[]specs.LinuxSyscall{allow("ioctl", arg(0, specs.OpEqualTo, 1), arg(0, specs.OpEqualTo, 2))}, []uint64{2}, allowed},
		"rules are alternatives":              {[]specs.LinuxSyscall{allow("ioctl", arg(0, specs.OpEqualTo, 1)), allow("ioctl", arg(1, specs.OpEqualTo, 2))}, []uint64{9, 2}, allowed},
		"none of the alternatives":            {[]specs.LinuxSyscall{allow("ioctl", arg(0, specs.OpEqualTo, 1)), allow("ioctl", arg(1, specs.OpEqualTo, 2))}, []uint64{9, 9}, eperm},
		"unconditional beats an earlier rule": {[]specs.LinuxSyscall{errno(5, "ioctl", arg(0, specs.OpEqualTo, 1)), allow("ioctl")}, []uint64{1}, allowed},
		"unconditional beats a later rule":    {[]specs.LinuxSyscall{allow("ioctl"), errno(5, "ioctl", arg(0, specs.OpEqualTo, 1))}, []uint64{1}, allowed},
		"the first unconditional rule counts": {[]specs.LinuxSyscall{errno(5, "ioctl"), allow("ioctl")}, nil, returns(5)},
		"the first of two that hold":          {[]specs.LinuxSyscall{errno(5, "ioctl", arg(0, specs.OpEqualTo, 1)), errno(6, "ioctl", arg(0, specs.OpGreaterThan, 0))}, []uint64{1}, returns(5)},
		"ranges: the other of them":           {[]specs.LinuxSyscall{errno(5, "ioctl", arg(0, specs.OpEqualTo, 1)), errno(6, "ioctl", arg(0, specs.OpGreaterThan, 0))}, []uint64{1 << 40}, returns(6)},
		"what the default does is dropped":    {[]specs.LinuxSyscall{errno(1, "ioctl", arg(0, specs.OpEqualTo, 1)), allow("ioctl")}, []uint64{1}, allowed},
		"unknown names are skipped":           {[]specs.LinuxSyscall{allow("no_such_call ioctl")}, nil, allowed},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			m := mustCompile(t, &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: test.rules}, specs.ArchX86_64)
			if got := m.call(t, unix.AUDIT_ARCH_X86_64, ioctl, test.args...); got != test.want {
				t.Errorf("returns %#x, want %#x", got, test.want)
			}
		})
	}
}

func TestArchitectures(t *testing.T) {
	s := &specs.LinuxSeccomp{
		DefaultAction: specs.ActErrno,
		Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchMIPS64},
		Syscalls:      []specs.LinuxSyscall{allow("write openat2 ioctl", arg(0, specs.OpEqualTo, 0xffffffff00000001)), allow("read")},
	}
	m := mustCompile(t, s, specs.ArchX86_64)
	for _, test := range []struct {
		name          string
		audit, number uint32
		argument      uint64
		want          uint32
	}{
		{"x86_64 read", unix.AUDIT_ARCH_X86_64, 0, 0, allowed},
		{"x86_64 write", unix.AUDIT_ARCH_X86_64, 1, 1, eperm},
		{"x86_64 write with the whole value", unix.AUDIT_ARCH_X86_64, 1, 0xffffffff00000001, allowed},
		{"i386 read", unix.AUDIT_ARCH_I386, 3, 0, allowed},
		{"i386 write compares the lower word", unix.AUDIT_ARCH_I386, 4, 1, allowed},
		{"i386 number of x86_64 read is restart_syscall", unix.AUDIT_ARCH_I386, 0, 0, eperm},
		{"x32 read", unix.AUDIT_ARCH_X86_64, x32Bit, 0, killed},
		{"the last x32 number", unix.AUDIT_ARCH_X86_64, 0xfffffffe, 0, killed},
		{"a call that a tracer takes out", unix.AUDIT_ARCH_X86_64, 0xffffffff, 0, eperm},
		{"aarch64 read", unix.AUDIT_ARCH_AARCH64, 63, 0, killed},
		{"newer than openat2", unix.AUDIT_ARCH_X86_64, 438, 0, enosys},
		{"newer, i386", unix.AUDIT_ARCH_I386, 438, 0, enosys},
		{"older than openat2", unix.AUDIT_ARCH_X86_64, 436, 0, eperm},
	} {
		if got := m.call(t, test.audit, test.number, test.argument); got != test.want {
			t.Errorf("%s returns %#x, want %#x", test.name, got, test.want)
		}
	}
	s.Architectures = append(s.Architectures, specs.ArchX32)
	m = mustCompile(t, s, specs.ArchX86_64)
	for number, want := range map[uint32]uint32{0: allowed, x32Bit: allowed, x32Bit + 514: eperm, x32Bit + 600: enosys, x32Bit + 3: eperm} {
		if got := m.call(t, unix.AUDIT_ARCH_X86_64, number); got != want {
			t.Errorf("with x32, number %#x returns %#x, want %#x", number, got, want)
		}
	}
	arm := mustCompile(t, &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchARM},
		Syscalls: []specs.LinuxSyscall{allow("read cacheflush")}}, specs.ArchAARCH64)
	for number, want := range map[uint32]uint32{3: allowed, 0x0f0002: allowed, 0x0f0003: enosys, 4: enosys} {
		if got := arm.call(t, unix.AUDIT_ARCH_ARM, number); got != want {
			t.Errorf("arm number %#x returns %#x, want %#x", number, got, want)
		}
	}
}

func TestMultiplexedCalls(t *testing.T) {
	const socketcall, ipc = 102, 117
	s := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchX86}, Syscalls: []specs.LinuxSyscall{
		allow("listen shmat"), allow("socket", arg(0, specs.OpEqualTo, 1)),
	}}
	m := mustCompile(t, s, specs.ArchX86_64)
	call := func(number uint32, argument uint64, want uint32) {
		t.Helper()
		if got := m.call(t, unix.AUDIT_ARCH_I386, number, argument); got != want {
			t.Errorf("%d(%#x) returns %#x, want %#x", number, argument, got, want)
		}
	}
	call(socketcall, 4, allowed) // listen
	call(socketcall, 1, eperm)   // socket, whose family cannot be seen
	call(359, 1, allowed)        // the socket call itself
	call(ipc, 21, allowed)
	call(ipc, 1<<16|21, allowed)
	call(ipc, 22, eperm)

	// The other way round: what is denied is denied by every way.
	s.DefaultAction = specs.ActAllow
	for i := range s.Syscalls {
		s.Syscalls[i].Action = specs.ActErrno
	}
	m = mustCompile(t, s, specs.ArchX86_64)
	call(socketcall, 4, eperm)
	call(socketcall, 1, eperm)
	call(socketcall, 2, allowed)
	call(ipc, 1<<16|21, eperm)
}

func TestBigEndian(t *testing.T) {
	s390x := mustLookup(t, specs.ArchS390X)
	if s390x.word(1, true) != 24 || s390x.word(1, false) != 28 {
		t.Errorf("words of argument 1 are at %d and %d", s390x.word(1, true), s390x.word(1, false))
	}
}

func TestRefuses(t *testing.T) {
	one, large := uint(1), uint(4096)
	rule := func(s specs.LinuxSyscall) *specs.LinuxSeccomp {
		return &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{s}}
	}
	for name, test := range map[string]struct {
		profile *specs.LinuxSeccomp
		is      func(error) bool
		names   string
	}{
		"no default":        {&specs.LinuxSeccomp{}, errdefs.IsInvalidArgument, "defaultAction"},
		"errno of allow":    {&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, DefaultErrnoRet: &one}, errdefs.IsInvalidArgument, "takes no errno"},
		"errno too large":   {&specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: &large}, errdefs.IsInvalidArgument, "4095"},
		"notify":            {rule(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActNotify}), errdefs.IsNotImplemented, "syscalls[0].action"},
		"unknown action":    {rule(specs.LinuxSyscall{Names: []string{"read"}, Action: "SCMP_ACT_X"}), errdefs.IsInvalidArgument, "syscalls[0].action"},
		"no names":          {rule(specs.LinuxSyscall{Action: specs.ActAllow}), errdefs.IsInvalidArgument, "syscalls[0].names"},
		"empty name":        {rule(specs.LinuxSyscall{Names: []string{""}, Action: specs.ActAllow}), errdefs.IsInvalidArgument, "syscalls[0].names"},
		"argument 6":        {rule(allow("read", arg(6, specs.OpEqualTo, 0))), errdefs.IsInvalidArgument, "syscalls[0].args[0].index"},
		"unknown operator":  {rule(allow("read", arg(0, "EQ", 0))), errdefs.IsInvalidArgument, "syscalls[0].args[0].op"},
		"unknown arch":      {&specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{"amd64"}}, errdefs.IsInvalidArgument, "architectures"},
		"unknown flag":      {&specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Flags: []specs.LinuxSeccompFlag{"X"}}, errdefs.IsInvalidArgument, "flags"},
		"flag for listener": {&specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagWaitKillableRecv}}, errdefs.IsNotImplemented, "flags"},
		"listener":          {&specs.LinuxSeccomp{DefaultAction: specs.ActErrno, ListenerPath: "/x"}, errdefs.IsNotImplemented, "listenerPath"},
		"too long":          {rule(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActAllow, Args: manyArgs(2000)}), errdefs.IsInvalidArgument, "instructions"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Compile(test.profile)
			if err == nil || !test.is(err) || !strings.Contains(err.Error(), test.names) {
				t.Errorf("error %v, want one that names %s", err, test.names)
			}
		})
	}
}

// manyArgs are conditions on one argument that no search over ranges can shorten.
func manyArgs(n int) []specs.LinuxSeccompArg {
	var args []specs.LinuxSeccompArg
	for i := range n {
		args = append(args, arg(0, specs.OpMaskedEqual, 1<<33|0xffff, uint64(i)))
	}
	return args
}

func TestFarJumps(t *testing.T) {
	// 600 conditions are some 3,000 instructions: every return and half of the search is out of a jump's reach.
	s := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{
		allow("read close fstat poll mmap"),
		{Names: []string{"ioctl"}, Action: specs.ActAllow, Args: manyArgs(600)},
		allow("openat2"),
	}}
	m := mustCompile(t, s, specs.ArchX86_64)
	for _, test := range []struct {
		number   uint32
		argument uint64
		want     uint32
	}{{0, 0, allowed}, {1, 0, eperm}, {3, 0, allowed}, {16, 0, allowed}, {16, 599, allowed}, {16, 600, eperm}, {16, 1<<33 | 5, eperm}, {437, 0, allowed}, {438, 0, enosys}} {
		if got := m.call(t, unix.AUDIT_ARCH_X86_64, test.number, test.argument); got != test.want {
			t.Errorf("%d(%d) returns %#x, want %#x", test.number, test.argument, got, test.want)
		}
	}
	if got := m.call(t, unix.AUDIT_ARCH_I386, 0); got != killed {
		t.Errorf("another architecture returns %#x", got)
	}
}

func TestFlags(t *testing.T) {
	for _, test := range []struct {
		flags []specs.LinuxSeccompFlag
		want  uint32
	}{
		{nil, unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW},
		{[]specs.LinuxSeccompFlag{}, 0},
		{[]specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_TSYNC", specs.LinuxSeccompFlagLog}, unix.SECCOMP_FILTER_FLAG_LOG},
	} {
		p, err := Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: test.flags})
		if err != nil || p.Flags != test.want {
			t.Errorf("%q: %+v, %v", test.flags, p, err)
		}
	}
}

// defaultProfile is the profile that containers get when they ask for none.
func defaultProfile(t testing.TB) *specs.LinuxSeccomp {
	t.Helper()
	spec := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}}
	s, err := moby.GetDefaultProfile(spec)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestDefaultProfileIsShort(t *testing.T) {
	p, err := Compile(defaultProfile(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d instructions", len(p.Filter))
	longest := 0
	for number := range uint32(470) {
		longest = max(longest, steps(p.Filter, unix.AUDIT_ARCH_X86_64, number))
	}
	if longest > 40 {
		t.Errorf("the longest way of a call has %d instructions", longest)
	}
	for name, number := range map[string]uint32{"read": 0, "write": 1, "futex": 202, "epoll_wait": 232} {
		if n := steps(p.Filter, unix.AUDIT_ARCH_X86_64, number); n > 14 {
			t.Errorf("%s takes %d instructions", name, n)
		} else {
			t.Logf("%s takes %d instructions", name, n)
		}
	}
}

// steps counts the instructions that a call without arguments runs through.
func steps(filter []unix.SockFilter, audit, number uint32) int {
	accumulator, n := uint32(0), 0
	for pc := 0; ; pc++ {
		n++
		i := filter[pc]
		taken := false
		switch i.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			accumulator = map[uint32]uint32{offsetNumber: number, offsetArch: audit}[i.K]
			continue
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			accumulator &= i.K
			continue
		case unix.BPF_RET | unix.BPF_K:
			return n
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(i.K)
			continue
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			taken = accumulator == i.K
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			taken = accumulator > i.K
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			taken = accumulator >= i.K
		}
		if taken {
			pc += int(i.Jt)
		} else {
			pc += int(i.Jf)
		}
	}
}

func BenchmarkCompileDefault(b *testing.B) {
	s := defaultProfile(b)
	for b.Loop() {
		if _, err := Compile(s); err != nil {
			b.Fatal(err)
		}
	}
}
