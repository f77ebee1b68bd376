// Package plan builds lists of raw system calls for the stage to run. A plan has no logic but this: results go into
// registers, arguments come from them, and an accepted error, or a result of zero, may lead to a jump. It is data: it
// prints like an strace, and tests compare it as text.
package plan

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// AnyError, accepted, stands for every errno.
const AnyError = unix.Errno(0xffff)

// Reg is a register: it holds the result of a call. The zero Reg is a scratch register.
type Reg uint8

// Address, as an argument, is the address of a register.
type Address Reg

// Octal is a number that prints as file modes do.
type Octal int

// Cwd, as a directory descriptor, is the working directory.
var Cwd = Flags{Value: uint64(0xffffffffffffff9c), Names: &Names{Enum: true, names: []name{{0xffffffffffffff9c, "AT_FDCWD"}}}}

// Label is a place in a plan that can be jumped to. The zero Label is the next operation.
type Label int

// Flags is a number that prints as names.
type Flags struct {
	Value uint64
	Names *Names
}

// Pointer is a structure whose last eight bytes are the address of To, as in struct sock_fprog.
type Pointer struct {
	Head []byte // eight bytes, what comes before the address
	To   []byte
	Text string
}

// Struct is a structure of plain numbers, and how it prints.
type Struct struct {
	Data []byte
	Text string
}

// OpenHow is struct open_how of openat2(2).
type OpenHow struct{ Flags, Resolve int }

// MountAttr is struct mount_attr of mount_setattr(2). UserNS, a descriptor, counts with MOUNT_ATTR_IDMAP only.
type MountAttr struct{ Set, Clear, Propagation, UserNS uint64 }

// Mode is a file's type and permissions.
type Mode uint32

// Device is a device number.
type Device uint64

// maxArgs is how many arguments a system call takes.
const maxArgs = 6

// Call is one system call of a plan. Args are int, Octal, string, []string, []byte, Reg, Address, Flags, Mode, Device,
// OpenHow, MountAttr, Struct or Pointer; only the first N count.
type Call struct {
	Nr     uintptr
	Name   string
	Args   [maxArgs]any
	N      int
	Result Reg // 0: not kept

	Accept    []unix.Errno // at most three; go on at Otherwise instead of failing
	Otherwise Label
	Zero      Label // go on here when the result is 0
	Next      Label // go on here when the call succeeded
}

// Plan is a plan under construction. It is not safe for concurrent use.
type Plan struct {
	ops         []operation
	labels      []int // label-1 -> index of an operation
	relocations []uint64
	data        bytes.Buffer
	strings     map[string]uint64
	place       string
	free        []Reg
	used        int
	err         error
}

type operation struct {
	Call
	place string
	kinds [8]uint8
	args  [maxArgs]uint64
}

// What an argument is. A kindData is a kindValue for the stage.
const (
	kindValue = iota
	kindRegister
	kindAddress
	kindData
)

// New returns an empty plan with room for some operations; more than that costs time.
func New(operations int) *Plan {
	p := &Plan{strings: make(map[string]uint64, operations/3), ops: make([]operation, 0, operations), labels: make([]int, 0, operations/3)}
	p.data.Grow(40 * operations)
	return p
}

// At says what of the spec the following operations come from; errors name it.
func (p *Plan) At(format string, args ...any) {
	if len(args) > 0 {
		format = fmt.Sprintf(format, args...)
	}
	p.place = format
}

// Reg takes a register that Free gave back, or a new one.
func (p *Plan) Reg() Reg {
	if n := len(p.free); n > 0 {
		r := p.free[n-1]
		p.free = p.free[:n-1]
		return r
	}
	if p.used == math.MaxUint8 {
		p.fail(fmt.Errorf("%s: a plan has %d registers at most", p.place, math.MaxUint8))
		return 0
	}
	p.used++
	return Reg(p.used)
}

// Free gives a register back. Its descriptor is not closed.
func (p *Plan) Free(r Reg) { p.free = append(p.free, r) }

// Label makes a label, to be placed with Mark.
func (p *Plan) Label() Label {
	p.labels = append(p.labels, -1)
	return Label(len(p.labels))
}

// Mark places a label before the next operation.
func (p *Plan) Mark(l Label) { p.labels[l-1] = len(p.ops) }

// Do appends a call.
func (p *Plan) Do(c Call) {
	p.ops = append(p.ops, operation{Call: c, place: p.place})
	p.settle(&p.ops[len(p.ops)-1])
}

// settle encodes the arguments of the call appended last. One that cannot be made is taken away again.
func (p *Plan) settle(o *operation) {
	if o.N > maxArgs || len(o.Accept) > 3 {
		p.fail(fmt.Errorf("%s: %s has %d arguments and %d accepted errors", p.place, o.Name, o.N, len(o.Accept)))
		p.ops = p.ops[:len(p.ops)-1]
		return
	}
	for i, a := range o.Args[:o.N] {
		o.kinds[i], o.args[i] = p.argument(a)
	}
}

