package seccomp

import (
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// condition compares one argument of a system call.
type condition struct {
	argument    uint32
	op          specs.LinuxSeccompOperator
	value, mask uint64 // mask only with OpMaskedEqual
}

// clause is one rule: if all conditions hold, ret is returned.
type clause struct {
	conditions []condition
	ret        uint32 // SECCOMP_RET_*
}

// verdict is what becomes of one system call: the first clause that holds says so, or else ret.
type verdict struct {
	clauses []clause
	ret     uint32
}

// plain says that a verdict does not look at arguments.
func (v verdict) plain() bool { return len(v.clauses) == 0 }

// cut is the beginning of a range of numbers that all have one verdict; it goes on to the next cut.
type cut struct {
	from uint32
	verdict
}

// profile is an OCI profile that has been checked.
type profile struct {
	ret   uint32 // of the default action
	rules []rule
}

// rule is one entry of a profile.
type rule struct {
	names   []string
	clauses []clause // one clause without conditions for an unconditional rule
}

func invalid(field string, format string, args ...any) error {
	return fmt.Errorf("linux.seccomp.%s: %s: %w", field, fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
}

// newProfile checks a profile and takes out the rules that do what is done by default anyway.
func newProfile(s *specs.LinuxSeccomp) (*profile, error) {
	ret, err := action("defaultAction", s.DefaultAction, s.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	p := &profile{ret: ret}
	for i, call := range s.Syscalls {
		field := fmt.Sprintf("syscalls[%d]", i)
		ret, err := action(field+".action", call.Action, call.ErrnoRet)
		if err != nil {
			return nil, err
		}
		if len(call.Names) == 0 {
			return nil, invalid(field+".names", "is empty")
		}
		if slices.Contains(call.Names, "") {
			return nil, invalid(field+".names", "has an empty name")
		}
		r := rule{names: call.Names}
		if ret != p.ret {
			if r.clauses, err = clauses(field, call.Args, ret); err != nil {
				return nil, err
			}
		}
		p.rules = append(p.rules, r)
	}
	return p, nil
}

// action translates an action into what the filter returns.
func action(field string, name specs.LinuxSeccompAction, errnoRet *uint) (uint32, error) {
	data := uint(unix.EPERM)
	if errnoRet != nil {
		if name != specs.ActErrno && name != specs.ActTrace {
			return 0, invalid(field, "%s takes no errno", name)
		}
		if data = *errnoRet; data > 4095 {
			return 0, invalid(field, "errno %d is beyond the greatest, 4095", data)
		}
	}
	switch name {
	case specs.ActKill, specs.ActKillThread:
		return unix.SECCOMP_RET_KILL_THREAD, nil
	case specs.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	case specs.ActTrap:
		return unix.SECCOMP_RET_TRAP, nil
	case specs.ActErrno:
		return unix.SECCOMP_RET_ERRNO | uint32(data), nil
	case specs.ActTrace:
		return unix.SECCOMP_RET_TRACE | uint32(data), nil
	case specs.ActLog:
		return unix.SECCOMP_RET_LOG, nil
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW, nil
	case specs.ActNotify:
		return 0, fmt.Errorf("linux.seccomp.%s: %s needs a listener, which is not supported: %w", field, name, errdefs.ErrNotImplemented)
	}
	return 0, invalid(field, "%q is not an action", name)
}

// clauses translates a rule's arguments. They must all hold, except when two of them look at the same argument: then
// each is a rule of its own, which is what profiles have come to rely on.
func clauses(field string, args []specs.LinuxSeccompArg, ret uint32) ([]clause, error) {
	var conditions []condition
	var seen [6]bool
	apart := false
	for i, arg := range args {
		at := fmt.Sprintf("%s.args[%d]", field, i)
		if arg.Index >= uint(len(seen)) {
			return nil, invalid(at+".index", "%d is beyond the last argument, 5", arg.Index)
		}
		apart = apart || seen[arg.Index]
		seen[arg.Index] = true
		c := condition{argument: uint32(arg.Index), op: arg.Op, value: arg.Value}
		switch arg.Op {
		case specs.OpEqualTo, specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpGreaterThan, specs.OpGreaterEqual:
		case specs.OpMaskedEqual: // argument & value == valueTwo
			c.mask, c.value = arg.Value, arg.Value&arg.ValueTwo
		default:
			return nil, invalid(at+".op", "%q is not an operator", arg.Op)
		}
		conditions = append(conditions, c)
	}
	if !apart {
		return []clause{{conditions, ret}}, nil
	}
	var each []clause
	for _, c := range conditions {
		each = append(each, clause{[]condition{c}, ret})
	}
	return each, nil
}

// permits orders actions: more permits is greater. It is the kernel's own order (kernel/seccomp.c, seccomp_run_filters).
func permits(ret uint32) int32 { return int32(ret & unix.SECCOMP_RET_ACTION_FULL) }

// on collects the verdicts of an architecture's system calls by number.
func (p *profile) on(a *architecture) map[uint32]verdict {
	verdicts := make(map[uint32]verdict, 512)
	fixed := map[uint32]bool{} // by an unconditional rule
	add := func(number uint32, clauses []clause) {
		v, ok := verdicts[number]
		if !ok {
			v.ret = p.ret
		}
		for _, c := range clauses {
			switch {
			case fixed[number]:
			case len(c.conditions) == 0:
				v = verdict{ret: c.ret}
				fixed[number] = true
			default:
				v.clauses = append(v.clauses, c)
			}
		}
		verdicts[number] = v
	}
	for _, r := range p.rules {
		for _, name := range r.names {
			if number, ok := a.number(name); ok {
				add(number, r.clauses)
			}
			if m, ok := multiplexed[name]; ok {
				if number, ok := a.number(m.by); ok {
					add(number, p.through(m, r.clauses))
				}
			}
		}
	}
	return verdicts
}

// through is a rule for a system call as it looks for the call that multiplexes it. The multiplexed arguments lie in
// memory, where no filter sees them: a rule that asks for them is applied without asking where that is stricter than
// the default, and left out where it would let more through.
func (p *profile) through(m multiplex, rules []clause) []clause {
	var out []clause
	for _, c := range rules {
		if len(c.conditions) > 0 && permits(c.ret) > permits(p.ret) {
			continue
		}
		out = append(out, clause{[]condition{{op: specs.OpMaskedEqual, mask: m.mask, value: m.call}}, c.ret})
	}
	return out
}

// cuts turns the verdicts of an architecture into ranges over its numbers, from a.bit to where the next convention
// begins. Beyond the greatest number that the profile knows by name the answer is ENOSYS instead of a default that
// forbids: the profile was written before those calls were, and programs that find them missing know another way. Where
// the default permits it stands.
func (p *profile) cuts(a *architecture) []cut {
	verdicts := p.on(a)
	list := []cut{{from: a.bit, verdict: verdict{ret: p.ret}}}
	newest, known := uint32(0), false
	for _, number := range slices.Sorted(maps.Keys(verdicts)) {
		list = put(list, number, verdicts[number])
		list = put(list, number+1, verdict{ret: p.ret})
		if a.name != specs.ArchARM || number < armPrivate {
			newest, known = number, true
		}
	}
	if !known || permits(p.ret) >= permits(unix.SECCOMP_RET_TRACE) {
		return list
	}
	return replaceFrom(list, newest+1, p.ret, unix.SECCOMP_RET_ERRNO|uint32(unix.ENOSYS))
}

// put ends the last range of a list at from, where v begins; a range that is empty or like the one before it is left out.
func put(list []cut, from uint32, v verdict) []cut {
	if n := len(list); n > 0 && list[n-1].from == from {
		list = list[:n-1]
	}
	if n := len(list); n > 0 && v.plain() && list[n-1].plain() && v.ret == list[n-1].ret {
		return list
	}
	return append(list, cut{from, v})
}

// replaceFrom replaces the plain verdict old by ret in the ranges from a number on.
func replaceFrom(list []cut, from, old, ret uint32) []cut {
	out := make([]cut, 0, len(list)+1)
	for i, c := range list {
		end := uint64(1) << 32
		if i+1 < len(list) {
			end = uint64(list[i+1].from)
		}
		switch {
		case !c.plain() || c.ret != old || end <= uint64(from):
			out = append(out, c)
		case c.from >= from:
			out = append(out, cut{c.from, verdict{ret: ret}})
		default:
			out = append(out, c, cut{from, verdict{ret: ret}})
		}
	}
	return out
}
