package oci

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native"
	"github.com/criserver/criserver/shim/native/stage"
)

// execution are the options of exec.
type execution struct {
	process, pidFile, console string
	detach, tty, ignorePaused bool
	cwd, user                 string
	env, caps, groups         repeated
	noNewPrivs                optional
	selinux, apparmor, cgroup string
	preserve                  int
}

// repeated is a flag that may be given several times.
type repeated []string

func (l *repeated) String() string     { return strings.Join(*l, ",") }
func (l *repeated) Set(s string) error { *l = append(*l, s); return nil }

// optional is a switch of which it is known whether it was given.
type optional struct{ given, value bool }

func (o *optional) String() string   { return strconv.FormatBool(o.value) }
func (o *optional) IsBoolFlag() bool { return true }
func (o *optional) Set(s string) error {
	v, err := strconv.ParseBool(s)
	o.given, o.value = true, v
	return err
}

func (o *execution) register(set *flag.FlagSet) {
	set.StringVar(&o.process, "process", "", "file with the process, as in config.json")
	set.StringVar(&o.process, "p", "", "")
	set.StringVar(&o.pidFile, "pid-file", "", "file that the process's pid is written to")
	set.StringVar(&o.console, "console-socket", "", "socket that the terminal is sent to")
	set.BoolVar(&o.detach, "detach", false, "do not wait for the process")
	set.BoolVar(&o.detach, "d", false, "")
	set.BoolVar(&o.tty, "tty", false, "give it a terminal")
	set.BoolVar(&o.tty, "t", false, "")
	set.StringVar(&o.cwd, "cwd", "", "its working directory")
	set.StringVar(&o.user, "user", "", "UID[:GID]")
	set.StringVar(&o.user, "u", "", "")
	set.Var(&o.groups, "additional-gids", "a further group")
	set.Var(&o.groups, "g", "")
	set.Var(&o.env, "env", "KEY=VALUE, may be repeated")
	set.Var(&o.env, "e", "")
	set.Var(&o.caps, "cap", "a capability to add, may be repeated")
	set.Var(&o.caps, "c", "")
	set.Var(&o.noNewPrivs, "no-new-privs", "set no_new_privs")
	set.StringVar(&o.selinux, "process-label", "", "SELinux label")
	set.StringVar(&o.apparmor, "apparmor", "", "AppArmor profile")
	set.StringVar(&o.cgroup, "cgroup", "", "refused: the process goes into the container's cgroup")
	set.BoolVar(&o.ignorePaused, "ignore-paused", false, "also in a paused container")
	set.IntVar(&o.preserve, "preserve-fds", 0, "refused unless 0")
}

func execute(a *app, args []string) error {
	var o execution
	set := a.flags("exec")
	o.register(set)
	if err := a.parse(set, args, false); err != nil {
		return err
	}
	switch {
	case set.NArg() == 0:
		return fmt.Errorf("the id of a container is wanted: %w", errdefs.ErrInvalidArgument)
	case o.preserve != 0:
		return fmt.Errorf("--preserve-fds %d: no descriptors but 0, 1 and 2 are passed on: %w", o.preserve, errdefs.ErrNotImplemented)
	case o.cgroup != "":
		return fmt.Errorf("--cgroup %s: the process goes into the container's cgroup: %w", o.cgroup, errdefs.ErrNotImplemented)
	}
	c, err := a.find(set.Arg(0))
	if err != nil {
		return err
	}
	status, err := c.status()
	if err != nil {
		return err
	}
	if status == specs.StateStopped || status == "paused" && !o.ignorePaused {
		return fmt.Errorf("cannot exec in container %s: it is %s: %w", c.ID, status, errdefs.ErrFailedPrecondition)
	}
	spec, err := c.spec()
	if err != nil {
		return err
	}
	process, err := o.build(spec, set.Args()[1:])
	if err != nil {
		return err
	}
	if o.detach && process.Terminal && o.console == "" {
		return fmt.Errorf("a detached process with a terminal needs --console-socket: %w", errdefs.ErrInvalidArgument)
	}
	return a.exec(c, spec, process, o)
}

// build makes the process of an exec: that of the file, or the container's with what the options change.
func (o *execution) build(spec *specs.Spec, command []string) (*specs.Process, error) {
	if o.process != "" {
		b, err := os.ReadFile(o.process)
		if err != nil {
			return nil, fmt.Errorf("--process: %w", err)
		}
		var p specs.Process
		if err := json.Unmarshal(b, &p); err != nil {
			return nil, fmt.Errorf("--process %s: %w: %w", o.process, err, errdefs.ErrInvalidArgument)
		}
		return &p, nil
	}
	if len(command) == 0 {
		return nil, fmt.Errorf("neither a command nor --process is given: %w", errdefs.ErrInvalidArgument)
	}
	p := *spec.Process
	p.Args, p.Terminal = command, o.tty
	p.Env = slices.Concat(p.Env, o.env)
	if o.cwd != "" {
		p.Cwd = o.cwd
	}
	if o.noNewPrivs.given {
		p.NoNewPrivileges = o.noNewPrivs.value
	}
	if o.selinux != "" {
		p.SelinuxLabel = o.selinux
	}
	if o.apparmor != "" {
		p.ApparmorProfile = o.apparmor
	}
	if len(o.caps) > 0 {
		var sets specs.LinuxCapabilities
		if p.Capabilities != nil {
			sets = *p.Capabilities
		}
		sets.Bounding, sets.Effective, sets.Permitted = slices.Concat(sets.Bounding, o.caps), slices.Concat(sets.Effective, o.caps), slices.Concat(sets.Permitted, o.caps)
		p.Capabilities = &sets
	}
	return &p, o.identity(&p)
}

