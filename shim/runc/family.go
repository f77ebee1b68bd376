package runc

import (
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/internal/procstat"
	"github.com/criserver/criserver/shim/native"
)

// family is a program that runs, and ends with all that it has made: a process of it that nobody reaps would keep the pid
// namespace of the container from ending.
type family struct {
	pid, pidfd int
	children   map[int]*os.File
}

// kill ends the program and its children. The program is stopped first, so that it makes no more of them and reaps none.
func (f *family) kill() {
	f.children = map[int]*os.File{}
	_ = unix.PidfdSendSignal(f.pidfd, unix.SIGSTOP, nil, 0)
	for range 50 { // a child may just be making another one
		if !f.adopt() {
			break
		}
		time.Sleep(time.Millisecond)
	}
	_ = unix.PidfdSendSignal(f.pidfd, unix.SIGKILL, nil, 0)
}

// adopt kills the children that it has not seen yet and reports whether there were any.
func (f *family) adopt() (more bool) {
	names, err := os.ReadDir("/proc")
	if err != nil {
		return false
	}
	for _, n := range names {
		pid, err := strconv.Atoi(n.Name())
		if err != nil || f.children[pid] != nil || parentOf(pid) != f.pid {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		if parentOf(pid) != f.pid { // the number may have become another's
			_ = unix.Close(fd)
			continue
		}
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		f.children[pid], more = os.NewFile(uintptr(fd), "pidfd"), true
	}
	return more
}

// reap reaps the children, who are ours once the program was reaped.
func (f *family) reap() {
	for _, child := range f.children {
		native.End(child)
	}
}

// parentOf is field 4 of /proc/PID/stat, 0 when there is none.
func parentOf(pid int) int {
	stat, err := procstat.Read(pid)
	if err != nil {
		return 0
	}
	parent, _ := strconv.Atoi(stat.Field(procstat.Parent))
	return parent
}