// SetResult says where the result of the call appended last goes.
func (p *Plan) SetResult(r Reg) {
	if n := len(p.ops); n > 0 {
		p.ops[n-1].Result = r
	}
}

func (p *Plan) argument(a any) (uint8, uint64) {
	switch v := a.(type) {
	case int:
		return kindValue, uint64(v)
	case Octal:
		return kindValue, uint64(v)
	case Mode:
		return kindValue, uint64(v)
	case Device:
		return kindValue, uint64(v)
	case OpenHow:
		return kindData, p.words(uint64(v.Flags), 0, uint64(v.Resolve))
	case MountAttr:
		return kindData, p.words(v.Set, v.Clear, v.Propagation, v.UserNS)
	case Flags:
		return kindValue, v.Value
	case Reg:
		return kindRegister, uint64(v)
	case Address:
		return kindAddress, uint64(v)
	case string:
		return kindData, p.text(v)
	case []byte:
		return kindData, p.put(v)
	case Struct:
		return kindData, p.put(v.Data)
	case []string:
		return kindData, p.array(v)
	case Pointer:
		to := p.put(v.To)
		at := p.put(binary.LittleEndian.AppendUint64(bytes.Clone(v.Head), to))
		p.relocations = append(p.relocations, at+uint64(len(v.Head)))
		return kindData, at
	}
	p.fail(fmt.Errorf("%s: an argument of type %T", p.place, a))
	return 0, 0
}

// text stores a string once, with a NUL after it. A NUL within it would cut it short, so it is an error.
func (p *Plan) text(s string) uint64 {
	if at, ok := p.strings[s]; ok {
		return at
	}
	if strings.IndexByte(s, 0) >= 0 {
		p.fail(fmt.Errorf("%s: %q has a NUL byte in it", p.place, s))
	}
	at := p.align()
	p.data.WriteString(s)
	p.data.WriteByte(0)
	p.strings[s] = at
	return at
}

func (p *Plan) words(values ...uint64) uint64 {
	at := p.align()
	var word [8]byte
	for _, v := range values {
		binary.LittleEndian.PutUint64(word[:], v)
		p.data.Write(word[:])
	}
	return at
}

// align pads the data to eight bytes and gives the offset.
func (p *Plan) align() uint64 {
	for p.data.Len()%8 != 0 {
		p.data.WriteByte(0)
	}
	return uint64(p.data.Len())
}

func (p *Plan) put(b []byte) uint64 {
	at := p.align()
	p.data.Write(b)
	return at
}

// array stores a NULL-terminated array of strings, as execve takes it.
func (p *Plan) array(s []string) uint64 {
	words := make([]byte, 0, 8*len(s)+8)
	for _, x := range s {
		words = binary.LittleEndian.AppendUint64(words, p.text(x))
	}
	at := p.put(append(words, make([]byte, 8)...))
	for i := range s {
		p.relocations = append(p.relocations, at+uint64(8*i))
	}
	return at
}

func (p *Plan) fail(err error) {
	if p.err == nil {
		p.err = err
	}
}

// Len is the number of operations.
func (p *Plan) Len() int { return len(p.ops) }

const (
	headerSize    = 8
	operationSize = 72

	place = 0x410000 // where the stage maps the plan
	room  = 1 << 26  // the most that it maps
)

// Encode lays the plan out as stage.c reads it.
func (p *Plan) Encode() ([]byte, error) {
	if p.err != nil {
		return nil, p.err
	}
	if len(p.ops) >= math.MaxUint16 {
		return nil, fmt.Errorf("a plan of %d calls is too long: %d is the most", len(p.ops), math.MaxUint16-1)
	}
	le := binary.LittleEndian
	dataAt := headerSize + len(p.ops)*operationSize
	size := dataAt + p.data.Len()
	if size > room {
		return nil, fmt.Errorf("a plan of %d bytes is too long: %d is the most", size, room)
	}
	b := make([]byte, 0, size)
	b = le.AppendUint64(b, uint64(len(p.ops)))
	for i := range p.ops {
		b = p.encode(b, i, place+uint64(dataAt))
	}
	b = append(b, p.data.Bytes()...)
	for _, r := range p.relocations {
		pointer := b[uint64(dataAt)+r:]
		le.PutUint64(pointer, le.Uint64(pointer)+place+uint64(dataAt))
	}
	return b, p.err
}

// encode appends one operation; the data is to lie at an address.
func (p *Plan) encode(b []byte, i int, data uint64) []byte {
	le, o := binary.LittleEndian, &p.ops[i]
	b = le.AppendUint16(b, uint16(o.Nr))
	b = append(b, byte(o.Result), 0)
	var accept [3]uint16
	for k, e := range o.Accept {
		accept[k] = uint16(e)
	}
	for _, a := range accept {
		b = le.AppendUint16(b, a)
	}
	next := p.target(o.Next, i+1)
	b = le.AppendUint16(b, next)
	b = le.AppendUint16(b, p.target(o.Zero, int(next)))
	b = le.AppendUint16(b, p.target(o.Otherwise, i+1))
	kinds, args := o.kinds, o.args
	for k := range args {
		if kinds[k] == kindData {
			kinds[k], args[k] = kindValue, args[k]+data
		}
	}
	b = append(b, kinds[:]...)
	for _, a := range args {
		b = le.AppendUint64(b, a)
	}
	return b
}

