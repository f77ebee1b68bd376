package native

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native/plan"
)

// mostBits is how many CPUs or nodes a list can name, more than a kernel can be built for.
const mostBits = 8192

// bitmap is a set of CPUs or nodes of memory, in the form that system calls take: a bit each, in words of 64.
type bitmap []uint64

// parseBitmap reads a list such as "0-3,7".
func parseBitmap(list string) (bitmap, error) {
	var b bitmap
	for part := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			last = first
		}
		from, err := strconv.ParseUint(first, 10, 32)
		to, err2 := strconv.ParseUint(last, 10, 32)
		if err != nil || err2 != nil || from > to || to >= mostBits {
			return nil, fmt.Errorf("%q: a list of numbers below %d is wanted, such as 0-3,7: %w", list, mostBits, errdefs.ErrInvalidArgument)
		}
		for len(b) <= int(to/64) {
			b = append(b, 0)
		}
		for n := from; n <= to; n++ {
			b[n/64] |= 1 << (n % 64)
		}
	}
	return b, nil
}

func (b bitmap) bytes() []byte {
	var out []byte
	for _, word := range b { // of 64 bits on all machines that this runs on
		out = binary.NativeEndian.AppendUint64(out, word)
	}
	return out
}

func (b bitmap) argument(list string) plan.Struct {
	return plan.Struct{Data: b.bytes(), Text: "{" + list + "}"}
}

// affinity has an exec run on some CPUs only, from now on. The first process of a container has no use for it.
func (c *compiler) affinity(field, list string) error {
	if list == "" {
		return nil
	}
	c.At("process.execCPUAffinity.%s", field)
	cpus, err := parseBitmap(list)
	if err != nil {
		return fmt.Errorf("process.execCPUAffinity.%s: %w", field, err)
	}
	c.Simple(unix.SYS_SCHED_SETAFFINITY, "sched_setaffinity", 0, len(cpus)*8, cpus.argument(list))
	return nil
}

// initialCPUs are those that an exec runs on before it joins the container's cgroup.
func initialCPUs(p *specs.Process) string {
	if p.ExecCPUAffinity == nil {
		return ""
	}
	return p.ExecCPUAffinity.Initial
}

// The numbers of set_mempolicy(2).
var (
	memoryPolicies = map[specs.MemoryPolicyModeType]int{
		specs.MpolDefault: 0, specs.MpolPreferred: 1, specs.MpolBind: 2, specs.MpolInterleave: 3, specs.MpolLocal: 4,
		specs.MpolPreferredMany: 5, specs.MpolWeightedInterleave: 6,
	}
	memoryPolicyFlags = map[specs.MemoryPolicyFlagType]int{
		specs.MpolFNumaBalancing: 1 << 13, specs.MpolFRelativeNodes: 1 << 14, specs.MpolFStaticNodes: 1 << 15,
	}
)

// memoryPolicy says on which nodes memory is to be allocated. Children and the program inherit it. What a policy and its nodes must be
// to one another, and which this kernel has, is the kernel's to say.
func (c *compiler) memoryPolicy() error {
	m := c.in.spec.Linux.MemoryPolicy
	if m == nil {
		return nil
	}
	c.At("linux.memoryPolicy")
	mode, known := memoryPolicies[m.Mode]
	if !known {
		return fmt.Errorf("linux.memoryPolicy.mode: %q is not a mode such as MPOL_BIND: %w", m.Mode, errdefs.ErrInvalidArgument)
	}
	for _, f := range m.Flags {
		bit, known := memoryPolicyFlags[f]
		if !known {
			return fmt.Errorf("linux.memoryPolicy.flags: %q is not a flag such as MPOL_F_STATIC_NODES: %w", f, errdefs.ErrInvalidArgument)
		}
		mode |= bit
	}
	if m.Nodes == "" {
		c.Simple(unix.SYS_SET_MEMPOLICY, "set_mempolicy", mode, 0, 0)
		return nil
	}
	nodes, err := parseBitmap(m.Nodes)
	if err != nil {
		return fmt.Errorf("linux.memoryPolicy.nodes: %w", err)
	}
	c.Simple(unix.SYS_SET_MEMPOLICY, "set_mempolicy", mode, nodes.argument(m.Nodes), len(nodes)*64+1) // the kernel takes one off
	return nil
}
