package seccomp

import (
	"math"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data (include/uapi/linux/seccomp.h).
const (
	offsetNumber    = 0
	offsetArch      = 4
	offsetArguments = 16
)

// assembler writes a filter from its end to its beginning, because jumps only go forward: whatever an instruction jumps
// to has then been written and has a place.
type assembler struct {
	reversed []unix.SockFilter
	returns  map[uint32]label
}

// label is an instruction's distance from the end of the filter, 0 for the last one.
type label int

// emit writes one instruction in front of all others.
func (a *assembler) emit(code uint16, yes, no uint8, k uint32) label {
	a.reversed = append(a.reversed, unix.SockFilter{Code: code, Jt: yes, Jf: no, K: k})
	return label(len(a.reversed) - 1)
}

// skip is how many instructions lie between the next to be written, with more before it, and the target.
func (a *assembler) skip(target label, more int) int {
	return len(a.reversed) + more - 1 - int(target)
}

// near returns a label that a conditional jump reaches, whose offsets have 8 bits: the target or a jump to it.
func (a *assembler) near(target label, more int) label {
	if a.skip(target, more) <= 255 {
		return target
	}
	return a.emit(unix.BPF_JMP|unix.BPF_JA, 0, 0, uint32(a.skip(target, 0)))
}

// jump writes a comparison of the accumulator with k.
func (a *assembler) jump(comparison uint16, k uint32, yes, no label) label {
	no = a.near(no, 1) // the jump to yes may come between
	yes = a.near(yes, 0)
	return a.emit(unix.BPF_JMP|comparison|unix.BPF_K, uint8(a.skip(yes, 0)), uint8(a.skip(no, 0)), k)
}

// fall makes sure that the next instruction to be written runs on into the target.
func (a *assembler) fall(target label) {
	if a.skip(target, 0) != 0 {
		a.emit(unix.BPF_JMP|unix.BPF_JA, 0, 0, uint32(a.skip(target, 0)))
	}
}

// load writes a load of a word of seccomp_data; what was written last comes after it.
func (a *assembler) load(offset uint32) label {
	return a.emit(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, 0, 0, offset)
}

// ret is a return of a value: one that is near, or a new one.
func (a *assembler) ret(value uint32) label {
	if l, ok := a.returns[value]; ok && a.skip(l, 2) <= 255 {
		return l
	}
	l := a.emit(unix.BPF_RET|unix.BPF_K, 0, 0, value)
	a.returns[value] = l
	return l
}

// search finds the range that the accumulator lies in, by halves.
func (a *assembler) search(list []cut, on *architecture) label {
	if len(list) == 1 {
		return a.verdict(list[0].verdict, on)
	}
	middle := len(list) / 2
	high := a.search(list[middle:], on)
	low := a.search(list[:middle], on)
	return a.jump(unix.BPF_JGE, list[middle].from, high, low)
}

func (a *assembler) verdict(v verdict, on *architecture) label {
	if list, above, ok := v.byArgument(on); ok {
		return a.searchArgument(list, above, v.clauses[0].conditions[0].argument, on)
	}
	no := a.ret(v.ret)
	for _, c := range slices.Backward(v.clauses) {
		yes := a.ret(c.ret)
		for _, condition := range slices.Backward(c.conditions) {
			yes = a.condition(condition, yes, no, on)
		}
		no = yes
	}
	return no
}

// byArgument turns clauses that each look only at one and the same argument into ranges of its lower word, which are
// searched faster than the clauses one by one; above is what is returned where the upper word is not 0.
func (v verdict) byArgument(on *architecture) (list []cut, above uint32, ok bool) {
	if len(v.clauses) < 2 {
		return nil, 0, false
	}
	points := []uint32{0}
	for _, c := range v.clauses {
		only := c.conditions[0]
		if len(c.conditions) > 1 || only.argument != v.clauses[0].conditions[0].argument || only.op == specs.OpMaskedEqual {
			return nil, 0, false
		}
		if !on.words && only.value > math.MaxUint32 {
			return nil, 0, false
		}
		points = append(points, uint32(only.value), uint32(only.value)+1) // 0 after the greatest is there already
	}
	slices.Sort(points)
	for _, point := range slices.Compact(points) {
		list = put(list, point, verdict{ret: v.at(uint64(point), on)})
	}
	return list, v.at(math.MaxUint32+1, on), true
}

// at is what a verdict whose clauses have one condition each returns for a value of the argument.
func (v verdict) at(value uint64, on *architecture) uint32 {
	for _, c := range v.clauses {
		if c.conditions[0].holds(value, on) {
			return c.ret
		}
	}
	return v.ret
}

// holds compares, except by mask.
func (c condition) holds(value uint64, on *architecture) bool {
	with := c.value
	if on.words {
		with = uint64(uint32(with))
	}
	switch c.op {
	case specs.OpEqualTo:
		return value == with
	case specs.OpNotEqual:
		return value != with
	case specs.OpLessThan:
		return value < with
	case specs.OpLessEqual:
		return value <= with
	case specs.OpGreaterThan:
		return value > with
	}
	return value >= with
}

// searchArgument searches a list of ranges over an argument's lower word; above is the verdict where the upper is not 0.
func (a *assembler) searchArgument(list []cut, above, argument uint32, on *architecture) label {
	beyond := a.ret(above)
	a.fall(a.search(list, on))
	start := a.load(on.word(argument, false))
	if on.words {
		return start
	}
	a.jump(unix.BPF_JEQ, 0, start, beyond)
	return a.load(on.word(argument, true))
}

// word is the offset of one half of an argument.
func (on *architecture) word(argument uint32, upper bool) uint32 {
	offset := offsetArguments + 8*argument
	if upper != on.bigEndian {
		offset += 4
	}
	return offset
}

// condition compares an argument, which is 64 bits wide, by words of 32.
func (a *assembler) condition(c condition, yes, no label, on *architecture) label {
	upper, lower := uint32(c.value>>32), uint32(c.value)
	op := c.op
	switch op { // what is left are =, > and >=
	case specs.OpNotEqual:
		op, yes, no = specs.OpEqualTo, no, yes
	case specs.OpLessThan:
		op, yes, no = specs.OpGreaterEqual, no, yes
	case specs.OpLessEqual:
		op, yes, no = specs.OpGreaterThan, no, yes
	}
	comparison := map[specs.LinuxSeccompOperator]uint16{
		specs.OpEqualTo: unix.BPF_JEQ, specs.OpMaskedEqual: unix.BPF_JEQ, specs.OpGreaterThan: unix.BPF_JGT, specs.OpGreaterEqual: unix.BPF_JGE,
	}[op]
	a.jump(comparison, lower, yes, no)
	if op == specs.OpMaskedEqual {
		a.mask(uint32(c.mask))
	}
	start := a.load(on.word(c.argument, false))
	if on.words {
		return start
	}
	a.jump(unix.BPF_JEQ, upper, start, no)
	if comparison != unix.BPF_JEQ {
		// The upper word alone decides, unless it is equal.
		equal := label(len(a.reversed) - 1)
		a.jump(unix.BPF_JGT, upper, yes, equal)
	}
	if op == specs.OpMaskedEqual {
		a.mask(uint32(c.mask >> 32))
	}
	return a.load(on.word(c.argument, true))
}

func (a *assembler) mask(mask uint32) label {
	return a.emit(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, 0, 0, mask)
}
