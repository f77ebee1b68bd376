package shimd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/api"
	"github.com/criserver/criserver/shim/keeper"
)

const (
	// drainLimit is how long output is waited for after a process has ended, when others hold its pipe open.
	drainLimit = 500 * time.Millisecond
	// recordLimit is how long the keeper's exit record is waited for.
	recordLimit = 2 * time.Second
	// unknownCode is the exit code of a process of which nobody can tell it.
	unknownCode   = 255
	unknownReason = "ExitUnknown"
)

// exitRecord is <dir>/exit.json.
type exitRecord struct {
	Code      int    `json:"code"`
	ExitedAt  int64  `json:"exitedAt"`
	OOMKilled bool   `json:"oomKilled"`
	Reason    string `json:"reason"`
}

// onExit follows the order of SHIM.md: output drained, exit.json, reaped, told.
func (s *Server) onExit(c *container) {
	at := time.Now().UnixNano()
	code, ours := peek(c.pidfd)
	e := exitRecord{Code: code, ExitedAt: at}
	if !ours {
		e = s.foreignExit(c, at)
	}
	// The cgroup is still there: Delete waits for what happens here.
	if c.cgroup != nil && !e.OOMKilled {
		kills, err := c.cgroup.OOMKills()
		if err != nil {
			s.note.Warn("oom kills of the container are not known", "container", c.id, "error", err)
		}
		e.OOMKilled = kills > 0
	}
	c.drained(drainLimit)
	err := keeper.WriteExit(c.dir, keeper.FormatExit(e.Code, e.ExitedAt, e.OOMKilled, e.Reason))
	if err != nil && !errors.Is(err, unix.EEXIST) {
		s.note.Error("the exit record is not written", "container", c.id, "dir", c.dir, "error", err)
	}
	reap(c.pidfd)
	s.publish(c, e)
}

// foreignExit learns how a process ended that somebody else reaps: the keeper, who writes a record first; else the kernel tells.
func (s *Server) foreignExit(c *container, at int64) exitRecord {
	deadline := time.Now().Add(recordLimit)
	for pause := 500 * time.Microsecond; ; pause = min(2*pause, 50*time.Millisecond) {
		code, reaped := exitOf(c.pidfd)
		var e exitRecord
		err := readJSON(c.dir, keeper.ExitFile, &e)
		switch {
		case err == nil:
			return e
		case !errors.Is(err, fs.ErrNotExist):
			s.note.Error("the exit record cannot be read", "container", c.id, "error", err)
		case reaped:
			return exitRecord{Code: code, ExitedAt: at}
		}
		if time.Now().After(deadline) {
			return exitRecord{Code: unknownCode, ExitedAt: at, Reason: unknownReason}
		}
		time.Sleep(pause)
	}
}

// drained waits until the output has been read and logged, at most d. It reports whether that is so.
func (c *container) drained(d time.Duration) bool {
	limit := time.NewTimer(d)
	defer limit.Stop()
	for _, st := range c.streams {
		if st.done == nil {
			continue
		}
		select {
		case <-st.done:
		case <-limit.C:
			return false
		}
	}
	return true
}

// publish makes an exit known.
func (s *Server) publish(c *container, e exitRecord) {
	s.advance(c, exited)
	s.mu.Lock()
	c.exit = &api.Exit{Code: int32(e.Code), ExitedAt: e.ExitedAt, OomKilled: e.OOMKilled, Reason: e.Reason}
	s.sequence++
	c.exitSeq = s.sequence
	close(s.news)
	s.news = make(chan struct{})
	s.mu.Unlock()
	close(c.ended)
}

// wire is what List says of a container. The caller holds mu.
func (c *container) wire() *api.Container {
	return &api.Container{Id: c.id, PodId: c.record.PodID, Pid: int32(c.record.PID), StartedAt: c.record.StartedAt, Exit: c.exit}
}

