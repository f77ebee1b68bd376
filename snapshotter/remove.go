package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// Remove removes a snapshot that has no children; its layer goes with the last snapshot that uses it. Files are deleted
// before it returns, or by the next Cleanup (WithAsyncRemove). That files could not be deleted is logged and is no error:
// the snapshot is gone.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	n, last, err := s.beginRemove(key)
	if err != nil {
		return fmt.Errorf("remove snapshot: %w", err)
	}
	if n.kind == snapshots.KindCommitted {
		c := change{dropSnapshots: []string{key}}
		if last {
			c.dropLayers = []uint64{n.layer.number}
		}
		err = s.db.apply(c)
	} else {
		err = s.trash(activeDir, n.number)
	}
	s.endRemove(n, last, err == nil)
	if err != nil {
		return fmt.Errorf("remove snapshot %q: %w", key, err)
	}
	if last {
		s.discard(ctx, layersDir, n.layer.number)
	} else if n.kind != snapshots.KindCommitted {
		s.discard(ctx, activeDir, n.number)
	}
	return nil
}

// beginRemove hides a snapshot, and says whether its layer goes with it.
func (s *Snapshotter) beginRemove(key string) (n *node, last bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err = s.index.get(key)
	if err != nil {
		return nil, false, err
	}
	if n.children > 0 {
		return nil, false, fmt.Errorf("snapshot %q has %d children, remove those first: %w", key, n.children, errdefs.ErrFailedPrecondition)
	}
	s.index.hide(n)
	if n.kind != snapshots.KindCommitted {
		s.index.busy[n.number] = true
		return n, false, nil
	}
	last = n.layer.snapshots == 1 && n.layer.holds == 0
	if last {
		s.index.hideLayer(n.layer)
	}
	return n, last, nil
}

func (s *Snapshotter) endRemove(n *node, last, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !ok {
		s.index.settle(n, published)
		if last {
			s.index.showLayer(n.layer)
		}
		if n.kind != snapshots.KindCommitted {
			delete(s.index.busy, n.number)
		}
		return
	}
	s.index.drop(n)
	if last {
		s.index.dropLayer(n.layer)
	}
}

func trashName(dir string, n uint64) string { return dir + "-" + number(n) }

// trashed lists the trash with the numbers that the entries had.
func (s *Snapshotter) trashed() (map[string]uint64, error) {
	entries, err := os.ReadDir(s.path(trashDir))
	if err != nil {
		return nil, err
	}
	trashed := map[string]uint64{}
	for _, entry := range entries {
		top := entry.Name()
		if deep, ok := strings.CutPrefix(top, deepPrefix); ok {
			top = deep[:max(strings.LastIndexByte(deep, '-'), 0)]
		}
		_, digits, _ := strings.Cut(top, "-")
		trashed[entry.Name()], _ = strconv.ParseUint(digits, 10, 64) // 0 is given to nothing
	}
	return trashed, nil
}

// trash moves a directory out of the way at once. One that is not there is no error.
func (s *Snapshotter) trash(dir string, n uint64) error {
	err := os.Rename(s.path(dir, number(n)), s.path(trashDir, trashName(dir, n)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// discard removes a busy directory that has no record, and the number is not busy any more.
func (s *Snapshotter) discard(ctx context.Context, dir string, n uint64) {
	ctx = context.WithoutCancel(ctx) // it has no record any more, so it goes on when the caller does not
	if err := s.trash(dir, n); err != nil || !s.async || dir != activeDir {
		s.discarded(ctx, dir, n, err)
		return
	}
	s.behind.do(func() { s.discarded(ctx, dir, n, nil) })
}

// discarded deletes what was moved to the trash, unless that has failed.
func (s *Snapshotter) discarded(ctx context.Context, dir string, n uint64, err error) {
	if err == nil {
		err = removeTree(ctx, s.path(trashDir), trashName(dir, n))
	}
	if err != nil {
		s.log.Warn("files of a removed snapshot are left for a later cleanup", "path", s.path(dir, number(n)), "error", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.index.busy, n)
}

// Cleanup removes what no record is about: directories left by a kill, what Remove has left, and committed layers
// that no snapshot has used for a while. It goes on past errors.
func (s *Snapshotter) Cleanup(ctx context.Context) error {
	select {
	case s.cleaning <- struct{}{}:
		defer func() { <-s.cleaning }()
	case <-ctx.Done():
		return fmt.Errorf("clean up snapshots: wait for another cleanup: %w", ctx.Err())
	}
	failures := []error{s.dropUnused()}
	for _, dir := range []string{layersDir, activeDir} {
		failures = append(failures, s.trashUnknown(dir))
	}
	failures = append(failures, s.emptyTrash(ctx))
	if err := errors.Join(failures...); err != nil {
		return fmt.Errorf("clean up snapshots: %w", err)
	}
	return nil
}

// dropUnused removes the records of layers that no snapshot and nobody else uses.
func (s *Snapshotter) dropUnused() error {
	s.mu.Lock()
	var unused []*layer
	var c change
	for n, l := range s.index.layers {
		idle := l.snapshots == 0 && l.holds == 0 && !l.leaving
		if idle && (len(l.retired) > 0 && !s.index.used(l) || len(l.retired) == 0 && time.Since(l.created) >= s.grace) {
			s.index.hideLayer(l)
			unused = append(unused, l)
			c.dropLayers = append(c.dropLayers, n)
		}
	}
	s.mu.Unlock()
	if len(unused) == 0 {
		return nil
	}
	err := s.db.apply(c)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range unused {
		if err != nil {
			s.index.showLayer(l)
			continue
		}
		s.index.dropLayer(l)
		delete(s.index.busy, l.number) // trashUnknown finds its directory
	}
	return err
}

// trashUnknown moves directories without a record to the trash. Numbers are given out once, so what is unknown after the
// directory was listed stays unknown.
func (s *Snapshotter) trashUnknown(dir string) error {
	numbers, err := s.numbers(dir)
	if err != nil {
		return err
	}
	known := s.known(dir)
	var failures []error
	for _, n := range numbers {
		if !known[n] {
			failures = append(failures, s.trash(dir, n))
		}
	}
	return errors.Join(failures...)
}

// known lists the numbers that have a record in layers or active, or are busy.
func (s *Snapshotter) known(dir string) map[uint64]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := map[uint64]bool{}
	for n := range s.index.busy {
		known[n] = true
	}
	if dir == layersDir {
		for n := range s.index.layers {
			known[n] = true
		}
		return known
	}
	for _, n := range s.index.nodes {
		if n.kind != snapshots.KindCommitted {
			known[n.number] = true
		}
	}
	return known
}

// emptyTrash deletes what nobody else is deleting.
func (s *Snapshotter) emptyTrash(ctx context.Context) error {
	trashed, err := s.trashed()
	if err != nil {
		return err
	}
	s.mu.Lock()
	maps.DeleteFunc(trashed, func(_ string, n uint64) bool { return s.index.busy[n] })
	s.mu.Unlock()
	var failures []error
	for name := range trashed {
		failures = append(failures, removeTree(ctx, s.path(trashDir), name))
	}
	return errors.Join(failures...)
}
