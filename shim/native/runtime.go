package native

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/internal/procstat"
	"github.com/criserver/criserver/shim/native/cgroup"
	"github.com/criserver/criserver/shim/native/seccomp"
	"github.com/criserver/criserver/shim/native/stage"
)

// Runtime makes containers. It holds no state of any of them and is safe for concurrent use.
type Runtime struct {
	stage   *stage.Stage
	null    *os.File
	host    Host
	filters *seccomp.Cache
}

// New probes the kernel and readies the stage.
func New() (*Runtime, error) {
	host, err := Probe()
	if err != nil {
		return nil, err
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	s, err := stage.Open()
	if err != nil {
		return nil, errors.Join(err, null.Close())
	}
	return &Runtime{stage: s, null: null, host: host, filters: seccomp.NewCache(64)}, nil
}

// Close lets go of the stage. Containers are not affected.
func (r *Runtime) Close() error { return errors.Join(r.stage.Close(), r.null.Close()) }

// Mount says how a root filesystem is mounted: an overlay, or a bind of a directory.
type Mount struct {
	Type, Source string
	Options      []string
}

// Config is a container to create. Files stay the caller's.
type Config struct {
	ID   string
	Spec *specs.Spec
	// Bundle is the directory of config.json, for hooks. A relative root.path is beneath it.
	Bundle string
	// Rootfs is mounted as the root inside the container's mount namespace only. Nil: the directory Spec.Root.Path.
	Rootfs *Mount
	// Namespaces are joined by descriptor, instead of being made or opened by the path in the spec.
	Namespaces map[specs.LinuxNamespaceType]*os.File
	// Shm is a pod's shared memory (Pod.Shm). It takes the place of the spec's tmpfs at /dev/shm.
	Shm *os.File
	// Proc is a pod's proc (Pod.Proc), for a container that joins the pod's pid namespace.
	Proc *os.File
	// Stdin, Stdout and Stderr are the process's ends; nil is /dev/null. They are not used with Spec.Process.Terminal.
	Stdin, Stdout, Stderr *os.File
	// Cgroup was created. Nil: the process stays in the caller's.
	Cgroup *cgroup.Cgroup
	// HookTimeout is how long a hook may take that has no timeout of its own; 0: as long as the context.
	HookTimeout time.Duration
	// HostMounts takes a spec without a mount namespace: the root filesystem and what is mounted in it come to lie in the host's,
	// at root.path, and the caller takes them away again.
	HostMounts bool
	// KeepKeyring leaves the process the session keyring of the caller.
	KeepKeyring bool
	// Gate is for a caller that ends before the process is started: see Process.Detach. Nil: Start starts it.
	Gate *Gate

	idmaps map[string]*os.File // mappings of mounts -> a user namespace with them
}

// Create makes a container whose process waits for Start. When it fails nothing is left but the cgroup, which is the caller's.
func (r *Runtime) Create(ctx context.Context, c Config) (*Process, error) {
	if usesUser(c.Spec) {
		if err := validate(&input{spec: c.Spec, process: c.Spec.Process}); err != nil {
			return nil, err
		}
		own, err := r.complete(ctx, &c)
		if err != nil {
			return nil, err
		}
		defer func() {
			for _, f := range own {
				_ = f.Close()
			}
		}()
	}
	b, extra, err := r.compile(c)
	if err != nil {
		return nil, err
	}
	return r.launch(ctx, b, launch{stdio: [3]*os.File{c.Stdin, c.Stdout, c.Stderr}, extra: extra, cgroup: c.Cgroup, waits: true, hooks: r.hooked(c)})
}

// Plan is the text of what Create would do.
func (r *Runtime) Plan(c Config) (string, error) {
	b, _, err := r.compile(c)
	if err != nil {
		return "", err
	}
	text := b.plan.Text()
	for _, w := range b.warnings {
		text += "# warning: " + w + "\n"
	}
	return text, nil
}

func (r *Runtime) compile(c Config) (*built, []*os.File, error) {
	in, extra, err := r.inputFor(c.Spec, c.Spec.Process, c.Cgroup, c.HostMounts)
	if err != nil {
		return nil, nil, err
	}
	in.keepKeyring = c.KeepKeyring
	if c.Gate != nil {
		in.gate = true
		extra = append(extra, c.Gate.Start, c.Gate.Report)
	}
	in.rootfs = c.Rootfs
	if in.rootfs == nil && c.Spec.Root != nil {
		in.rootfs = &Mount{Type: "bind", Source: c.Spec.Root.Path, Options: []string{"rbind"}}
		if c.Bundle != "" {
			in.rootfs.Source = rootPath(c.Bundle, c.Spec)
		}
	}
	if HasHooks(c.Spec, Prestart, CreateRuntime, CreateContainer) {
		in.rootAt = rootPath(c.Bundle, c.Spec)
	}
	give := func(f *os.File) int {
		extra = append(extra, f)
		return stage.Extra + len(extra) - 1
	}
	for _, n := range c.Spec.Linux.Namespaces {
		if f := c.Namespaces[n.Type]; f != nil {
			in.joined[n.Type] = give(f)
		}
	}
	if c.Shm != nil {
		in.shm = give(c.Shm)
	}
	if c.Proc != nil {
		in.proc = give(c.Proc)
	}
	if usesUser(c.Spec) {
		r.giveUser(c, in, give)
	}
	b, err := compileCreate(in)
	return b, extra, err
}

// ExecConfig is a further process for a container. Files stay the caller's.
type ExecConfig struct {
	Spec    *specs.Spec // the container's
	Process *specs.Process
	Target  *os.File // pidfd of the container's process
	// As in Config.
	Stdin, Stdout, Stderr *os.File
	Cgroup                *cgroup.Cgroup
}

// Exec runs a process in a container. When it returns without an error, the program runs.
func (r *Runtime) Exec(ctx context.Context, c ExecConfig) (*Process, error) {
	in, extra, err := r.input(c.Spec, c.Process, c.Cgroup)
	if err != nil {
		return nil, err
	}
	in.target = stage.Extra + len(extra)
	born := c.Cgroup
	if initialCPUs(c.Process) != "" && in.unified != "" { // it is somewhere else first
		in.tasks, born = append(slices.Clip(in.tasks), in.unified+"/cgroup.procs"), nil
	}
	b, err := compileExec(in)
	if err != nil {
		return nil, err
	}
	return r.launch(ctx, b, launch{stdio: [3]*os.File{c.Stdin, c.Stdout, c.Stderr}, extra: append(extra, c.Target), cgroup: born, beside: c.Target})
}

func (r *Runtime) input(spec *specs.Spec, process *specs.Process, g *cgroup.Cgroup) (*input, []*os.File, error) {
	return r.inputFor(spec, process, g, false)
}

func (r *Runtime) inputFor(spec *specs.Spec, process *specs.Process, g *cgroup.Cgroup, hostMounts bool) (*input, []*os.File, error) {
	in := &input{hostMounts: hostMounts, spec: spec, process: process, host: r.host, joined: map[specs.LinuxNamespaceType]int{}, isDirectory: isDirectory}
	if err := validate(in); err != nil {
		return nil, nil, err
	}
	if s := spec.Linux.Seccomp; s != nil {
		filter, err := r.filters.Compile(s)
		if err != nil {
			return nil, nil, fmt.Errorf("linux.seccomp: %w", err)
		}
		in.filter = filter
	}
	if rdt := spec.Linux.IntelRdt; rdt != nil {
		tasks, err := rdtTasks(rdt, fileText("/proc/self/mountinfo"))
		if err != nil {
			return nil, nil, err
		}
		in.rdt = tasks
	}
	if g != nil {
		in.tasks, in.unified = g.TasksFiles(), g.UnifiedDir()
	}
	return in, nil, nil
}

func isDirectory(path string) (bool, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return false, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Mode&unix.S_IFMT == unix.S_IFDIR, nil
}

// launch says how a compiled plan is run.
type launch struct {
	stdio  [3]*os.File
	extra  []*os.File
	cgroup *cgroup.Cgroup
	waits  bool     // for Start
	beside *os.File // exec: pidfd of the container's process, whose cgroup is joined where that of the container cannot be
	hooks  *hooked
}

func (r *Runtime) launch(ctx context.Context, b *built, l launch) (*Process, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	o := stage.Options{Extra: l.extra, Cloneflags: b.cloneflags, CgroupFD: -1, Unstopped: l.beside != nil && !b.terminal}
	for i, f := range l.stdio {
		if f == nil || b.terminal {
			f = r.null
		}
		o.Stdio[i] = f
	}
	if l.cgroup != nil && l.cgroup.UnifiedDir() != "" {
		fd, err := unix.Open(l.cgroup.UnifiedDir(), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("cgroup %s: %w", l.cgroup.UnifiedDir(), err)
		}
		defer unix.Close(fd)
		o.CgroupFD = fd
	}
	run, err := r.stage.Start(b.plan, o)
	if errors.Is(err, unix.EBUSY) && l.beside != nil {
		run, err = r.startBeside(b, o, l)
	}
	if err != nil {
		return nil, err
	}
	p := &Process{Pid: run.Pid, Pidfd: run.Pidfd, Warnings: b.warnings, run: run, argv: b.argv, gate: b.gate, hooks: l.hooks, killable: !b.forks}
	arrived := make(chan error, 1)
	go func() {
		err := p.arrive(ctx, b, l.waits)
		if err != nil {
			p.discard()
		}
		arrived <- err
	}()
	select {
	case err = <-arrived:
		if err == nil && !l.waits {
			run.Close()
		}
	case <-ctx.Done():
		p.cancel()
		go func() { // a frozen cgroup can hold the stage for as long as it likes
			if <-arrived == nil {
				p.discard()
			}
		}()
		err = ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

// startBeside starts a stage in the cgroup of the container's process: the container's own has given controllers to its
// children, as an init system does, and the kernel lets nobody in.
func (r *Runtime) startBeside(b *built, o stage.Options, l launch) (*stage.Run, error) {
	pid, err := procstat.Of(int(l.beside.Fd()))
	if err != nil {
		return nil, fmt.Errorf("the container's process has ended: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	fd, err := l.cgroup.OpenBeside(pid)
	if err != nil {
		return nil, fmt.Errorf("the container has divided its cgroup, and its process's own cannot be joined: %w", err)
	}
	defer unix.Close(fd)
	o.CgroupFD = fd
	return r.stage.Start(b.plan, o)
}
