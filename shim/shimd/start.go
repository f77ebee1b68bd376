package shimd

import (
	"context"
	"errors"
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
	"github.com/criserver/criserver/internal/procstat"
	"github.com/criserver/criserver/shim/api"
	"github.com/criserver/criserver/shim/native"
	"github.com/criserver/criserver/shim/native/cgroup"
)

// startLimit bounds a start. It does not end with its caller, who finds the container when it comes again. A member of a shared
// pid namespace can stop the process that becomes the container, and the pod cannot be removed before that start has failed.
const startLimit = 20 * time.Second

// Start makes a container and runs its process. See shim.proto.
func (s *Server) Start(ctx context.Context, r *api.StartRequest) (*api.StartResponse, error) {
	if err := checkStart(r); err != nil {
		return nil, err
	}
	c, mine := reserve(&s.mu, s.containers, r.Id, func() *container { return newContainer(r.Id, r.Dir) })
	if !mine {
		return s.started(ctx, c)
	}
	limit := c.startLimit()
	if r.Restore != nil {
		limit = restoreLimit
	}
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	err := c.run(func() error {
		if err := s.start(work, c, r); err != nil {
			return fmt.Errorf("container %s: %w", c.id, err)
		}
		return nil
	}, func() {
		undo, end := context.WithTimeout(context.WithoutCancel(ctx), deleteLimit) // the start's own time may be over
		defer end()
		if err := s.teardown(undo, c); err != nil {
			s.note.Error("a start that failed leaves something behind", "container", c.id, "error", err)
		}
		if c.record.Poststop {
			s.poststop(undo, c.id, c.dir)
		}
		s.forget(c)
	})
	if err != nil {
		return nil, err
	}
	return c.answer(), nil
}

