package oci

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/internal/fsx"
	"github.com/criserver/criserver/shim/native"
	"github.com/criserver/criserver/shim/native/cgroup"
)

// creation are the options of create and run.
type creation struct {
	bundle, pidFile, console string
	noPivot, noKeyring       bool
	preserve                 int
}

func (o *creation) register(set *flag.FlagSet) {
	set.StringVar(&o.bundle, "bundle", "", "directory of config.json; the working directory if none is named")
	set.StringVar(&o.bundle, "b", "", "")
	set.StringVar(&o.pidFile, "pid-file", "", "file that the process's pid is written to")
	set.StringVar(&o.console, "console-socket", "", "socket that the terminal is sent to")
	set.BoolVar(&o.noPivot, "no-pivot", false, "refused: the root is always pivoted")
	set.BoolVar(&o.noKeyring, "no-new-keyring", false, "leave the session keyring as it is")
	set.IntVar(&o.preserve, "preserve-fds", 0, "refused unless 0: the process gets 0, 1 and 2")
}

func (o *creation) check() error {
	switch {
	case o.noPivot:
		return fmt.Errorf("--no-pivot: a root that is not pivoted can be left, so this runtime has no such mode: %w", errdefs.ErrNotImplemented)
	case o.preserve != 0:
		return fmt.Errorf("--preserve-fds %d: no descriptors but 0, 1 and 2 are passed on: %w", o.preserve, errdefs.ErrNotImplemented)
	}
	return nil
}

func create(a *app, args []string) error {
	var o creation
	set := a.flags("create")
	o.register(set)
	id, err := a.id(set, args)
	if err != nil {
		return err
	}
	_, terminal, err := a.create(id, o)
	if err != nil {
		return err
	}
	if terminal != nil {
		return terminal.Close()
	}
	return nil
}

// create makes a container. Without a console socket the terminal is the caller's.
func (a *app) create(id string, o creation) (*container, *os.File, error) {
	if err := o.check(); err != nil {
		return nil, nil, err
	}
	bundle, err := filepath.Abs(o.bundle)
	if err != nil {
		return nil, nil, err
	}
	if bundle, err = filepath.EvalSymlinks(bundle); err != nil {
		return nil, nil, fmt.Errorf("bundle: %w", err)
	}
	spec, err := readSpec(filepath.Join(bundle, configFile))
	if err != nil {
		return nil, nil, err
	}
	switch {
	case spec.Root == nil || spec.Root.Path == "":
		return nil, nil, fmt.Errorf("root.path is not set: %w", errdefs.ErrInvalidArgument)
	case spec.Process == nil:
		return nil, nil, fmt.Errorf("process is not set: %w", errdefs.ErrInvalidArgument)
	case !spec.Process.Terminal && o.console != "":
		return nil, nil, fmt.Errorf("--console-socket is for a process with a terminal, and process.terminal is not set: %w", errdefs.ErrInvalidArgument)
	}
	c, err := a.claim(id)
	if err != nil {
		return nil, nil, err
	}
	defer c.release()
	terminal, err := a.make(c, spec, bundle, o)
	if err != nil {
		if undo := a.destroy(c); undo != nil {
			err = fmt.Errorf("%w (and it is not undone: %w)", err, undo)
		}
		return nil, nil, err
	}
	return c, terminal, nil
}

