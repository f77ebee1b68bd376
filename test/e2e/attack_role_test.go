package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// poison is what the attacker writes into other processes. It is computed, so that it is in no program's file, and the
// attacker never prints it: wherever else it is found, the attacker wrote it.
func poison() []byte {
	sum := sha256.Sum256([]byte("written by a container"))
	return sum[:]
}

// attacker is role-attack's state.
type attacker struct {
	poison   []byte
	seen     map[string]bool // pid and start time
	counts   map[string]int  // how often each way of writing worked
	reported map[string]bool
}

// roleAttack writes into every process that it can see, by each way that Linux has, and reports what it should not have
// been able to see or open: "FOUND ..." lines. At SIGTERM it prints how often each way worked.
func roleAttack([]string) int {
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	runtime.LockOSThread() // ptrace belongs to a thread
	a := &attacker{poison: poison(), seen: map[string]bool{}, counts: map[string]int{}, reported: map[string]bool{}}
	fmt.Println("ready")
	for {
		select {
		case <-term:
			fmt.Printf("seen=%d mem=%d vm=%d ptrace=%d\n", len(a.seen), a.counts["mem"], a.counts["vm"], a.counts["ptrace"])
			return 0
		default:
		}
		for _, pid := range otherPIDs() {
			a.attack(pid)
		}
	}
}

// otherPIDs are all processes that are visible, but this one.
func otherPIDs() []int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	var pids []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (a *attacker) report(format string, args ...any) {
	if line := fmt.Sprintf("FOUND "+format, args...); !a.reported[line] {
		a.reported[line] = true
		fmt.Println(line)
	}
}

func (a *attacker) attack(pid int) {
	base := "/proc/" + strconv.Itoa(pid)
	if stat, err := os.ReadFile(base + "/stat"); err == nil {
		if fields := bytes.Fields(stat); len(fields) > 21 {
			a.seen[fmt.Sprintf("%d/%s", pid, fields[21])] = true
		}
	}
	a.lookAtProgram(base)
	a.lookAtDescriptors(base)
	addrs := writable(base)
	if mem, err := os.OpenFile(base+"/mem", os.O_RDWR, 0); err == nil {
		for _, addr := range addrs {
			if _, err := mem.WriteAt(a.poison, int64(addr)); err == nil {
				a.counts["mem"]++
			}
		}
		mem.Close()
	}
	for _, addr := range addrs {
		local := []unix.Iovec{{Base: &a.poison[0], Len: uint64(len(a.poison))}}
		remote := []unix.RemoteIovec{{Base: uintptr(addr), Len: len(a.poison)}}
		if _, err := unix.ProcessVMWritev(pid, local, remote, 0); err == nil {
			a.counts["vm"]++
		}
	}
	a.ptrace(pid, addrs)
}

// lookAtProgram reports a program of ours, and tries to write to whatever it is (CVE-2019-5736).
func (a *attacker) lookAtProgram(base string) {
	exe, err := os.Readlink(base + "/exe")
	if err != nil {
		return
	}
	if strings.Contains(filepath.Base(exe), "criserver") {
		a.report("program %s", exe)
	}
	if strings.HasPrefix(exe, "/memfd:") {
		if f, err := os.OpenFile(base+"/exe", os.O_WRONLY, 0); err == nil {
			if _, err := f.WriteAt(a.poison, 0); err == nil {
				a.report("writable program %s", exe)
			}
			f.Close()
		}
	}
}

// lookAtDescriptors reports descriptors of the host: sockets, memory files, event queues, and files that are not what
// the same path is in the process's own root.
func (a *attacker) lookAtDescriptors(base string) {
	entries, err := os.ReadDir(base + "/fd")
	if err != nil {
		return
	}
	for _, e := range entries {
		link := base + "/fd/" + e.Name()
		target, err := os.Readlink(link)
		if err != nil || strings.HasPrefix(target, "pipe:") {
			continue
		}
		if !strings.HasPrefix(target, "/") || strings.HasPrefix(target, "/memfd:") {
			a.report("descriptor %s", target)
			continue
		}
		var behind, named unix.Stat_t
		if unix.Stat(link, &behind) != nil || behind.Mode&unix.S_IFMT == unix.S_IFIFO {
			continue // the process has ended, or it is its output
		}
		// Another container of the pod has a root of its own.
		here := unix.Stat(base+"/root"+target, &named) == nil && named.Dev == behind.Dev && named.Ino == behind.Ino
		if again, err := os.Readlink(link); err != nil || again != target {
			continue // closed, and another in its place
		}
		if !here && !strings.HasPrefix(target, "/proc/") && !strings.HasPrefix(target, "/dev/") {
			a.report("descriptor of the host's %s", target)
		}
	}
}

