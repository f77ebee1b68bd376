//go:build ignore

// gen writes syscalls.tsv, the numbers of system calls by name and architecture, from the constants of
// golang.org/x/sys/unix, which are generated from the kernel's headers.
//
//	go run gen.go "$(go list -m -f '{{.Dir}}' golang.org/x/sys)/unix"
package main

import (
	"bytes"
	"fmt"
	"log"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// columns are the architectures by their names in a seccomp profile, and the file of x/sys that has their numbers.
var columns = []struct{ name, goarch string }{
	{"X86_64", "amd64"}, {"X32", ""}, {"X86", "386"}, {"AARCH64", "arm64"}, {"ARM", "arm"}, {"RISCV64", "riscv64"},
	{"LOONGARCH64", "loong64"}, {"PPC64LE", "ppc64le"}, {"S390X", "s390x"},
}

// x32 has numbers of its own for what passes pointers to words (arch/x86/entry/syscalls/syscall_64.tbl, from 512 on).
var x32 = strings.Fields(`rt_sigaction rt_sigreturn ioctl readv writev recvfrom sendmsg recvmsg execve ptrace rt_sigpending
	rt_sigtimedwait rt_sigqueueinfo sigaltstack timer_create mq_notify kexec_load waitid set_robust_list get_robust_list vmsplice
	move_pages preadv pwritev rt_tgsigqueueinfo recvmmsg sendmmsg process_vm_readv process_vm_writev setsockopt getsockopt
	io_setup io_submit execveat preadv2 pwritev2`)

// armPrivate are numbered from 0x0f0001 (arch/arm/include/uapi/asm/unistd.h).
var armPrivate = []string{"breakpoint", "cacheflush", "usr26", "usr32", "set_tls", "get_tls"}

var constant = regexp.MustCompile(`(?m)^\s+SYS_(\w+)\s+= (\d+)`)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 {
		log.Fatal("usage: go run gen.go DIRECTORY-OF-X-SYS-UNIX")
	}
	table := map[string]map[string]string{} // name -> column -> number
	set := func(name, column, number string) {
		if table[name] == nil {
			table[name] = map[string]string{}
		}
		table[name][column] = number
	}
	for _, c := range columns {
		if c.goarch == "" {
			continue
		}
		source, err := os.ReadFile(filepath.Join(os.Args[1], "zsysnum_linux_"+c.goarch+".go"))
		if err != nil {
			log.Fatal(err)
		}
		for _, m := range constant.FindAllSubmatch(source, -1) {
			name, number := strings.ToLower(string(m[1])), string(m[2])
			if name == "syscall_mask" || name == "arch_specific_syscall" {
				continue // not calls
			}
			set(name, c.name, number)
			if c.name == "X86_64" {
				if i := slices.Index(x32, name); i >= 0 {
					number = fmt.Sprint(512 + i)
				}
				set(name, "X32", number)
			}
		}
	}
	for i, name := range armPrivate {
		set(name, "ARM", fmt.Sprint(0x0f0001+i))
	}
	var out bytes.Buffer
	out.WriteString("#name")
	for _, c := range columns {
		out.WriteString("\t" + c.name)
	}
	out.WriteByte('\n')
	for _, name := range slices.Sorted(maps.Keys(table)) {
		out.WriteString(name)
		for _, c := range columns {
			number := table[name][c.name]
			if number == "" {
				number = "-"
			}
			out.WriteString("\t" + number)
		}
		out.WriteByte('\n')
	}
	if err := os.WriteFile("syscalls.tsv", out.Bytes(), 0o644); err != nil {
		log.Fatal(err)
	}
}