func (p *Plan) target(l Label, otherwise int) uint16 {
	if l == 0 {
		return uint16(otherwise)
	}
	at := p.labels[l-1]
	if at < 0 {
		p.fail(fmt.Errorf("label %d is nowhere in the plan", l))
	}
	return uint16(at)
}

// Error is a call of a plan that failed.
type Error struct {
	Index int
	Place string // of the spec: "mounts[3] /dev/shm"
	Call  string // as Text prints it
	Name  string // of the system call
	Errno unix.Errno
}

func (e *Error) Error() string {
	if e.Place == "" {
		return fmt.Sprintf("call %d, %s: %v", e.Index, e.Call, e.Errno)
	}
	return fmt.Sprintf("%s: call %d, %s: %v", e.Place, e.Index, e.Call, e.Errno)
}

func (e *Error) Unwrap() error { return e.Errno }

// Error describes the failure of one call.
func (p *Plan) Error(index int, errno unix.Errno) *Error {
	e := &Error{Index: index, Errno: errno}
	if index < len(p.ops) {
		o := &p.ops[index]
		e.Place, e.Call, e.Name = o.place, o.text(), o.Name
	}
	return e
}

// Text prints the plan, an operation a line, under the places of the spec that they come from.
func (p *Plan) Text() string {
	marks := map[int][]string{}
	for i, at := range p.labels {
		marks[at] = append(marks[at], "L"+strconv.Itoa(i+1)+":")
	}
	var b strings.Builder
	place := ""
	for i := range p.ops {
		o := &p.ops[i]
		if o.place != place {
			place = o.place
			fmt.Fprintf(&b, "# %s\n", place)
		}
		for _, m := range marks[i] {
			fmt.Fprintln(&b, m)
		}
		fmt.Fprintf(&b, "\t%s\n", o.text())
	}
	for _, m := range marks[len(p.ops)] {
		fmt.Fprintln(&b, m)
	}
	return b.String()
}

func (o *operation) text() string {
	var b strings.Builder
	if o.Result != 0 {
		fmt.Fprintf(&b, "r%d = ", o.Result)
	}
	b.WriteString(o.Name + "(")
	for i, a := range o.Args[:o.N] {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(show(a))
	}
	b.WriteString(")")
	if len(o.Accept) > 0 {
		var names []string
		for _, e := range o.Accept {
			if e == AnyError {
				names = append(names, "any error")
			} else {
				names = append(names, unix.ErrnoName(e))
			}
		}
		b.WriteString("  or " + strings.Join(names, ", "))
		if o.Otherwise != 0 {
			fmt.Fprintf(&b, " -> L%d", o.Otherwise)
		}
	}
	if o.Zero != 0 {
		fmt.Fprintf(&b, "  if 0 -> L%d", o.Zero)
	}
	if o.Next != 0 {
		fmt.Fprintf(&b, "  then -> L%d", o.Next)
	}
	return b.String()
}

func show(a any) string {
	switch v := a.(type) {
	case int:
		return strconv.Itoa(v)
	case Octal:
		return "0" + strconv.FormatInt(int64(v), 8)
	case Mode:
		return modeNames.text(uint64(v&unix.S_IFMT)) + "|0" + strconv.FormatUint(uint64(v&^unix.S_IFMT), 8)
	case Device:
		return fmt.Sprintf("makedev(%d, %d)", unix.Major(uint64(v)), unix.Minor(uint64(v)))
	case OpenHow:
		return "{" + openNames.text(uint64(v.Flags)) + ", " + resolveNames.text(uint64(v.Resolve)) + "}"
	case MountAttr:
		text := attrNames.text(v.Set) + ", " + attrNames.text(v.Clear) + ", " + mountNames.text(v.Propagation)
		if v.UserNS != 0 {
			text += ", " + strconv.FormatUint(v.UserNS, 10)
		}
		return "{" + text + "}"
	case Flags:
		return v.Names.text(v.Value)
	case Reg:
		return "r" + strconv.Itoa(int(v))
	case Address:
		return "&r" + strconv.Itoa(int(v))
	case string:
		return strconv.Quote(v)
	case []byte:
		return fmt.Sprintf("[%d bytes]", len(v))
	case []string:
		quoted := make([]string, len(v))
		for i, s := range v {
			quoted[i] = strconv.Quote(s)
		}
		return "[" + strings.Join(quoted, ", ") + "]"
	case Struct:
		return v.Text
	case Pointer:
		return v.Text
	}
	return fmt.Sprintf("%v", a)
}
