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
	"strings"

	"golang.org/x/sys/unix"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/errdefs"

	"github.com/criserver/criserver/internal/fsx"
)

// Commit makes a committed snapshot from an active one, with a layer of its own that is not shared. What was written is
// durable when it returns. An active snapshot without a parent may get one here (snapshots.WithParent). It must not be
// mounted for writing any more.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	var base snapshots.Info
	for _, opt := range opts {
		if err := opt(&base); err != nil {
			return fmt.Errorf("commit snapshot: %w", err)
		}
	}
	active, committed, err := s.beginCommit(name, key, base)
	if err != nil {
		return fmt.Errorf("commit snapshot: %w", err)
	}
	l, err := s.commitFiles(ctx, active, committed)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		delete(s.index.busy, active.number)
		s.index.drop(committed)
		s.index.settle(active, published)
		return fmt.Errorf("commit snapshot %q as %q: %w", key, name, err)
	}
	s.index.drop(active)
	s.index.addLayer(l)
	committed.layer, l.snapshots = l, 1
	s.index.settle(committed, published)
	return nil
}

func (s *Snapshotter) beginCommit(name, key string, base snapshots.Info) (active, committed *node, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	active, err = s.index.get(key)
	if err != nil {
		return nil, nil, err
	}
	if active.kind != snapshots.KindActive {
		return nil, nil, fmt.Errorf("snapshot %q is not active: %w", key, errdefs.ErrFailedPrecondition)
	}
	parent := active.parent
	switch {
	case parent == nil:
		if parent, err = s.index.parentFor(base.Parent); err != nil {
			return nil, nil, err
		}
	case base.Parent != "" && base.Parent != parent.name:
		return nil, nil, fmt.Errorf("active snapshot %q has parent %q, which cannot become %q: %w",
			key, parent.name, base.Parent, errdefs.ErrInvalidArgument)
	}
	committed = &node{
		name: name, kind: snapshots.KindCommitted, parent: parent, labels: withoutEmpty(base.Labels), created: now(),
	}
	committed.updated = committed.created
	if err := s.index.reserve(committed); err != nil {
		return nil, nil, err
	}
	s.index.hide(active)
	s.index.busy[active.number] = true
	return active, committed, nil
}

// commitFiles makes the files of an active snapshot durable, records them as a layer, and moves them to their place.
func (s *Snapshotter) commitFiles(ctx context.Context, active, committed *node) (*layer, error) {
	upper := filepath.Join(s.activePath(active.number), "fs")
	// The writer did not take a mark; errors of the past are those of any mount.
	if err := s.syncer.sync(ctx, s.syncer.mark()); err != nil {
		return nil, err
	}
	usage, err := measure(ctx, upper)
	if err != nil {
		return nil, err
	}
	opaque, err := isOpaque(upper)
	if err != nil {
		return nil, err
	}
	l := &layer{
		number: active.number, size: usage.Size, inodes: usage.Inodes, opaque: opaque, created: committed.created,
	}
	record := committed.record()
	record.Layer = l.number
	err = s.db.apply(change{
		putLayers:    map[uint64]layerRecord{l.number: l.record()},
		putSnapshots: map[string]snapshotRecord{committed.name: record},
	})
	if err != nil {
		return nil, err
	}
	if err := s.moveUpper(l.number); err != nil {
		undo := change{dropLayers: []uint64{l.number}, dropSnapshots: []string{committed.name}}
		return nil, errors.Join(err, s.db.apply(undo))
	}
	s.emptied(ctx, l.number)
	return l, nil
}

// moveUpper moves the files of an active snapshot to the layer's place. It may be called again.
func (s *Snapshotter) moveUpper(n uint64) error {
	err := os.Rename(filepath.Join(s.activePath(n), "fs"), s.layerPath(n))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// emptied removes what a commit has left of an active snapshot.
func (s *Snapshotter) emptied(ctx context.Context, n uint64) {
	err := s.trash(activeDir, n)
	if err == nil {
		err = removeTree(context.WithoutCancel(ctx), s.path(trashDir), trashName(activeDir, n))
	}
	if err != nil {
		s.log.Warn("files of a committed snapshot are left for a later cleanup", "error", err)
	}
}

func (n *node) record() snapshotRecord {
	record := snapshotRecord{Labels: n.labels, Created: n.created, Updated: n.updated}
	if n.parent != nil {
		record.Parent = n.parent.name
	}
	if n.layer != nil {
		record.Layer = n.layer.number
	}
	return record
}

func (l *layer) record() layerRecord {
	return layerRecord{
		Key: l.key, Size: l.size, Inodes: l.inodes, RootImplied: l.rootImplied, Opaque: l.opaque, Created: l.created, Retired: l.retired,
	}
}

// isOpaque says whether a layer's root hides all layers below. Overlayfs itself does not look at that mark of a root.
func isOpaque(dir string) (bool, error) {
	var value [4]byte
	n, err := unix.Lgetxattr(dir, "trusted.overlay.opaque", value[:])
	switch {
	case errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ERANGE):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("get trusted.overlay.opaque of %s: %w", dir, err)
	}
	return n == 1 && value[0] == 'y', nil
}