// make records the container, then makes it.
func (a *app) make(c *container, spec *specs.Spec, bundle string, o creation) (*os.File, error) {
	c.record = record{Version: spec.Version, ID: filepath.Base(c.dir), Bundle: bundle, Rootfs: spec.Root.Path, Created: time.Now().UTC()}
	if !filepath.IsAbs(c.Rootfs) {
		c.Rootfs = filepath.Join(bundle, c.Rootfs)
	}
	root, err := filepath.EvalSymlinks(c.Rootfs)
	if err != nil {
		return nil, fmt.Errorf("root.path: %w", err)
	}
	c.Rootfs, spec.Root.Path = root, root
	r, err := a.engine()
	if err != nil {
		return nil, err
	}
	if c.Cgroup, err = a.cgroupsPath(spec, c.ID); err != nil {
		return nil, err
	}
	spec.Linux.CgroupsPath = c.Cgroup
	if c.Mounts, err = hostMounts(spec, c.Rootfs); err != nil {
		return nil, err
	}
	a.withoutKernelMemory(spec)
	if err := fsx.ReplaceJSON(filepath.Join(c.dir, configFile), spec); err != nil {
		return nil, err
	}
	if err := c.save(); err != nil {
		return nil, err
	}
	g, err := cgroup.New(c.Cgroup, spec.Linux.Resources)
	if err != nil {
		return nil, err
	}
	if err := g.Create(a.ctx); err != nil {
		return nil, err
	}
	gate, err := c.gate()
	if err != nil {
		return nil, err
	}
	defer gate.Start.Close()
	defer gate.Report.Close()
	config := native.Config{ID: c.ID, Spec: spec, Bundle: bundle, Cgroup: g, Gate: gate, HostMounts: c.Mounts > 0, KeepKeyring: o.noKeyring, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	giveStdio(spec, spec.Process)
	p, err := r.Create(a.ctx, config)
	if err != nil {
		return nil, err
	}
	for _, w := range p.Warnings {
		a.warn(w)
	}
	return a.settle(c, p, spec, o)
}

// settle writes down the process that waits, and passes on its terminal.
func (a *app) settle(c *container, p *native.Process, spec *specs.Spec, o creation) (*os.File, error) {
	terminal := p.Console
	_, start, err := procStat(p.Pid)
	if err == nil && terminal != nil && o.console != "" {
		err = sendTerminal(o.console, terminal)
		terminal = nil
	}
	if err != nil {
		p.Abandon()
		return nil, err
	}
	c.Pid, c.PidStart = p.Pid, start
	c.Late = p.Detach()
	err = c.save()
	if err == nil && o.pidFile != "" {
		err = writePid(o.pidFile, c.Pid)
	}
	return terminal, err
}

// gate makes the FIFOs at which the process waits.
func (c *container) gate() (*native.Gate, error) {
	var files [2]*os.File
	for i, name := range []string{startFIFO, reportFIFO} {
		path := filepath.Join(c.dir, name)
		err := unix.Mkfifo(path, 0o600)
		if err == nil {
			// Both ends: the reader of one and the writer of the other are there before their counterparts are.
			files[i], err = os.OpenFile(path, os.O_RDWR, 0)
		}
		if err != nil {
			if i > 0 {
				_ = files[0].Close()
			}
			return nil, &os.PathError{Op: "mkfifo", Path: path, Err: err}
		}
		files[i].Fd() // blocking: the stage waits in a read
	}
	return &native.Gate{Start: files[0], Report: files[1]}, nil
}

// withoutKernelMemory takes limits away that no kernel has had since 5.16 and that others' configurations still carry.
func (a *app) withoutKernelMemory(spec *specs.Spec) {
	r := spec.Linux.Resources
	//lint:ignore SA1019 deprecated, but not gone from specs
	if r == nil || r.Memory == nil || r.Memory.Kernel == nil && r.Memory.KernelTCP == nil {
		return
	}
	a.warn("linux.resources.memory: kernel and kernelTCP are ignored, the kernel has had no such limits since 5.16")
	//lint:ignore SA1019 deprecated, but not gone from specs
	r.Memory.Kernel, r.Memory.KernelTCP = nil, nil
}

// giveStdio makes the process's user the owner of its standard streams, so that it can open /dev/stdout anew.
func giveStdio(spec *specs.Spec, process *specs.Process) {
	if process.Terminal {
		return
	}
	uid := process.User.UID
	for _, m := range spec.Linux.UIDMappings {
		if uid >= m.ContainerID && uid-m.ContainerID < m.Size {
			uid = m.HostID + uid - m.ContainerID
			break
		}
	}
	for fd := range 3 {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) != nil || st.Uid == uid || st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3) {
			continue
		}
		_ = unix.Fchown(fd, int(uid), -1) // a file that cannot be given away is as good as before
	}
}

// cgroupsPath is the absolute path of the container's cgroup. A relative one is beneath our own, as is that of a spec with none.
func (a *app) cgroupsPath(spec *specs.Spec, id string) (string, error) {
	asked := spec.Linux.CgroupsPath
	if a.systemd {
		return "", fmt.Errorf("--systemd-cgroup: this command makes cgroups itself; use cgroupfs: %w", errdefs.ErrNotImplemented)
	}
	if asked == "" {
		asked = id
	}
	if strings.HasPrefix(asked, "/") {
		return filepath.Clean(asked), nil
	}
	own, err := cgroup.Own()
	if err != nil {
		return "", err
	}
	return filepath.Join(own, filepath.Clean("/"+asked)), nil
}

func writePid(path string, pid int) error {
	temporary := filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
	if err := os.WriteFile(temporary, []byte(strconv.Itoa(pid)), 0o666); err != nil {
		return fmt.Errorf("--pid-file: %w", err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return errors.Join(err, os.Remove(temporary))
	}
	return nil
}