// writable are the beginnings of a process's writable mappings.
func writable(base string) []uint64 {
	f, err := os.Open(base + "/maps")
	if err != nil {
		return nil
	}
	defer f.Close()
	var addrs []uint64
	for s := bufio.NewScanner(f); s.Scan(); {
		span, rest, _ := strings.Cut(s.Text(), " ")
		from, _, _ := strings.Cut(span, "-")
		if addr, err := strconv.ParseUint(from, 16, 64); err == nil && strings.HasPrefix(rest, "rw") {
			addrs = append(addrs, addr)
		}
	}
	return addrs
}

func (a *attacker) ptrace(pid int, addrs []uint64) {
	if unix.PtraceAttach(pid) != nil {
		return
	}
	if _, err := unix.Wait4(pid, nil, unix.WALL, nil); err != nil {
		return
	}
	for _, addr := range addrs {
		if _, err := unix.PtracePokeData(pid, uintptr(addr), a.poison); err == nil {
			a.counts["ptrace"]++
		}
	}
	_ = unix.PtraceDetach(pid)
	_ = unix.Kill(pid, unix.SIGCONT) // the stop of the attach may come only now, and 2,000 execs would each wait for their time limit
}

// roleStopper stops every process that it can see, again and again.
func roleStopper([]string) int {
	fmt.Println("ready")
	for {
		for _, pid := range otherPIDs() {
			_ = syscall.Kill(pid, syscall.SIGSTOP)
		}
	}
}

// findPoison looks for it in the writable memory of a process.
func findPoison(pid int) error {
	base := "/proc/" + strconv.Itoa(pid)
	mem, err := os.Open(base + "/mem")
	if err != nil {
		return err
	}
	defer mem.Close()
	pattern := poison()
	return eachMapping(base, func(m mapping) error {
		if !strings.HasPrefix(m.mode, "rw") {
			return nil
		}
		for at := m.from; at < m.to; at += 1 << 20 {
			block := make([]byte, min(m.to-at, 1<<20+uint64(len(pattern)))) // overlapping: none is missed at a border
			n, _ := mem.ReadAt(block, int64(at))                            // a hole reads nothing
			if i := bytes.Index(block[:n], pattern); i >= 0 {
				return fmt.Errorf("the attacker's bytes are at %#x in process %d (%s)", at+uint64(i), pid, m.file)
			}
		}
		return nil
	})
}

// textSum is a checksum of the executable memory of a process.
func textSum(pid int) (string, error) {
	base := "/proc/" + strconv.Itoa(pid)
	mem, err := os.Open(base + "/mem")
	if err != nil {
		return "", err
	}
	defer mem.Close()
	sum := sha256.New()
	err = eachMapping(base, func(m mapping) error {
		if !strings.HasPrefix(m.mode, "r-x") || !strings.HasPrefix(m.file, "/") {
			return nil
		}
		block := make([]byte, m.to-m.from)
		n, err := mem.ReadAt(block, int64(m.from))
		sum.Write(block[:n])
		return err
	})
	return fmt.Sprintf("%x", sum.Sum(nil)), err
}

// mapping is a line of proc_pid_maps(5).
type mapping struct {
	from, to   uint64
	mode, file string
}

func eachMapping(base string, do func(mapping) error) error {
	f, err := os.Open(base + "/maps")
	if err != nil {
		return err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		var m mapping
		fields := strings.Fields(s.Text())
		if _, err := fmt.Sscanf(fields[0], "%x-%x", &m.from, &m.to); err != nil {
			return err
		}
		m.mode = fields[1]
		if len(fields) > 5 {
			m.file = fields[5]
		}
		if err := do(m); err != nil {
			return err
		}
	}
	return s.Err()
}