func (o *execution) identity(p *specs.Process) error {
	number := func(field, s string) (uint32, error) {
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			return 0, fmt.Errorf("%s: %q is not a number: %w", field, s, errdefs.ErrInvalidArgument)
		}
		return uint32(n), nil
	}
	var err error
	if o.user != "" {
		uid, gid, both := strings.Cut(o.user, ":")
		if p.User.UID, err = number("--user", uid); err != nil {
			return err
		}
		if both {
			if p.User.GID, err = number("--user", gid); err != nil {
				return err
			}
		}
	}
	for _, g := range o.groups {
		gid, err := number("--additional-gids", g)
		if err != nil {
			return err
		}
		p.User.AdditionalGids = append(slices.Clip(p.User.AdditionalGids), gid)
	}
	return nil
}

func (a *app) exec(c *container, spec *specs.Spec, process *specs.Process, o execution) error {
	h, err := a.hookConfig(c, spec)
	if err != nil {
		return err
	}
	defer h.Target.Close()
	r, err := a.engine()
	if err != nil {
		return err
	}
	config := native.ExecConfig{Spec: spec, Process: process, Target: h.Target, Cgroup: h.Cgroup, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	giveStdio(spec, process)
	forward, stop := forwarder(o.detach)
	defer stop()
	p, err := r.Exec(a.ctx, config)
	if err != nil {
		return fmt.Errorf("exec in container %s: %w", c.ID, err)
	}
	for _, w := range p.Warnings {
		a.warn(w)
	}
	if p.Console != nil && o.console != "" {
		err = sendTerminal(o.console, p.Console)
		p.Console = nil
	}
	if err == nil && o.pidFile != "" {
		err = writePid(o.pidFile, p.Pid)
	}
	if err != nil {
		stage.End(p.Pidfd)
		return err
	}
	if o.detach {
		return nil
	}
	return a.follow(p.Pid, p.Pidfd, p.Console, forward)
}

// forwarder catches the signals that are for the process, from before it runs.
func forwarder(detached bool) (signals chan os.Signal, stop func()) {
	if detached {
		return nil, func() {}
	}
	signals = make(chan os.Signal, 32)
	signal.Notify(signals)
	return signals, func() { signal.Stop(signals) }
}

// follow waits for a child of ours, passes signals and a terminal on, and answers with its exit code.
func (a *app) follow(pid int, pidfd, console *os.File, signals <-chan os.Signal) error {
	defer pidfd.Close()
	proxy, err := newProxy(console)
	if err != nil {
		stage.End(pidfd)
		return err
	}
	defer proxy.close()
	ended := make(chan error, 1)
	go func() { ended <- exitCode(pid) }()
	for {
		select {
		case err := <-ended:
			proxy.drain()
			return err
		case s := <-signals:
			switch s {
			case unix.SIGCHLD, unix.SIGURG: // ours; the Go runtime's
			case unix.SIGWINCH:
				proxy.resize()
			default:
				_ = unix.PidfdSendSignal(int(pidfd.Fd()), s.(unix.Signal), nil, 0)
			}
		}
	}
}

// exitCode reaps a child; nil is 0.
func exitCode(pid int) error {
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &status, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait for process %d: %w", pid, err)
		}
		break
	}
	switch {
	case status.Signaled():
		return exitError(128 + int(status.Signal()))
	case status.ExitStatus() != 0:
		return exitError(status.ExitStatus())
	}
	return nil
}

func run(a *app, args []string) error {
	var o creation
	set := a.flags("run")
	o.register(set)
	detach := set.Bool("detach", false, "do not wait for the container's end")
	set.BoolVar(detach, "d", false, "")
	keep := set.Bool("keep", false, "leave the container to delete when it has ended")
	id, err := a.id(set, args)
	if err != nil {
		return err
	}
	forward, stop := forwarder(*detach)
	defer stop()
	c, terminal, err := a.create(id, o)
	if err != nil {
		return err
	}
	if *detach && terminal != nil {
		return errors.Join(fmt.Errorf("a detached container with a terminal needs --console-socket: %w", errdefs.ErrInvalidArgument), terminal.Close(), a.destroy(c))
	}
	pidfd, err := c.process()
	if err == nil && pidfd == nil {
		err = fmt.Errorf("container %s ended before it was started: %w", id, errdefs.ErrFailedPrecondition)
	}
	if err == nil {
		err = a.start(c)
	}
	if err != nil {
		return errors.Join(err, a.destroy(c))
	}
	if *detach {
		return pidfd.Close()
	}
	err = a.follow(c.Pid, pidfd, terminal, forward)
	if *keep {
		return err
	}
	return errors.Join(err, a.destroy(c))
}