// Usage says what a snapshot takes without its parents. That of an active one is measured and takes as long as its tree is
// large; a view takes nothing. A layer that several snapshots share counts in each.
func (s *Snapshotter) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	s.mu.Lock()
	n, err := s.index.get(key)
	if err != nil {
		s.mu.Unlock()
		return snapshots.Usage{}, fmt.Errorf("usage: %w", err)
	}
	kind, dir := n.kind, s.activePath(n.number)
	var usage snapshots.Usage
	if n.layer != nil {
		usage = snapshots.Usage{Size: n.layer.size, Inodes: n.layer.inodes}
	}
	s.mu.Unlock()
	if kind != snapshots.KindActive {
		return usage, nil
	}
	usage, err = measure(ctx, filepath.Join(dir, "fs"))
	if err != nil {
		return snapshots.Usage{}, fmt.Errorf("usage of snapshot %q: %w", key, err)
	}
	return usage, nil
}

// Update replaces labels: all of them, or with field paths "labels" and "labels.<name>" those named.
func (s *Snapshotter) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (snapshots.Info, error) {
	s.updating.Lock()
	defer s.updating.Unlock()
	s.mu.Lock()
	n, err := s.index.get(info.Name)
	if err != nil {
		s.mu.Unlock()
		return snapshots.Info{}, fmt.Errorf("update: %w", err)
	}
	updated := n.info()
	s.mu.Unlock()
	if err := updateLabels(&updated, info.Labels, fieldpaths); err != nil {
		return snapshots.Info{}, fmt.Errorf("update snapshot %q: %w", info.Name, err)
	}
	if _, still := updated.Labels[LabelVolatile]; still != n.volatile && n.kind != snapshots.KindCommitted {
		return snapshots.Info{}, fmt.Errorf("update snapshot %q: label %s cannot change: %w", info.Name, LabelVolatile, errdefs.ErrInvalidArgument)
	}
	updated.Updated = now()
	if err := s.storeUpdate(n, updated); err != nil {
		return snapshots.Info{}, fmt.Errorf("update snapshot %q: %w", info.Name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n.labels, n.updated = updated.Labels, updated.Updated
	return n.info(), nil
}

func updateLabels(updated *snapshots.Info, labels map[string]string, fieldpaths []string) error {
	if len(fieldpaths) == 0 {
		fieldpaths = []string{"labels"}
	}
	for _, path := range fieldpaths {
		name, one := strings.CutPrefix(path, "labels.")
		switch {
		case one:
			if updated.Labels == nil {
				updated.Labels = map[string]string{}
			}
			updated.Labels[name] = labels[name]
		case path == "labels":
			updated.Labels = maps.Clone(labels)
		default:
			return fmt.Errorf("field %q cannot change: %w", path, errdefs.ErrInvalidArgument)
		}
	}
	updated.Labels = withoutEmpty(updated.Labels)
	return nil
}

func (s *Snapshotter) storeUpdate(n *node, info snapshots.Info) error {
	if info.Kind == snapshots.KindCommitted {
		return s.db.relabel(info.Name, info.Labels, info.Updated)
	}
	record := activeRecord{
		Key: info.Name, Kind: info.Kind, Parent: info.Parent, Labels: info.Labels, Created: info.Created, Updated: info.Updated,
	}
	if n.volatile {
		record.BootID = fsx.BootID()
	}
	return s.writeRecord(n.number, record)
}

// withoutEmpty copies labels and leaves out those without a value: setting a label to "" removes it.
func withoutEmpty(labels map[string]string) map[string]string {
	labels = maps.Clone(labels)
	maps.DeleteFunc(labels, func(_, value string) bool { return value == "" })
	return labels
}

// Walk calls fn for a copy of each record that matches the filters, by name. Snapshots that come or go meanwhile may be
// seen or not; fn may call any method.
func (s *Snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, matching ...string) error {
	filter, err := filters.ParseAll(matching...)
	if err != nil {
		return fmt.Errorf("walk snapshots: %w", err)
	}
	s.mu.Lock()
	infos := make([]snapshots.Info, 0, len(s.index.nodes))
	for _, n := range s.index.nodes {
		if n.state == published {
			infos = append(infos, n.info())
		}
	}
	s.mu.Unlock()
	slices.SortFunc(infos, func(a, b snapshots.Info) int { return strings.Compare(a.Name, b.Name) })
	for _, info := range infos {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !filter.Match(adapt(info)) {
			continue
		}
		if err := fn(ctx, info); err != nil {
			return err
		}
	}
	return nil
}

// adapt shows a record to filters: kind, name, parent and labels.
func adapt(info snapshots.Info) filters.Adaptor {
	return filters.AdapterFunc(func(path []string) (string, bool) {
		if len(path) == 0 {
			return "", false
		}
		switch path[0] {
		case "kind":
			return strings.ToLower(info.Kind.String()), true
		case "name":
			return info.Name, true
		case "parent":
			return info.Parent, true
		case "labels":
			value, ok := info.Labels[strings.Join(path[1:], ".")]
			return value, ok
		}
		return "", false
	})
}
