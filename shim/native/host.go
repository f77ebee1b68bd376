package native

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Host is what the kernel and our own privileges allow. It is probed once.
type Host struct {
	// LowerdirPlus: overlay takes its layers one by one (Linux 6.7).
	LowerdirPlus bool
	// ProcPidns: proc can be mounted for another pid namespace than the mounter's (Linux 6.17).
	ProcPidns bool
	// CloneDetached: a mount that is attached nowhere can be copied (Linux 6.15).
	CloneDetached bool
	// Capabilities that we have, and can give away.
	Capabilities uint64
	// LastCapability is the highest number that the kernel knows.
	LastCapability int
	// LeastOOMScoreAdj is the lowest that a process of ours can be given.
	LeastOOMScoreAdj int
}

// Probe asks the kernel. It needs CAP_SYS_ADMIN, as all else here does.
func Probe() (Host, error) {
	h := Host{LeastOOMScoreAdj: -1000}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return h, err
	}
	if h.Capabilities, err = statusSet(status, "CapPrm"); err != nil {
		return h, err
	}
	bounding, err := statusSet(status, "CapBnd")
	if err != nil {
		return h, err
	}
	h.Capabilities &= bounding
	for _, need := range []struct {
		number int
		name   string
	}{{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN"}, {unix.CAP_SYS_PTRACE, "CAP_SYS_PTRACE"}, {unix.CAP_MKNOD, "CAP_MKNOD"}} {
		if h.Capabilities&(1<<need.number) == 0 {
			return h, fmt.Errorf("the runtime needs %s, which this process lacks: run it as root with that capability", need.name)
		}
	}
	last, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		return h, err
	}
	if h.LastCapability, err = strconv.Atoi(strings.TrimSpace(string(last))); err != nil {
		return h, fmt.Errorf("/proc/sys/kernel/cap_last_cap: %w", err)
	}
	if h.Capabilities&(1<<unix.CAP_SYS_RESOURCE) == 0 {
		own, err := os.ReadFile("/proc/self/oom_score_adj")
		if err != nil {
			return h, err
		}
		if h.LeastOOMScoreAdj, err = strconv.Atoi(strings.TrimSpace(string(own))); err != nil {
			return h, fmt.Errorf("/proc/self/oom_score_adj: %w", err)
		}
	}
	h.LowerdirPlus = takesLowerdirPlus()
	h.ProcPidns = takesPidns()
	h.CloneDetached = clonesDetached()
	return h, nil
}

func statusSet(status []byte, field string) (uint64, error) {
	_, rest, found := bytes.Cut(status, []byte(field+":\t"))
	if !found {
		return 0, fmt.Errorf("/proc/self/status has no %s", field)
	}
	value, _, _ := bytes.Cut(rest, []byte("\n"))
	return strconv.ParseUint(string(value), 16, 64)
}

// takesLowerdirPlus: a kernel that knows the option looks the path up at once; an older one keeps any string for later.
func takesLowerdirPlus() bool {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return false
	}
	defer unix.Close(fs)
	return errors.Is(unix.FsconfigSetString(fs, "lowerdir+", "/proc/self/does-not-exist"), unix.ENOENT)
}

func takesPidns() bool {
	fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return false
	}
	defer unix.Close(fs)
	ns, err := unix.Open("/proc/self/ns/pid", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(ns)
	return unix.FsconfigSetFd(fs, "pidns", ns) == nil
}

func clonesDetached() bool {
	tree, err := detachedTmpfs(tmpfsOptions("4k"))
	if err != nil {
		return false
	}
	defer unix.Close(tree)
	copied, err := unix.OpenTree(tree, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return false
	}
	return unix.Close(copied) == nil
}

// detachedTmpfs makes a tmpfs for anyone to write to that is mounted nowhere.
func detachedTmpfs(options []string) (int, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open tmpfs: %w", err)
	}
	defer unix.Close(fs)
	for _, o := range options {
		key, value, _ := strings.Cut(o, "=")
		if err := unix.FsconfigSetString(fs, key, value); err != nil {
			return -1, fmt.Errorf("tmpfs option %s: %w", o, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("make a tmpfs: %w", err)
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, hidden)
}

func tmpfsOptions(size string) []string { return []string{"mode=1777", "size=" + size} }

// hidden are the attributes of a mount from which nothing is to be run.
const hidden = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