// started answers a Start that is repeated.
func (s *Server) started(ctx context.Context, c *container) (*api.StartResponse, error) {
	if err := c.wait(ctx); err != nil {
		return nil, err
	}
	if c.failure != nil {
		return nil, c.failure
	}
	if s.stateOf(c) == deleting {
		return nil, fmt.Errorf("container %q is being deleted: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	return c.answer(), nil
}

func (c *container) answer() *api.StartResponse {
	return &api.StartResponse{Pid: int32(c.record.PID), StartedAt: c.record.StartedAt, Warnings: c.record.Warnings}
}

func checkStart(r *api.StartRequest) error {
	switch {
	case !plainName(r.Id):
		return fmt.Errorf("id %q: letters, digits, '.', '_' and '-' are wanted, at most 128: %w", r.Id, errdefs.ErrInvalidArgument)
	case !filepath.IsAbs(r.Dir) || strings.ContainsAny(r.Dir, "\t\n"):
		return fmt.Errorf("dir %q: an absolute path without tabs and newlines is wanted: %w", r.Dir, errdefs.ErrInvalidArgument)
	case r.LogFormat != api.LogFormat_LOG_FORMAT_NONE && r.LogFormat != api.LogFormat_LOG_FORMAT_CRI:
		return fmt.Errorf("log_format %d is not known: %w", r.LogFormat, errdefs.ErrInvalidArgument)
	case r.LogFormat != api.LogFormat_LOG_FORMAT_NONE && r.LogPath != "" && !filepath.IsAbs(r.LogPath):
		return fmt.Errorf("log_path %q is not absolute: %w", r.LogPath, errdefs.ErrInvalidArgument)
	}
	if p := r.Restore; p != nil && (!filepath.IsAbs(p.Images) || !filepath.IsAbs(p.Criu) || !filepath.IsAbs(p.Work)) {
		return fmt.Errorf("restore: images %q, criu %q and work %q must be absolute paths: %w", p.Images, p.Criu, p.Work, errdefs.ErrInvalidArgument)
	}
	for _, n := range r.PodNamespaces {
		if _, ok := namespaceOf[n]; !ok && n != shmName {
			return fmt.Errorf("pod_namespaces: %q is not one of ipc, uts, pid, user, shm: %w", n, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// plainName reports whether a name can be part of a key, a path and a log line.
func plainName(name string) bool {
	if name == "" || len(name) > 128 || name[0] == '.' {
		return false
	}
	for i := range len(name) {
		b := name[i]
		if !(b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || b == '.' || b == '_' || b == '-') {
			return false
		}
	}
	return true
}

// start does the work of Start. What it has made when it fails, teardown ends.
func (s *Server) start(ctx context.Context, c *container, r *api.StartRequest) error {
	spec, err := c.loadSpec()
	if err == nil && len(r.Env) > 0 {
		spec, err = withEnv(spec, r)
	}
	if err != nil {
		return err
	}
	c.record = record{
		ID: c.id, PodID: r.PodId, Cgroup: spec.Linux.CgroupsPath, LogPath: r.LogPath, LogFormat: r.LogFormat,
		Namespaces: r.PodNamespaces, Terminal: spec.Process.Terminal, Stdin: r.Stdin,
		PIDTarget: r.PidTarget != "",
	}
	if err := s.useBinary(ctx, c, r.Runtime, spec.Linux.CgroupsPath); err != nil {
		return err
	}
	if err := s.readyHooks(ctx, c, spec); err != nil {
		return err
	}
	if err := c.makeCgroup(ctx, spec); err != nil {
		return err
	}
	config := native.Config{ID: c.id, Spec: spec, Bundle: c.dir, Cgroup: c.cgroup, HookTimeout: hookLimit}
	if m := r.Rootfs; m != nil {
		config.Rootfs = &native.Mount{Type: m.Type, Source: m.Source, Options: m.Options}
	}
	ends, err := c.openOutput(ctx, spec, r)
	defer ends.close()
	if err != nil {
		return err
	}
	config.Stdin, config.Stdout, config.Stderr = ends.stdin, ends.stdout, ends.stderr
	shared, err := s.shared(ctx, r)
	defer shared.close()
	if err != nil {
		return err
	}
	config.Namespaces, config.Shm, config.Proc = shared.namespaces, shared.shm, shared.proc
	p, err := s.create(ctx, c, r, config)
	if err != nil {
		return err
	}
	if c.cgroup != nil && c.binary == nil {
		if err := c.cgroup.Adopt(ctx, p.pid); err != nil {
			p.abandon()
			return err
		}
	}
	return s.release(ctx, c, p)
}

// withEnv is a spec with the environment of the request. That of execs is in their requests.
func withEnv(spec *specs.Spec, r *api.StartRequest) (*specs.Spec, error) {
	if r.Runtime != nil {
		return nil, fmt.Errorf("env: %s takes what is UTF-8 only, in the spec: %w", r.Runtime.Path, errdefs.ErrInvalidArgument)
	}
	with, process := *spec, *spec.Process
	var err error
	process.Env, err = rawEnv(r.Env)
	with.Process = &process
	return &with, err
}

// create makes the container's process, which waits for release. One that is restored does not wait.
func (s *Server) create(ctx context.Context, c *container, r *api.StartRequest, config native.Config) (*process, error) {
	if r.Restore != nil {
		return s.restore(ctx, c, r, config)
	}
	return s.runtimeOf(c).create(ctx, config)
}

// release lets a process go that waits for it, once the keeper holds what belongs to it.
func (s *Server) release(ctx context.Context, c *container, p *process) error {
	c.record.PID, c.record.Warnings = p.pid, p.warnings
	e := c.entry()
	e.Names, e.FDs = append(e.Names, "pidfd"), append(e.FDs, int(p.pidfd.Fd()))
	if p.console != nil {
		e.Names, e.FDs = append(e.Names, "console"), append(e.FDs, int(p.console.Fd()))
	}
	if err := s.link.put(e); err != nil {
		p.abandon()
		return err
	}
	c.record.PIDStart = startOf(p.pid)
	if err := p.start(ctx); err != nil {
		return err
	}
	c.record.StartedAt = time.Now().UnixNano()
	c.pidfd = int(p.pidfd.Fd())
	c.held.add("pidfd", c.pidfd, p.pidfd)
	if p.console != nil {
		console, err := pollable(p.console)
		if err != nil {
			return err
		}
		c.held.add("console", int(p.console.Fd()), p.console)
		c.streams = append(c.streams, &stream{key: c.id + "/stdout", name: "stdout", src: console})
	}
	if err := fsx.ReplaceJSON(filepath.Join(c.dir, stateFile), c.record); err != nil {
		return err
	}
	s.advance(c, running)
	s.readOutput(c)
	return s.watch.add(c.pidfd, func() { s.onExit(c) })
}

// pollable copies a descriptor into a file of its own that Go's poller serves.
func pollable(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// readOutput starts the container's streams.
func (s *Server) readOutput(c *container) {
	for _, st := range c.streams {
		st.log, st.pool, st.note, st.done = c.log, s.pool, s.note, make(chan struct{})
		go st.run() // ends when the writers have closed their ends, at the latest in teardown
	}
}

func (c *container) makeCgroup(ctx context.Context, spec *specs.Spec) error {
	if spec.Linux.CgroupsPath == "" {
		return nil
	}
	g, err := cgroup.New(spec.Linux.CgroupsPath, spec.Linux.Resources)
	if err != nil {
		return err
	}
	c.cgroup = g
	if c.binary != nil { // the program makes it
		return nil
	}
	return g.Create(ctx)
}

// ends are the workload's ends of its streams.
type ends struct{ stdin, stdout, stderr *os.File }

func (e *ends) close() {
	for _, f := range []*os.File{e.stdin, e.stdout, e.stderr} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// openOutput opens the log and makes the FIFOs. What is for the shim goes to the container.
func (c *container) openOutput(ctx context.Context, spec *specs.Spec, r *api.StartRequest) (ends, error) {
	var e ends
	if r.LogFormat == api.LogFormat_LOG_FORMAT_CRI && r.LogPath != "" {
		f, err := openLog(r.LogPath)
		if err != nil {
			return e, err
		}
		c.log = newLogFile(r.LogPath, f)
		c.held.add("log", int(f.Fd()), f)
	}
	if spec.Process.Terminal {
		return e, nil
	}
	dir, err := unix.Open(c.dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return e, &os.PathError{Op: "open", Path: c.dir, Err: err}
	}
	defer unix.Close(dir)
	uid := hostID(spec.Process.User.UID, spec.Linux.UIDMappings)
	for _, o := range []struct {
		name string
		end  **os.File
	}{{"stdout", &e.stdout}, {"stderr", &e.stderr}} {
		if err := c.makeFIFO(ctx, dir, o.name, uid, spec.Linux.MountLabel); err != nil {
			return e, err
		}
		read, err := openFIFO(dir, o.name, unix.O_RDONLY|unix.O_NONBLOCK)
		if err != nil {
			return e, err
		}
		c.held.add(o.name, int(read.fd), read.file)
		c.streams = append(c.streams, &stream{key: c.id + "/" + o.name, name: o.name, src: read.file})
		write, err := openFIFO(dir, o.name, unix.O_WRONLY)
		if err != nil {
			return e, err
		}
		*o.end = write.file
		if _, err := unix.FcntlInt(uintptr(write.fd), unix.F_SETPIPE_SZ, chunkSize); err != nil {
			return e, fmt.Errorf("size of the FIFO %s: %w", o.name, err)
		}
	}
	if !r.Stdin {
		return e, nil
	}
	return e, c.openStdin(ctx, dir, uid, spec.Linux.MountLabel, &e)
}

// openStdin makes the FIFO whose write end keeps the standard input open.
func (c *container) openStdin(ctx context.Context, dir int, uid uint32, label string, e *ends) error {
	if err := c.makeFIFO(ctx, dir, "stdin", uid, label); err != nil {
		return err
	}
	read, err := openFIFO(dir, "stdin", unix.O_RDONLY|unix.O_NONBLOCK) // no writer to wait for yet
	if err != nil {
		return err
	}
	e.stdin = read.file
	write, err := openFIFO(dir, "stdin", unix.O_WRONLY|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	c.held.add("stdin", write.fd, write.file)
	return unix.SetNonblock(read.fd, false)
}

type opened struct {
	fd   int
	file *os.File
}

func openFIFO(dir int, name string, flags int) (opened, error) {
	// Not O_NOFOLLOW, which stays in the flags of the open file: criu opens it anew with these, by a link of /proc.
	fd, err := unix.Openat2(dir, name, &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return opened{}, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return opened{fd, os.NewFile(uintptr(fd), name)}, nil
}

// makeFIFO makes a FIFO for one user, with the SELinux label of the container's files if it has one. One that is there is of a
// start that was cut short by a kill of the shim and the keeper: what runs of it is ended.
func (c *container) makeFIFO(ctx context.Context, dir int, name string, uid uint32, label string) error {
	err := unix.Mkfifoat(dir, name, 0o600)
	if errors.Is(err, unix.EEXIST) {
		if c.cgroup != nil {
			// Made anew, because from Linux 6.14 on a clone into a cgroup that was once killed, from one that was not, is
			// killed at once.
			err := c.cgroup.Kill(ctx)
			if err = errors.Join(err, c.cgroup.Remove(ctx)); err == nil && c.binary == nil {
				err = c.cgroup.Create(ctx)
			}
			if err != nil {
				return err
			}
		}
		removeRecords(dir)
		err = unix.Mkfifoat(dir, name, 0o600)
	}
	if err == nil && uid != 0 {
		err = unix.Fchownat(dir, name, int(uid), -1, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err == nil && label != "" {
		err = labelFile(dir, name, label)
	}
	if err != nil {
		return &os.PathError{Op: "mkfifo", Path: filepath.Join(c.dir, name), Err: err}
	}
	return nil
}

// labelFile sets the SELinux label of a file: of one with another the kernel closes a confined process's descriptors.
func labelFile(dir int, name, label string) error {
	return unix.Lsetxattr(fmt.Sprintf("/proc/self/fd/%d/%s", dir, name), "security.selinux", append([]byte(label), 0), 0)
}

// removeRecords removes what a shim makes in a container's directory.
func removeRecords(dir int) {
	for _, name := range []string{"stdout", "stderr", "stdin", "exit.json", stateFile} {
		_ = unix.Unlinkat(dir, name, 0)
	}
}

// hostID translates an id of a user namespace. Without mappings, and for an id that has none, it is the id itself.
func hostID(id uint32, mappings []specs.LinuxIDMapping) uint32 {
	outside, _ := native.MapID(id, mappings)
	return outside
}

// startOf is when a process started, in ticks since boot (proc_pid_stat(5), field 22), or 0.
func startOf(pid int) uint64 {
	stat, err := procstat.Read(pid)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseUint(stat.Field(procstat.Start), 10, 64)
	return n
}
