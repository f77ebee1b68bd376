package shimd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/criserver/criserver/shim/api"
)

// frozenFile is in the directory of a container that Freeze holds. A shim that comes after this one thaws it.
const frozenFile = "frozen"

// thawLimit bounds how long a thaw waits for a dump that is being ended.
const thawLimit = 10 * time.Second

// hold is a set of containers that are frozen together. It ends once, by Thaw or with its caller.
type hold struct {
	containers []*container
	thaw       chan struct{} // closed by the first who wants it thawed
	done       chan struct{} // closed when it is; err is set then
	err        error

	// guarded by Server.mu:
	ending bool
	dumps  map[*dump]bool
}

// dump is a dump in progress.
type dump struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// Freeze stops the processes of containers until Thaw, or until the caller is gone. See shim.proto.
func (s *Server) Freeze(ctx context.Context, r *api.FreezeRequest, to api.Shim_FreezeServer) error {
	return toStatus(s.freeze(ctx, r.Ids, func() error { return to.Send(&api.FreezeResponse{}) }))
}

// freeze is Freeze without the transport.
func (s *Server) freeze(ctx context.Context, ids []string, tell func() error) error {
	h, err := s.reserveHold(ctx, ids)
	if err != nil {
		return err
	}
	if err = h.stop(ctx); err == nil {
		if err = tell(); err == nil {
			select {
			case <-h.thaw:
			case <-ctx.Done():
				err = ctx.Err()
			}
		}
	}
	return errors.Join(err, s.endHold(h))
}

// reserveHold makes a hold of containers that run and are in no other.
func (s *Server) reserveHold(ctx context.Context, ids []string) (*hold, error) {
	if len(ids) == 0 {
		return nil, fmt.Errorf("ids is empty: %w", errdefs.ErrInvalidArgument)
	}
	h := &hold{thaw: make(chan struct{}), done: make(chan struct{}), dumps: map[*dump]bool{}}
	for _, id := range ids {
		c, err := s.find(ctx, id)
		if err != nil {
			return nil, err
		}
		if c.cgroup == nil {
			return nil, fmt.Errorf("container %s has no cgroup of its own, so it cannot be frozen: %w", id, errdefs.ErrFailedPrecondition)
		}
		if slices.Contains(h.containers, c) {
			return nil, fmt.Errorf("container %s is named twice: %w", id, errdefs.ErrInvalidArgument)
		}
		h.containers = append(h.containers, c)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range h.containers {
		switch {
		case c.state != running:
			return nil, fmt.Errorf("container %s does not run: %w", c.id, errdefs.ErrFailedPrecondition)
		case c.hold != nil:
			return nil, fmt.Errorf("container %s is being checkpointed already: %w", c.id, errdefs.ErrFailedPrecondition)
		}
	}
	for _, c := range h.containers {
		c.hold = h
	}
	return h, nil
}

// stop freezes all, having noted for a later shim what it has to thaw.
func (h *hold) stop(ctx context.Context) error {
	for _, c := range h.containers {
		if err := os.WriteFile(filepath.Join(c.dir, frozenFile), nil, 0o600); err != nil {
			return err
		}
	}
	failed := make(chan error, len(h.containers))
	for _, c := range h.containers {
		go func() { failed <- c.cgroup.Freeze(ctx) }()
	}
	var errs []error
	for range h.containers {
		errs = append(errs, <-failed)
	}
	return errors.Join(errs...)
}

// endHold ends a hold: what criu still does is ended first, because at its end criu freezes again what it found frozen.
func (s *Server) endHold(h *hold) error {
	s.mu.Lock()
	h.ending = true
	var dumps []*dump
	for d := range h.dumps {
		dumps = append(dumps, d)
	}
	s.mu.Unlock()
	for _, d := range dumps {
		d.cancel()
		<-d.done // bounded: it was killed
	}
	for _, c := range h.containers {
		if err := thaw(c); err != nil {
			s.note.Error("a container stays frozen", "container", c.id, "error", err)
			h.err = errors.Join(h.err, err)
		}
	}
	s.mu.Lock()
	for _, c := range h.containers {
		c.hold = nil
	}
	s.mu.Unlock()
	close(h.done)
	return h.err
}

// thaw lets a container go on and forgets that it was frozen.
func thaw(c *container) error {
	if err := c.cgroup.Thaw(); err != nil {
		return err
	}
	return ignoreAbsent(os.Remove(filepath.Join(c.dir, frozenFile)))
}

func ignoreAbsent(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// thawLeft thaws what an earlier shim froze, whose dump was killed with it.
func (s *Server) thawLeft(c *container) {
	if c.cgroup == nil {
		return
	}
	if _, err := os.Lstat(filepath.Join(c.dir, frozenFile)); err != nil {
		return
	}
	if err := thaw(c); err != nil {
		s.note.Error("a container stays frozen", "container", c.id, "error", err)
	}
}

// Thaw lets containers go on that Freeze holds. See shim.proto.
func (s *Server) Thaw(ctx context.Context, r *api.ThawRequest) (*api.ThawResponse, error) {
	s.mu.Lock()
	var holds []*hold
	for _, id := range r.Ids {
		if c := s.containers[id]; c != nil && c.hold != nil && !slices.Contains(holds, c.hold) {
			holds = append(holds, c.hold)
		}
	}
	for _, h := range holds {
		select {
		case <-h.thaw:
		default:
			close(h.thaw)
		}
	}
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), thawLimit)
	defer cancel()
	var errs []error
	for _, h := range holds {
		select {
		case <-h.done:
			errs = append(errs, h.err)
		case <-ctx.Done():
			errs = append(errs, fmt.Errorf("thaw: what criu does with a frozen container does not end: %w", ctx.Err()))
		}
	}
	return &api.ThawResponse{}, errors.Join(errs...)
}

// beginDump enters a dump in the container's hold. The caller ends it.
func (s *Server) beginDump(c *container, cancel context.CancelFunc) (end func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := c.hold
	if h == nil || h.ending {
		return nil, fmt.Errorf("container %s is not frozen: call Freeze first: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	d := &dump{cancel: cancel, done: make(chan struct{})}
	h.dumps[d] = true
	return func() {
		s.mu.Lock()
		delete(h.dumps, d)
		s.mu.Unlock()
		close(d.done)
	}, nil
}