// List answers with every container that runs or has ended and is not deleted.
func (s *Server) List(context.Context, *api.ListRequest) (*api.ListResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &api.ListResponse{Instance: s.instance, Sequence: s.sequence}
	for _, c := range s.containers {
		if c.state != starting {
			r.Containers = append(r.Containers, c.wire())
		}
	}
	return r, nil
}

// Exits waits for exits after a sequence number. A number that is ahead of ours is none of ours: everything is answered.
func (s *Server) Exits(ctx context.Context, r *api.ExitsRequest) (*api.ExitsResponse, error) {
	for {
		answer, news := s.exitsAfter(r.After)
		if len(answer.Containers) > 0 {
			return answer, nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (s *Server) exitsAfter(after uint64) (*api.ExitsResponse, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if after > s.sequence {
		after = 0
	}
	r := &api.ExitsResponse{Sequence: s.sequence}
	for _, c := range s.containers {
		if c.exit != nil && c.exitSeq > after {
			r.Containers = append(r.Containers, c.wire())
		}
	}
	return r, s.news
}

// teardown ends what is left of a container and lets go of everything. It serves a start that failed, a start that was
// cut short, and Delete; it may be repeated, and goes on past errors.
func (s *Server) teardown(ctx context.Context, c *container) error {
	var errs []error
	if c.pidfd >= 0 {
		_ = unix.PidfdSendSignal(c.pidfd, unix.SIGKILL, nil, 0)
	}
	empty := c.binary == nil && c.hasEnded() && c.cgroup != nil && c.cgroup.RemoveEmpty()
	if c.cgroup != nil && !empty {
		errs = append(errs, c.cgroup.Kill(ctx))
	}
	if c.pidfd >= 0 {
		errs = append(errs, s.awaitEnd(ctx, c))
	}
	if c.binary != nil && errors.Join(errs...) == nil {
		errs = append(errs, c.binary.Cleanup(ctx))
	}
	if c.cgroup != nil && !empty {
		errs = append(errs, c.cgroup.Remove(ctx))
	}
	if err := errors.Join(errs...); err != nil {
		return err // what runs must stay known
	}
	c.drained(drainLimit)
	for _, st := range c.streams {
		_ = st.src.SetReadDeadline(time.Unix(1, 0)) // ends the wait for more
	}
	c.drained(drainLimit)
	if err := s.link.drop(c.key()); err != nil {
		return err
	}
	if c.log != nil {
		c.log.close()
	}
	s.mu.Lock()
	c.pidfd = -1
	s.mu.Unlock()
	for _, st := range c.streams {
		_ = st.src.Close()
	}
	c.held.close("log")
	if c.failure != nil { // nothing of a start that failed is left
		if dir, err := unix.Open(c.dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err == nil {
			removeRecords(dir)
			_ = unix.Close(dir)
		}
	}
	return nil
}

// hasEnded says whether the exit is known.
func (c *container) hasEnded() bool {
	select {
	case <-c.ended:
		return true
	default:
		return false
	}
}

// awaitReaped waits until a process that has ended is reaped by whoever is its parent. The keeper writes an exit record
// before it reaps: were the directory cleared in between, the record would become that of the next start.
func awaitReaped(ctx context.Context, c *container) error {
	for pause := 100 * time.Microsecond; ; pause = min(2*pause, 10*time.Millisecond) {
		if _, ours := peek(c.pidfd); ours || unix.PidfdSendSignal(c.pidfd, 0, nil, 0) == unix.ESRCH {
			return nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return fmt.Errorf("container %s: process %d has ended and nobody reaps it: %w", c.id, c.record.PID, ctx.Err())
		}
	}
}

// awaitEnd waits until a killed process is gone: for one whose start has succeeded, until its exit is known.
func (s *Server) awaitEnd(ctx context.Context, c *container) error {
	if s.stateOf(c) == starting {
		for ctx.Err() == nil {
			if hasEnded(c.pidfd, 10*time.Millisecond) {
				reap(c.pidfd)
				return awaitReaped(ctx, c)
			}
		}
	}
	select {
	case <-c.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("container %s: process %d was killed and does not end: %w", c.id, c.record.PID, ctx.Err())
	}
}
