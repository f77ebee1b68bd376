// Command init is process 1 of the test machine (hack/vm): it loads the kernel modules, mounts the root disk and the
// kernel's filesystems, runs the command named in /job to its end, reports its exit code on the second serial port
// and turns the machine off.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	code := 125
	if len(os.Args) > 1 && os.Args[1] == "second" {
		code = second()
	} else if len(os.Args) > 1 && os.Args[1] == "job" {
		code = serviceJob()
	} else if err := first(); err != nil { // does not return when it works
		fmt.Fprintf(os.Stderr, "init: %v\n", err)
	}
	report(code)
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// first runs on the kernel's initial root, which cannot be pivoted away from: it makes the disk the root.
func first() error {
	for _, m := range []struct{ fstype, target string }{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		if err := unix.Mount(m.fstype, m.target, m.fstype, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	list, err := os.ReadFile("/modules.list")
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(list)) {
		if err := loadModule("/" + name); err != nil {
			return fmt.Errorf("load %s: %w", name, err)
		}
	}
	if err := waitFor("/dev/vda", 20*time.Second); err != nil {
		return err
	}
	if err := unix.Mount("/dev/vda", "/root", "ext4", 0, ""); err != nil {
		return fmt.Errorf("mount the root disk: %w", err)
	}
	self, err := os.ReadFile("/init")
	if err != nil {
		return err
	}
	if err := os.WriteFile("/root/init", self, 0o755); err != nil {
		return err
	}
	for _, dir := range []string{"dev", "proc", "sys"} {
		if err := unix.Mount("/"+dir, "/root/"+dir, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move /%s: %w", dir, err)
		}
	}
	if err := errors.Join(unix.Chdir("/root"), unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), unix.Chdir("/")); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	if _, err := os.Stat(systemd); err == nil {
		if err := writeService(); err != nil {
			return err
		}
		return unix.Exec(systemd, []string{"systemd"}, []string{"PATH=/bin"})
	}
	return unix.Exec("/init", []string{"init", "second"}, []string{"PATH=/bin"})
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

func waitFor(path string, limit time.Duration) error {
	for deadline := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		_, err := os.Stat(path)
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// second runs on the disk: it makes what an init makes on a node and runs the command.
func second() int {
	if err := prepare(); err != nil {
		fmt.Fprintf(os.Stderr, "init: %v\n", err)
		return 125
	}
	if err := loadPolicy("/etc/selinux/policy"); err != nil {
		fmt.Fprintf(os.Stderr, "init: SELinux policy: %v\n", err)
		return 125
	}
	return runJob()
}

// runJob runs the command to its end.
func runJob() int {
	job, err := os.ReadFile("/job")
	if err != nil {
		fmt.Fprintf(os.Stderr, "init: %v\n", err)
		return 125
	}
	commandLine, env, _ := strings.Cut(string(job), "\n")
	args := strings.Split(commandLine, "\x00")
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = []string{"PATH=/bin:/sbin:/usr/bin:/usr/sbin:/usr/local/bin", "HOME=/root", "TMPDIR=/tmp"}
	if env != "" {
		cmd.Env = append(cmd.Env, strings.Split(env, "\x00")...)
	}
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = nil, os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		fmt.Fprintf(os.Stderr, "init: %v\n", err)
		return 127
	}
	return reap(cmd.Process.Pid)
}

// reap collects every process that ends until the command is among them, as process 1 must.
func reap(pid int) int {
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			fmt.Fprintf(os.Stderr, "init: wait: %v\n", err)
			return 125
		case got != pid:
		case status.Signaled():
			return 128 + int(status.Signal())
		default:
			return status.ExitStatus()
		}
	}
}

func prepare() error {
	mounts := []struct{ source, target, fstype, data string }{
		{"tmpfs", "/run", "tmpfs", "mode=755"},
		{"devpts", "/dev/pts", "devpts", "mode=620,ptmxmode=666"},
		{"tmpfs", "/dev/shm", "tmpfs", "mode=1777"},
		{"mqueue", "/dev/mqueue", "mqueue", ""},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", ""},
		{"securityfs", "/sys/kernel/security", "securityfs", ""},
		{"bpf", "/sys/fs/bpf", "bpf", "mode=700"},
	}
	for _, m := range mounts {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, m.target, m.fstype, 0, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	// As systemd leaves it: changes of mounts are seen by all who do not ask otherwise.
	if err := unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("share the mounts: %w", err)
	}
	if err := unix.Chmod("/tmp", 0o1777); err != nil { // on the disk: what a node keeps there is no memory
		return err
	}
	if err := os.Symlink("/run", "/var/run"); err != nil {
		return err
	}
	if err := cgroups(); err != nil {
		return err
	}
	if err := linkUp("lo"); err != nil {
		return err
	}
	return unix.Sethostname([]byte("vm"))
}

// loadPolicy gives the kernel its SELinux policy, if there is one.
func loadPolicy(path string) error {
	policy, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := unix.Mount("selinuxfs", "/sys/fs/selinux", "selinuxfs", 0, ""); err != nil {
		return fmt.Errorf("mount selinuxfs: %w", err)
	}
	return os.WriteFile("/sys/fs/selinux/load", policy, 0)
}

// cgroups hands every controller down and moves this process out of the root, as an init does.
func cgroups() error {
	const root = "/sys/fs/cgroup"
	names, err := os.ReadFile(root + "/cgroup.controllers")
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(names)) {
		if err := os.WriteFile(root+"/cgroup.subtree_control", []byte("+"+name), 0); err != nil {
			return fmt.Errorf("enable the %s controller: %w", name, err)
		}
	}
	leaf := filepath.Join(root, "init.scope")
	if err := os.Mkdir(leaf, 0o755); err != nil {
		return err
	}
	return os.WriteFile(leaf+"/cgroup.procs", []byte("0"), 0)
}

// linkUp sets a link up by the oldest of the kernel's interfaces, which needs no library here.
func linkUp(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// report writes the exit code where hack/vm looks for it.
func report(code int) {
	f, err := os.OpenFile("/dev/ttyS1", os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		fmt.Fprintf(os.Stderr, "init: report: %v\n", err)
		return
	}
	fmt.Fprintf(f, "exit %d\n", code)
	// Wait until it has left the port: the machine is turned off next.
	unix.IoctlSetInt(int(f.Fd()), unix.TCSBRK, 1)
	f.Close()
}
