// Package rig gives tests and tools a machine within the machine to run the real daemon in: namespaces of its own for
// processes, mounts and the network, so that nothing of the surrounding machine is seen or touched, and so that
// everything is gone when it ends, whatever happened.
//
// Isolate is called first in main (or TestMain). It runs the program again in there and ends with its exit code; only
// the inner run returns from it, with the Place to work in:
//
//	outer    builds what is missing, makes the directory, afterwards removes it and the cgroups
//	 └ init  process 1 of the new process namespace: mounts, reaps, dies with the outer one
//	    └ inner  the program proper
package rig

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Environment variables that name what is there already; the rest is built. In a virtual machine, where there is no
// compiler, all three are set.
const (
	EnvBinDir     = "E2E_BIN_DIR"       // criserver, criserver-shim, criserver-keeper
	EnvTestImages = "E2E_TESTIMAGES"    // the program hack/testimages
	EnvImagesDir  = "E2E_IMAGES_DIR"    // the image layout that it made
	EnvDriver     = "E2E_CGROUP_DRIVER" // systemd: the place then shares the machine's processes, which systemd knows by their numbers
	EnvRuntimes   = "E2E_RUNTIMES"      // programs with runc's command line: NAME=PATH, comma separated
)

// Between the three runs of the program.
const (
	envStage = "CRISERVER_RIG_STAGE"
	envDir   = "CRISERVER_RIG_DIR"
	envInit  = "CRISERVER_RIG_INIT" // the init process, where it is not process 1
)

// Place is where the inner run works.
type Place struct {
	Dir          string // removed afterwards; Dir/run is a tmpfs
	BinDir       string
	TestImages   string
	ImagesDir    string
	Runtimes     string // handlers that daemons have besides native, as NAME=PATH, comma separated
	CgroupParent string // "/criserver-rig-..."; removed afterwards
	// Observe is told of every call that a Daemon's clients make, in the caller's goroutine; it may be nil.
	Observe func(method string, request any, err error)
}

// Isolate runs the program in a place of its own; see the package's comment. It needs root.
func Isolate() *Place {
	switch os.Getenv(envStage) {
	case "init":
		os.Exit(initStage())
	case "inner":
		return placeAt(os.Getenv(envDir))
	}
	code, err := outerStage()
	if err != nil {
		fmt.Fprintf(os.Stderr, "rig: %v\n", err)
		code = 1
	}
	os.Exit(code)
	return nil
}

func placeAt(dir string) *Place {
	return &Place{
		Dir: dir, BinDir: os.Getenv(EnvBinDir), TestImages: os.Getenv(EnvTestImages), ImagesDir: os.Getenv(EnvImagesDir),
		Runtimes:     os.Getenv(EnvRuntimes),
		CgroupParent: "/" + filepath.Base(dir),
	}
}

func outerStage() (int, error) {
	if os.Geteuid() != 0 {
		return 0, errors.New("namespaces and cgroups are made here: run it as root")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	dir, err := os.MkdirTemp("", "criserver-rig-")
	if err != nil {
		return 0, err
	}
	p := placeAt(dir)
	defer p.remove()
	if err := os.Chmod(dir, 0o755); err != nil { // workloads that are not root look in here
		return 0, err
	}
	if err := p.build(ctx); err != nil {
		return 0, err
	}
	// The kernel kills the init process, and with it everything inside, when the thread that made it ends.
	runtime.LockOSThread()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), envStage+"=init", envDir+"="+dir,
		EnvBinDir+"="+p.BinDir, EnvTestImages+"="+p.TestImages, EnvImagesDir+"="+p.ImagesDir, EnvRuntimes+"="+p.Runtimes)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
	}
	if sharesProcesses() {
		cmd.SysProcAttr.Cloneflags &^= unix.CLONE_NEWPID
		if err := adoptOrphans(); err != nil {
			return 0, err
		}
		defer endGathered() // init may have been killed
	}
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// remove deletes the directory and the cgroups. The mounts went with the namespaces; the kernel may take a moment.
func (p *Place) remove() {
	var err error
	for range 50 {
		if err = errors.Join(p.stopSlices(), removeCgroups(p.CgroupParent), os.RemoveAll(p.Dir)); err == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	fmt.Fprintf(os.Stderr, "rig: left behind: %v\n", err)
}

// CgroupRoots lists the roots of the machine's cgroup hierarchies.
func CgroupRoots() ([]string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var roots []string
	for line := range strings.Lines(string(text)) {
		before, after, _ := strings.Cut(line, " - ")
		if fields := strings.Fields(before); len(fields) > 4 && strings.HasPrefix(after, "cgroup") {
			roots = append(roots, fields[4])
		}
	}
	return roots, nil
}

// removeCgroups removes parent and all beneath it in every hierarchy.
func removeCgroups(parent string) error {
	roots, err := CgroupRoots()
	for _, root := range roots {
		var dirs []string
		_ = filepath.WalkDir(filepath.Join(root, parent), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			if e := unix.Rmdir(dirs[i]); e != nil && !errors.Is(e, unix.ENOENT) {
				err = errors.Join(err, fmt.Errorf("remove %s: %w", dirs[i], e))
			}
		}
	}
	return err
}

// initStage is process 1 of the place.
func initStage() int {
	dir := os.Getenv(envDir)
	if err := furnish(dir); err != nil {
		fmt.Fprintf(os.Stderr, "rig: init: %v\n", err)
		return 1
	}
	os.Setenv(envStage, "inner")
	attr := &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}}
	if sharesProcesses() {
		if err := gather(attr); err != nil {
			fmt.Fprintf(os.Stderr, "rig: init: %v\n", err)
			return 1
		}
	}
	inner, err := os.StartProcess("/proc/self/exe", os.Args, attr)
	if err != nil {
		fmt.Fprintf(os.Stderr, "rig: init: %v\n", err)
		return 1
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR) || pid != inner.Pid && err == nil:
		case err != nil:
			fmt.Fprintf(os.Stderr, "rig: init: wait: %v\n", err)
			return 1
		case status.Signaled():
			return 128 + int(status.Signal())
		default:
			return status.ExitStatus()
		}
	}
}

// furnish makes the new namespaces usable. Mounts are shared, as an init system leaves them, but only among the
// namespaces made in here: nothing goes back to the machine.
func furnish(dir string) error {
	for _, m := range []struct {
		source, target, fstype string
		flags                  uintptr
		data                   string
	}{
		{"", "/", "", unix.MS_SLAVE | unix.MS_REC, ""},
		{"", "/", "", unix.MS_SHARED | unix.MS_REC, ""},
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"tmpfs", filepath.Join(dir, "run"), "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
	} {
		if m.source != "" {
			if err := os.MkdirAll(m.target, 0o755); err != nil {
				return err
			}
		}
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}
