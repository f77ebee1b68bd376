package rig

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Process is one line of ps.
type Process struct {
	PID, PPID int
	State     byte   // as in proc(5): R, S, D, T, Z
	Start     uint64 // clock ticks since boot: tells a process from a later one with the same number
	Exe       string // path of its program, as it was started
	Cmdline   string
}

func (p Process) String() string {
	return fmt.Sprintf("%d (parent %d, %c) %s", p.PID, p.PPID, p.State, p.Cmdline)
}

// Processes lists the processes of the place; those that end meanwhile may be missing.
func Processes() ([]Process, error) {
	all, err := visible()
	if err != nil || !sharesProcesses() {
		return all, err
	}
	root, err := strconv.Atoi(os.Getenv(envInit))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", envInit, err)
	}
	return beneath(all, root), nil
}

// visible lists the processes that /proc has.
func visible() ([]Process, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var all []Process
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			if p, err := ReadProcess(pid); err == nil {
				all = append(all, p)
			}
		}
	}
	return all, nil
}

// ReadProcess reads one process.
func ReadProcess(pid int) (Process, error) {
	base := "/proc/" + strconv.Itoa(pid)
	stat, err := os.ReadFile(base + "/stat")
	if err != nil {
		return Process{}, err
	}
	p := Process{PID: pid}
	// The name stands in parentheses and may hold anything, so the fields are counted from the last one.
	_, rest, _ := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')'):]), " ")
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return Process{}, fmt.Errorf("%s/stat: %d fields after the name", base, len(fields))
	}
	p.State = fields[0][0]
	p.PPID, _ = strconv.Atoi(fields[1])
	p.Start, _ = strconv.ParseUint(fields[19], 10, 64)
	if exe, err := os.Readlink(base + "/exe"); err == nil {
		p.Exe = strings.TrimSuffix(exe, " (deleted)")
	}
	if line, err := os.ReadFile(base + "/cmdline"); err == nil {
		p.Cmdline = strings.TrimSpace(strings.ReplaceAll(string(line), "\x00", " "))
	}
	if p.Cmdline == "" { // a zombie, or not yet executed
		open := strings.IndexByte(string(stat), '(')
		p.Cmdline = "[" + string(stat[open+1:strings.LastIndexByte(string(stat), ')')]) + "]"
	}
	return p, nil
}
