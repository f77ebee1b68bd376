package rig

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// sharesProcesses says that the place has no process namespace of its own: systemd is told of processes by their numbers, which
// it must understand. The place's processes are then those that descend from its init, to which orphans come.
func sharesProcesses() bool { return os.Getenv(EnvDriver) == "systemd" }

// adoptOrphans makes this process the parent of those beneath it whose own ends.
func adoptOrphans() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the parent of orphans: %w", err)
	}
	return nil
}

// gather makes this process, which is not process 1, the init of all that it starts, the program by attr among them.
func gather(attr *os.ProcAttr) error {
	if err := adoptOrphans(); err != nil {
		return err
	}
	runtime.LockOSThread() // whose end is what Pdeathsig tells of
	attr.Sys = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return os.Setenv(envInit, strconv.Itoa(os.Getpid()))
}

// endGathered kills all that descends from this process, as the kernel does when a process namespace ends.
func endGathered() {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		all, err := visible()
		if err != nil {
			fmt.Fprintf(os.Stderr, "rig: %v\n", err)
			return
		}
		for _, p := range beneath(all, os.Getpid()) {
			_ = unix.Kill(p.PID, unix.SIGKILL) // it may have ended
		}
		for {
			pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
			if errors.Is(err, unix.ECHILD) {
				return
			}
			if err != nil && !errors.Is(err, unix.EINTR) || err == nil && pid == 0 {
				break
			}
		}
	}
	fmt.Fprintln(os.Stderr, "rig: processes survive SIGKILL")
}

// beneath are those of all that descend from the process root, which is not among them.
func beneath(all []Process, root int) []Process {
	children := make(map[int][]Process)
	for _, p := range all {
		children[p.PPID] = append(children[p.PPID], p)
	}
	found := children[root]
	for i := 0; i < len(found); i++ {
		found = append(found, children[found[i].PID]...)
	}
	return found
}

// slice is the slice of systemd's that those of the place's daemons are in.
func (p *Place) slice() string { return strings.TrimPrefix(p.CgroupParent, "/") + ".slice" }

// stopSlices has systemd forget the slices of the place's daemons.
func (p *Place) stopSlices() error {
	if !sharesProcesses() {
		return nil
	}
	if out, err := exec.Command("systemctl", "stop", p.slice()).CombinedOutput(); err != nil {
		return fmt.Errorf("systemctl stop %s: %w: %s", p.slice(), err, out)
	}
	return nil
}
