package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/criserver/criserver/internal/fsx"
)

const recordName = "record.json"

// activeRecord is active/<n>/record.json.
type activeRecord struct {
	Key     string            `json:"key"`
	Kind    snapshots.Kind    `json:"kind"`
	Parent  string            `json:"parent,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	Created time.Time         `json:"created"`
	Updated time.Time         `json:"updated"`
	// BootID is set for a volatile snapshot, which another boot does not have.
	BootID string `json:"bootID,omitempty"`
}

// load builds the index from what is on disk.
func (s *Snapshotter) load() error {
	s.index = newIndex()
	layers, names, problems, err := s.db.read()
	if err != nil {
		return err
	}
	for n, record := range layers {
		s.index.next = max(s.index.next, n+1)
		s.index.addLayer(&layer{
			number: n, key: record.Key, size: record.Size, inodes: record.Inodes,
			rootImplied: record.RootImplied, opaque: record.Opaque, created: record.Created, retired: record.Retired,
		})
	}
	problems = append(problems, s.index.addCommitted(names)...)
	active, err := s.numbers(activeDir)
	if err != nil {
		return err
	}
	for _, n := range active {
		if err := s.loadActive(n); err != nil {
			problems = append(problems, fmt.Errorf("active snapshot in %s is given up: %w", s.activePath(n), err))
		}
	}
	inLayers, err := s.numbers(layersDir)
	if err != nil {
		return err
	}
	inTrash, err := s.trashed()
	if err != nil {
		return err
	}
	for _, n := range append(inLayers, slices.Collect(maps.Values(inTrash))...) {
		s.index.next = max(s.index.next, n+1)
	}
	s.index.problems = problems
	for _, problem := range s.Problems(context.Background()) {
		s.log.Error("a record of the snapshots is broken", "error", problem)
	}
	return nil
}

// addCommitted makes committed snapshots known, parents first.
func (x *index) addCommitted(records map[string]snapshotRecord) (problems []error) {
	var add func(name string, depth int) error
	add = func(name string, depth int) error {
		record, ok := records[name]
		if !ok || depth > len(records) {
			return fmt.Errorf("snapshot %q has no record: %w", name, errdefs.ErrDataLoss)
		}
		if x.nodes[name] != nil {
			return nil
		}
		n := &node{
			name: name, kind: snapshots.KindCommitted, labels: record.Labels,
			created: record.Created, updated: record.Updated, layer: x.layers[record.Layer],
		}
		if n.layer == nil {
			return fmt.Errorf("snapshot %q: its layer %d has no record: %w", name, record.Layer, errdefs.ErrDataLoss)
		}
		if record.Parent != "" {
			if err := add(record.Parent, depth+1); err != nil {
				return fmt.Errorf("snapshot %q: parent: %w", name, err)
			}
			n.parent = x.nodes[record.Parent]
		}
		if err := x.reserve(n); err != nil {
			return err
		}
		x.settle(n, published)
		return nil
	}
	for name := range records {
		if err := add(name, 0); err != nil {
			problems = append(problems, err)
		}
	}
	return problems
}

// loadActive makes an active snapshot or a view known. One without a record is left to Cleanup, and so is a volatile one of
// another boot. One that was being committed when the process was killed is committed: its layer has a record.
func (s *Snapshotter) loadActive(number uint64) error {
	s.index.next = max(s.index.next, number+1)
	if s.index.layers[number] != nil {
		return errors.Join(s.moveUpper(number), s.trash(activeDir, number))
	}
	var record activeRecord
	err := fsx.ReadJSON(filepath.Join(s.activePath(number), recordName), &record)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if record.BootID != "" && record.BootID != fsx.BootID() {
		return nil
	}
	parent, err := s.index.parentFor(record.Parent)
	if err != nil {
		return fmt.Errorf("snapshot %q: %w", record.Key, err)
	}
	n := &node{
		name: record.Key, kind: record.Kind, parent: parent, labels: record.Labels,
		created: record.Created, updated: record.Updated, number: number, volatile: record.BootID != "",
	}
	if err := s.index.reserve(n); err != nil {
		return err
	}
	s.index.settle(n, published)
	return nil
}

// numbers lists the numbered directories in one of ours.
func (s *Snapshotter) numbers(dir string) ([]uint64, error) {
	entries, err := os.ReadDir(s.path(dir))
	if err != nil {
		return nil, err
	}
	var numbers []uint64
	for _, entry := range entries {
		n, err := strconv.ParseUint(entry.Name(), 10, 64)
		if err != nil || number(n) != entry.Name() {
			s.log.Warn("not a directory of the snapshotter, left alone", "path", s.path(dir, entry.Name()))
			continue
		}
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	return numbers, nil
}

// Problems lists what is wrong on disk: records that were found broken at start, and layers whose directory is gone. Each
// is of kind errdefs.ErrDataLoss and says how to mend it.
func (s *Snapshotter) Problems(ctx context.Context) []error {
	s.mu.Lock()
	problems := slices.Clone(s.index.problems)
	var layers []*layer
	for _, l := range s.index.layers {
		layers = append(layers, l)
	}
	s.mu.Unlock()
	for _, l := range layers {
		if ctx.Err() != nil {
			return problems
		}
		if err := s.checkLayer(l); err != nil {
			problems = append(problems, err)
		}
	}
	return problems
}

// checkLayer says whether a layer's directory is there, and notes when it is not.
func (s *Snapshotter) checkLayer(l *layer) error {
	info, err := os.Lstat(s.layerPath(l.number))
	if err == nil && info.IsDir() {
		s.mu.Lock()
		l.missing = false
		s.mu.Unlock()
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("layer %d: %w", l.number, err)
	}
	s.mu.Lock()
	gone := s.index.layers[l.number] == l && !l.leaving
	l.missing = gone
	s.mu.Unlock()
	if !gone {
		return nil
	}
	return fmt.Errorf("the directory of layer %d (%s), %s, is gone; pull the images that have it again: %w",
		l.number, l.key, s.layerPath(l.number), errdefs.ErrDataLoss)
}
