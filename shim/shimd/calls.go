package shimd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/api"
	"github.com/criserver/criserver/shim/native/cgroup"
)

// deleteLimit bounds a Delete, which does not end with its caller.
const deleteLimit = 30 * time.Second

// Delete ends a container and forgets it. See shim.proto.
func (s *Server) Delete(ctx context.Context, r *api.DeleteRequest) (*api.DeleteResponse, error) {
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), deleteLimit)
	defer cancel()
	c, err := s.find(ctx, r.Id)
	if errdefs.IsNotFound(err) {
		if err := errors.Join(s.cleanDirectory(work, r.Id, r.Dir, r.CgroupsPath), removeCgroup(work, r.CgroupsPath)); err != nil {
			return nil, err
		}
		if r.Dir != "" {
			s.poststop(work, r.Id, r.Dir)
		}
		return &api.DeleteResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	select {
	case c.deletes <- struct{}{}: // one at a time; the next one finds nothing, or tries again
		defer func() { <-c.deletes }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if c.gone {
		return &api.DeleteResponse{}, nil
	}
	s.advance(c, deleting)
	if err := s.teardown(work, c); err != nil {
		return nil, fmt.Errorf("delete container %s: %w", c.id, err)
	}
	if c.record.Poststop {
		s.poststop(work, c.id, c.dir)
	}
	c.gone = true
	s.forget(c)
	return &api.DeleteResponse{}, nil
}

func removeCgroup(ctx context.Context, path string) error {
	if path == "" {
		return nil
	}
	g, err := cgroup.New(path, nil)
	if err != nil {
		return err
	}
	return errors.Join(g.Kill(ctx), g.Remove(ctx))
}

func killCgroup(ctx context.Context, path string) error {
	if path == "" {
		return nil
	}
	g, err := cgroup.New(path, nil)
	if err != nil {
		return err
	}
	return g.Kill(ctx)
}

// Signal sends a signal to a container's process, or to everything in its cgroup.
func (s *Server) Signal(ctx context.Context, r *api.SignalRequest) (*api.SignalResponse, error) {
	if r.Signal < 1 || r.Signal > 64 {
		return nil, fmt.Errorf("signal %d is not one: %w", r.Signal, errdefs.ErrInvalidArgument)
	}
	c, err := s.find(ctx, r.Id)
	if err != nil {
		return nil, err
	}
	signal := unix.Signal(r.Signal)
	if r.All && c.cgroup != nil {
		if signal == unix.SIGKILL {
			return &api.SignalResponse{}, c.cgroup.Kill(ctx)
		}
		return &api.SignalResponse{}, c.cgroup.Signal(signal)
	}
	_, pidfd, err := s.runningPidfd(ctx, r.Id)
	if errdefs.IsFailedPrecondition(err) { // it has ended
		return &api.SignalResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer pidfd.Close()
	err = unix.PidfdSendSignal(int(pidfd.Fd()), signal, nil, 0)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("signal %d to container %s: %w", r.Signal, r.Id, err)
	}
	return &api.SignalResponse{}, nil
}

// ReopenLog opens a container's log anew, after its file was renamed.
func (s *Server) ReopenLog(ctx context.Context, r *api.ReopenLogRequest) (*api.ReopenLogResponse, error) {
	c, err := s.find(ctx, r.Id)
	if err != nil {
		return nil, err
	}
	if s.stateOf(c) == deleting {
		return nil, fmt.Errorf("container %s is being deleted: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	if c.log == nil {
		return &api.ReopenLogResponse{}, nil
	}
	err = c.log.replace(ctx, func(f *os.File) error {
		c.puts <- struct{}{}
		defer func() { <-c.puts }()
		fd := int(f.Fd())
		e := c.held.entry(c.entry(), "log", fd)
		if err := s.link.put(e); err != nil {
			return err
		}
		if s.stateOf(c) == deleting { // the drop of teardown may have been before this put
			return errors.Join(errdefs.ErrFailedPrecondition, s.link.drop(c.key()))
		}
		c.held.replace("log", fd, f)
		return nil
	})
	return &api.ReopenLogResponse{}, err
}
