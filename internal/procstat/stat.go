// Package procstat reads what the kernel says of a process in /proc/PID/stat.
package procstat

import (
	"bytes"
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
