package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Rewrite answers a hold as the writer of a layer that is there: Commit puts what was written in the place of its directory, for
// all snapshots that use it, and Release without Commit leaves that as it is. The digest is that by which the
// layer is known; when it is the chainID, what is written has to be adopted to the layers below, as when it was made.
// errdefs.ErrNotFound when there is no such layer.
//
// Overlays that have the old directory mounted keep it: it stays, under another number, until the active snapshots and views
// that were there at that time are gone. They go on to see the old files; whoever mounts from now on sees the new ones.
func (s *Snapshotter) Rewrite(ctx context.Context, id LayerID) (_ *Layer, shared digest.Digest, err error) {
	for {
		l, wait, err := s.claimRewrite(id)
		if err != nil {
			return nil, "", fmt.Errorf("layer %s: %w", id.DiffID, err)
		}
		if wait == nil {
			if err := l.begin(); err != nil {
				l.Release()
				return nil, "", fmt.Errorf("layer %s: %w", id.DiffID, err)
			}
			return l, l.repairs.key, nil
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, "", fmt.Errorf("wait for layer %s, which another caller writes: %w", id.DiffID, ctx.Err())
		}
	}
}

func (s *Snapshotter) claimRewrite(id LayerID) (*Layer, <-chan struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found *layer
	for _, key := range []digest.Digest{id.DiffID, id.ChainID} {
		if found == nil {
			found = s.index.keyed[key]
		}
	}
	if found == nil {
		return nil, nil, errdefs.ErrNotFound
	}
	if f := s.index.flights[found.key]; f != nil {
		return nil, f.done, nil
	}
	f := &flight{key: found.key, done: make(chan struct{})}
	s.index.flights[found.key] = f
	found.holds++
	l := &Layer{
		s: s, id: id, repairs: found, rewrites: true, byChain: found.key != id.DiffID, flights: []*flight{f}, number: s.index.number(),
	}
	return l, nil, nil
}

// Old is the path of the directory that a Rewrite is to replace.
func (l *Layer) Old() string { return l.s.layerPath(l.repairs.number) }

// swap puts the written directory in the place of the layer's. The one that was there is then a layer of its own without
// a key, which goes when nothing can have it mounted any more. Its record is written first: without one it would be garbage at once.
func (l *Layer) swap() (retired *layer, err error) {
	s, old := l.s, l.repairs
	if _, err := os.Lstat(s.layerPath(old.number)); errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(os.Rename(s.layerPath(l.number), s.layerPath(old.number)), syncPath(s.path(layersDir)))
	}
	retired = &layer{number: l.number, size: old.size, inodes: old.inodes, created: now()}
	record := func() error {
		users := append(s.users(old), retired.retired...)
		slices.Sort(users)
		if users = slices.Compact(users); len(users) == len(retired.retired) {
			return nil
		}
		retired.retired = users
		return s.db.apply(change{putLayers: map[uint64]layerRecord{l.number: retired.record()}})
	}
	if err := record(); err != nil {
		return nil, err
	}
	exchange := func() error {
		err := unix.Renameat2(unix.AT_FDCWD, s.layerPath(l.number), unix.AT_FDCWD, s.layerPath(old.number), unix.RENAME_EXCHANGE)
		return errors.Join(err, syncPath(s.path(layersDir)))
	}
	if err = exchange(); err == nil {
		// Who came meanwhile may have looked the old one up.
		if err = record(); err != nil {
			err = errors.Join(err, exchange())
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("exchange %s and %s: %w", s.layerPath(l.number), s.layerPath(old.number), err),
			s.db.apply(change{dropLayers: []uint64{l.number}}))
	}
	if len(retired.retired) == 0 {
		return nil, nil // garbage
	}
	return retired, nil
}

// users are the active snapshots and views that stand on a layer, by name.
func (s *Snapshotter) users(l *layer) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var users []string
	for name, n := range s.index.nodes {
		if n.kind != snapshots.KindCommitted && slices.Contains(chain(n), l) {
			users = append(users, name)
		}
	}
	return users
}

// used says whether one of the snapshots that may have a retired layer mounted is still there. The mutex is held.
func (x *index) used(l *layer) bool {
	return slices.ContainsFunc(l.retired, func(name string) bool { return x.nodes[name] != nil })
}
