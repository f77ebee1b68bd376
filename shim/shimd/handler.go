package shimd

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/criserver/criserver/shim/api"
	"github.com/criserver/criserver/shim/native"
	"github.com/criserver/criserver/shim/runc"
)

// handler runs one container by a program with runc's command line. What the containers of a pod share is made by our
// own runtime for them as well.
type handler struct {
	s         *Server
	container *runc.Container
}

// runtimeOf is what makes the processes of a container.
func (s *Server) runtimeOf(c *container) runtime {
	if c.binary == nil {
		return s.runtime
	}
	return handler{s, c.binary}
}

func (h handler) create(ctx context.Context, c native.Config) (*process, error) {
	defer h.s.orphans.expect()()
	p, err := h.container.Create(ctx, h.s.runtime, c, h.s.config.State)
	if err != nil {
		h.s.orphans.suspect()
		return nil, err
	}
	run := fromBinary(p)
	run.abandon = func() {
		native.End(p.Pidfd)
		if p.Console != nil {
			_ = p.Console.Close()
		}
	}
	run.start = func(ctx context.Context) error {
		err := h.container.Start(ctx)
		if err != nil {
			run.abandon()
		}
		return err
	}
	return run, nil
}

func (h handler) exec(ctx context.Context, c native.ExecConfig) (*process, error) {
	defer h.s.orphans.expect()()
	p, err := h.container.Exec(ctx, c, h.s.config.State)
	if err != nil {
		h.s.orphans.suspect()
		return nil, err
	}
	return fromBinary(p), nil
}

func fromBinary(p *runc.Process) *process {
	return &process{pid: p.PID, pidfd: p.Pidfd, console: p.Console, warnings: p.Warnings}
}

func (h handler) newPod(ctx context.Context, c native.PodConfig) (*native.Pod, error) {
	return h.s.runtime.newPod(ctx, c)
}

func (h handler) poststop(ctx context.Context, c native.HookConfig) error {
	return h.s.runtime.poststop(ctx, c)
}

// Attach implements runc.Attacher.
func (h handler) Attach(ctx context.Context, a native.Attachment) error {
	return h.s.runtime.Attach(ctx, a)
}

// mountsDir is the directory, in that of the shim, for what programs are to find mounted from within user namespaces.
const mountsDir = "mounts"

// useBinary records that a container is run by a program, if it is. What a start that was cut short has left is undone first.
func (s *Server) useBinary(ctx context.Context, c *container, r *api.Runtime, cgroupsPath string) error {
	if r == nil {
		return nil
	}
	if err := s.cleanDirectory(ctx, c.id, c.dir, cgroupsPath); err != nil {
		return err
	}
	mounts := ""
	if slices.Contains(c.record.Namespaces, userSpace) {
		mounts = filepath.Join(s.config.State, mountsDir, c.id)
	}
	var err error
	c.binary, err = runc.New(runc.Binary{Path: r.Path, Root: r.Root, SystemdCgroup: r.SystemdCgroup, Args: r.Args}, c.id, c.dir, mounts)
	return err
}

// cleanDirectory ends and removes what a program has left of a container that we do not know.
func (s *Server) cleanDirectory(ctx context.Context, id, dir, cgroupsPath string) error {
	if dir == "" {
		return nil
	}
	left, err := runc.Load(id, dir)
	if err != nil || left == nil {
		return err
	}
	if err := killCgroup(ctx, cgroupsPath); err != nil {
		return err
	}
	return left.Cleanup(ctx)
}

// loadBinary finds the program of a container that is taken over.
func (s *Server) loadBinary(c *container) {
	var err error
	if c.binary, err = runc.Load(c.id, c.dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.note.Error("which program runs a container is lost", "container", c.id, "error", err)
	}
}

// removeSockets removes what a shim that was killed has left of terminals being sent.
func removeSockets(state string) {
	names, _ := filepath.Glob(filepath.Join(state, runc.SocketPattern))
	for _, name := range names {
		_ = os.Remove(name)
	}
}
