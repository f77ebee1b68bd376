// Package seccomp compiles an OCI seccomp profile into the classic BPF program that seccomp(2) takes, in pure Go.
//
// The semantics are those that OCI profiles have been written against: the rules of one system call are alternatives,
// the arguments of a rule must all hold (unless two look at the same argument: then they are alternatives too), an
// unconditional rule beats conditional ones, of several conditional rules that hold the first counts, a rule that does
// what the default does is dropped, a name that an architecture does not have is skipped there, and a call from an
// architecture that the profile does not list kills the thread. Arguments of 32-bit architectures are compared by their
// lower 32 bits, and so are those of x32.
//
// Where system calls can also be reached through socketcall or ipc, a rule for one holds for that way too. If it asks for
// arguments, which then lie in memory out of a filter's sight, it forbids that way whatever they are, or, being a rule that
// permits, does not open it.
//
// A call whose number is beyond all that the profile names gets ENOSYS instead of a default that forbids, because the
// profile was written before it was, and programs know what to do without it.
//
// Numbers are found by binary search over ranges that have one verdict, so that a call costs about ten instructions;
// for calls whose verdict does not depend on arguments Linux 5.11 and later does not run the filter at all.
package seccomp

import (
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// maxInstructions is BPF_MAXINSNS.
const maxInstructions = 4096

// Program is a compiled profile. Programs may be shared and must not be changed.
type Program struct {
	// Filter is for seccomp(SECCOMP_SET_MODE_FILTER) on the architecture that compiled it.
	Filter []unix.SockFilter
	// Flags are the SECCOMP_FILTER_FLAG_* for that call.
	Flags uint32
}

// Compile compiles a profile for the architecture that this program runs on, which is in the filter whether the profile
// lists it or not. What cannot be honoured is refused by the name of the field: ErrInvalidArgument, or ErrNotImplemented
// for user notification.
func Compile(s *specs.LinuxSeccomp) (*Program, error) {
	on, err := native()
	if err != nil {
		return nil, err
	}
	return compile(s, on)
}

func compile(s *specs.LinuxSeccomp, on *architecture) (*Program, error) {
	if s.ListenerPath != "" || s.ListenerMetadata != "" {
		return nil, fmt.Errorf("linux.seccomp.listenerPath: user notification is not supported: %w", errdefs.ErrNotImplemented)
	}
	flags, err := filterFlags(s.Flags)
	if err != nil {
		return nil, err
	}
	list := []*architecture{on}
	for _, name := range s.Architectures {
		a, err := lookup(name)
		if err != nil {
			return nil, err
		}
		if a != nil && !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	p, err := newProfile(s)
	if err != nil {
		return nil, err
	}
	filter := p.assemble(list)
	if len(filter) > maxInstructions {
		return nil, fmt.Errorf("linux.seccomp: the profile compiles to %d instructions, the kernel takes %d at most; use fewer rules or architectures: %w",
			len(filter), maxInstructions, errdefs.ErrInvalidArgument)
	}
	return &Program{Filter: filter, Flags: flags}, nil
}

// filterFlags translates a profile's flags. A profile without a list gets SPEC_ALLOW (Linux 4.17): before 5.16 a filter
// otherwise turns speculative store bypass off for the process, which costs far more than the filter.
func filterFlags(names []specs.LinuxSeccompFlag) (uint32, error) {
	if names == nil {
		return unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, nil
	}
	var flags uint32
	for _, name := range names {
		switch name {
		case "SECCOMP_FILTER_FLAG_TSYNC": // the process that loads the filter has one thread
		case specs.LinuxSeccompFlagLog:
			flags |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			flags |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		case specs.LinuxSeccompFlagWaitKillableRecv:
			return 0, fmt.Errorf("linux.seccomp.flags: %s is for user notification, which is not supported: %w", name, errdefs.ErrNotImplemented)
		default:
			return 0, invalid("flags", "%q is not a flag", name)
		}
	}
	return flags, nil
}

// assemble writes the filter: the architecture is found first, then the number is searched among its ranges.
func (p *profile) assemble(list []*architecture) []unix.SockFilter {
	a := &assembler{returns: map[uint32]label{}}
	next := a.ret(unix.SECCOMP_RET_KILL_THREAD)
	var audits []uint32
	for _, on := range list {
		if !slices.Contains(audits, on.audit) {
			audits = append(audits, on.audit)
		}
	}
	for _, audit := range slices.Backward(audits) {
		block := a.numbers(p, audit, list)
		next = a.jump(unix.BPF_JEQ, audit, block, next)
	}
	a.fall(next)
	a.load(offsetArch)
	slices.Reverse(a.reversed)
	return a.reversed
}

// numbers writes the search for a number among the architectures of a list that have this audit value.
func (a *assembler) numbers(p *profile, audit uint32, list []*architecture) label {
	by := func(bit uint32, otherwise ...cut) label {
		for _, on := range list {
			if on.audit == audit && on.bit == bit {
				return a.search(p.cuts(on), on)
			}
		}
		return a.search(otherwise, list[0])
	}
	bad := verdict{ret: unix.SECCOMP_RET_KILL_THREAD}
	var start label
	if audit == unix.AUDIT_ARCH_X86_64 {
		// -1 is what a tracer sets to have a call skipped; it is no call of x32.
		high := by(x32Bit, cut{x32Bit, bad}, cut{^uint32(0), verdict{ret: p.ret}})
		low := by(0, cut{0, bad})
		start = a.jump(unix.BPF_JGE, x32Bit, high, low)
	} else {
		start = by(0)
	}
	a.fall(start)
	return a.load(offsetNumber)
}
