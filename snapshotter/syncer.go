package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"
)

// syncer makes the filesystem of the root durable. Calls that wait at the same time share one syncfs.
//
// Linux reports an error of writing back to each descriptor once, at its next syncfs (5.8). The syncer counts those of its
// own descriptor, so that an error met by one call also fails the others whose data it may have been.
type syncer struct {
	dir   *os.File
	loops sync.WaitGroup

	mu       sync.Mutex
	running  bool
	closed   bool
	waiting  *syncRound // the round that starts next; nil when nobody waits
	failures uint64
}

// syncRound is one syncfs for all who asked before it began.
type syncRound struct{ done chan struct{} }

func newSyncer(dir string) (*syncer, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	return &syncer{dir: f}, nil
}

func (s *syncer) close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.loops.Wait()
	return s.dir.Close()
}

// mark is to be taken before the first write that a later sync is for.
func (s *syncer) mark() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failures
}

// sync returns when all that was written before the call is durable. It fails when anything written since the mark
// was taken may be lost.
func (s *syncer) sync(ctx context.Context, mark uint64) error {
	s.mu.Lock()
	if s.waiting == nil {
		s.waiting = &syncRound{done: make(chan struct{})}
	}
	round := s.waiting
	if !s.running {
		s.running = true
		s.loops.Go(s.loop)
	}
	s.mu.Unlock()
	select {
	case <-round.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	if s.mark() != mark {
		return fmt.Errorf("sync %s: the disk did not take what was written, see the kernel's log: %w", s.dir.Name(), errdefs.ErrDataLoss)
	}
	return nil
}

// start begins a sync that nobody waits for, unless one is under way.
func (s *syncer) start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running || s.closed {
		return
	}
	s.waiting = &syncRound{done: make(chan struct{})}
	s.running = true
	s.loops.Go(s.loop)
}

// loop syncs until nobody waits.
func (s *syncer) loop() {
	for {
		s.mu.Lock()
		round := s.waiting
		s.waiting = nil
		if round == nil {
			s.running = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		err := unix.Syncfs(int(s.dir.Fd()))
		for errors.Is(err, unix.EINTR) {
			err = unix.Syncfs(int(s.dir.Fd()))
		}
		if err != nil {
			s.mu.Lock()
			s.failures++
			s.mu.Unlock()
		}
		close(round.done)
	}
}

// syncPath makes one file or directory durable.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
