// Package procstat reads what the kernel says of processes in /proc.
package procstat

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Numbers of fields in proc_pid_stat(5).
const (
	State    = 3
	Parent   = 4
	Group    = 5 // process group
	Session  = 6
	Threads  = 20
	Start    = 22 // ticks since boot
	ExitCode = 52
)

// Stat is the fields behind the name of the program, which may hold anything.
type Stat []string

// Read reads those of a process. The error is os.ReadFile's.
func Read(pid int) (Stat, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return nil, err
	}
	return Parse(text), nil
}

// Parse splits the content of a stat file.
func Parse(text []byte) Stat {
	return strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
}

// Field is a field by its number, from State on; "" when there are fewer.
func (s Stat) Field(number int) string {
	if i := number - State; i >= 0 && i < len(s) {
		return s[i]
	}
	return ""
}

// Zombies are the children of a process that have ended and were not reaped.
func Zombies(parent int) []int {
	names, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var found []int
	for _, n := range names {
		pid, err := strconv.Atoi(n.Name())
		if err != nil {
			continue
		}
		if stat, err := Read(pid); err == nil && stat.Field(State) == "Z" && stat.Field(Parent) == strconv.Itoa(parent) {
			found = append(found, pid)
		}
	}
	return found
}

// Of is the number of the process that a pidfd of ours is of (proc_pid_fdinfo(5)). One that was reaped has none.
func Of(pidfd int) (int, error) {
	info, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(pidfd))
	if err != nil {
		return 0, err
	}
	_, rest, _ := bytes.Cut(info, []byte("\nPid:\t"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	pid, err := strconv.Atoi(string(line))
	if err != nil || pid <= 0 {
		return 0, fmt.Errorf("descriptor %d is of no process that is there", pidfd)
	}
	return pid, nil
}
