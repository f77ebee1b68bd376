package seccomp

import (
	_ "embed"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// architecture is what a filter has to know of one calling convention.
type architecture struct {
	name      specs.Arch
	audit     uint32 // AUDIT_ARCH_*, as in seccomp_data.arch
	bit       uint32 // set in every number (x32)
	words     bool   // arguments are compared by their lower 32 bits
	bigEndian bool   // the upper word of an argument comes first
}

// x32Bit marks x32 calls, which share AUDIT_ARCH_X86_64 (arch/x86/include/uapi/asm/unistd.h).
const x32Bit = 0x40000000

// armPrivate is where ARM's private calls begin; they are no measure of how new a profile is.
const armPrivate = 0x0f0000

var architectures = []*architecture{
	{name: specs.ArchX86_64, audit: unix.AUDIT_ARCH_X86_64},
	{name: specs.ArchX32, audit: unix.AUDIT_ARCH_X86_64, bit: x32Bit, words: true},
	{name: specs.ArchX86, audit: unix.AUDIT_ARCH_I386, words: true},
	{name: specs.ArchAARCH64, audit: unix.AUDIT_ARCH_AARCH64},
	{name: specs.ArchARM, audit: unix.AUDIT_ARCH_ARM, words: true},
	{name: specs.ArchRISCV64, audit: unix.AUDIT_ARCH_RISCV64},
	{name: specs.ArchLOONGARCH64, audit: unix.AUDIT_ARCH_LOONGARCH64},
	{name: specs.ArchPPC64LE, audit: unix.AUDIT_ARCH_PPC64LE},
	{name: specs.ArchS390X, audit: unix.AUDIT_ARCH_S390X, bigEndian: true},
}

// foreign are architectures that a profile may name and that no kernel that criserver is built for can run. Without a
// table they are left out of the filter, and a call from one would be killed like any unlisted one.
var foreign = map[specs.Arch]bool{
	specs.ArchMIPS: true, specs.ArchMIPS64: true, specs.ArchMIPS64N32: true, specs.ArchMIPSEL: true, specs.ArchMIPSEL64: true,
	specs.ArchMIPSEL64N32: true, specs.ArchPPC: true, specs.ArchPPC64: true, specs.ArchS390: true, specs.ArchPARISC: true,
	specs.ArchPARISC64: true, specs.ArchM68K: true, specs.ArchSH: true, specs.ArchSHEB: true,
}

// native is the architecture that this program runs on.
func native() (*architecture, error) {
	names := map[string]specs.Arch{
		"amd64": specs.ArchX86_64, "386": specs.ArchX86, "arm64": specs.ArchAARCH64, "arm": specs.ArchARM, "riscv64": specs.ArchRISCV64,
		"loong64": specs.ArchLOONGARCH64, "ppc64le": specs.ArchPPC64LE, "s390x": specs.ArchS390X,
	}
	return lookup(names[runtime.GOARCH])
}

// lookup finds an architecture by its name in a profile. Nil without an error is a foreign one.
func lookup(name specs.Arch) (*architecture, error) {
	for _, a := range architectures {
		if a.name == name {
			return a, nil
		}
	}
	if foreign[name] {
		return nil, nil
	}
	return nil, fmt.Errorf("linux.seccomp.architectures: %q is not an architecture, want one like %s: %w", name, specs.ArchX86_64, errdefs.ErrInvalidArgument)
}

//go:generate sh -c "go run gen.go \"$(go list -m -f '{{.Dir}}' golang.org/x/sys)/unix\""
//go:embed syscalls.tsv
var syscallsTSV string

// tables maps the names of system calls to numbers, without the architecture's bit. Parsed once, 0.2 ms.
var tables = sync.OnceValue(func() map[specs.Arch]map[string]uint32 {
	all := map[specs.Arch]map[string]uint32{}
	header, rows, _ := strings.Cut(strings.TrimPrefix(syscallsTSV, "#name\t"), "\n")
	var columns []map[string]uint32
	for name := range strings.SplitSeq(header, "\t") {
		column := make(map[string]uint32, 512)
		all[specs.Arch("SCMP_ARCH_"+name)] = column
		columns = append(columns, column)
	}
	for row := range strings.Lines(rows) {
		name, numbers, _ := strings.Cut(strings.TrimSuffix(row, "\n"), "\t")
		i := 0
		for number := range strings.SplitSeq(numbers, "\t") {
			if n, err := strconv.ParseUint(number, 10, 32); err == nil {
				columns[i][name] = uint32(n)
			}
			i++
		}
	}
	return all
})

// number is the system call's number on the architecture, bit included.
func (a *architecture) number(name string) (uint32, bool) {
	n, ok := tables()[a.name][name]
	return n | a.bit, ok
}

// multiplexed are the system calls that some architectures (of those here: x86, ppc64le and s390x) also, or only, reach
// through socketcall or ipc with their number in the first argument (include/uapi/linux/net.h and ipc.h).
var multiplexed = func() map[string]multiplex {
	m := map[string]multiplex{}
	sockets := strings.Fields(`socket bind connect listen accept getsockname getpeername socketpair send recv sendto recvfrom
		shutdown setsockopt getsockopt sendmsg recvmsg accept4 recvmmsg sendmmsg`)
	for i, name := range sockets {
		m[name] = multiplex{"socketcall", 0xffffffff, uint64(i + 1)}
	}
	for first, names := range map[int]string{1: "semop semget semctl semtimedop", 11: "msgsnd msgrcv msgget msgctl", 21: "shmat shmdt shmget shmctl"} {
		for i, name := range strings.Fields(names) {
			// The upper half of ipc's first argument is a version, which the kernel takes off first.
			m[name] = multiplex{"ipc", 0xffff, uint64(first + i)}
		}
	}
	return m
}()

// multiplex says how a system call is reached through another: by this call, with call in the masked first argument.
type multiplex struct {
	by         string
	mask, call uint64
}
