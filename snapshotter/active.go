package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/criserver/criserver/internal/fsx"
)

// overlayOptions are those of every overlay mount. An index would bind an upper directory to one set of lower ones for good.
func overlayOptions() []string { return []string{"index=off"} }

func now() time.Time { return time.Now().UTC().Round(0) }

// Prepare makes an active snapshot. With Volatile it makes no sync. Its writable directory gets the owner and mode of the
// parent's root, or the owner that the labels containerd.io/snapshot/uidmapping and gidmapping map root to.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	mounts, err := s.create(ctx, snapshots.KindActive, key, parent, opts)
	if err != nil {
		return nil, fmt.Errorf("prepare snapshot: %w", err)
	}
	return mounts, nil
}

// View makes a read-only snapshot.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	mounts, err := s.create(ctx, snapshots.KindView, key, parent, opts)
	if err != nil {
		return nil, fmt.Errorf("view snapshot: %w", err)
	}
	return mounts, nil
}

func (s *Snapshotter) create(ctx context.Context, kind snapshots.Kind, key, parent string, opts []snapshots.Opt) ([]mount.Mount, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var base snapshots.Info
	for _, opt := range opts {
		if err := opt(&base); err != nil {
			return nil, err
		}
	}
	n := &node{name: key, kind: kind, labels: withoutEmpty(base.Labels), created: now()}
	n.updated = n.created
	_, n.volatile = n.labels[LabelVolatile]
	layers, err := s.reserveActive(n, parent)
	if err != nil {
		return nil, err
	}
	mounts, err := s.makeActive(n, parent, layers)
	if err != nil {
		s.discard(ctx, activeDir, n.number)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.index.drop(n)
		return nil, fmt.Errorf("snapshot %q: %w", key, err)
	}
	delete(s.index.busy, n.number)
	s.index.settle(n, published)
	return mounts, nil
}

func (s *Snapshotter) reserveActive(n *node, parent string) ([]*layer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.index.parentFor(parent)
	if err != nil {
		return nil, fmt.Errorf("snapshot %q: %w", n.name, err)
	}
	n.parent = p
	if err := s.index.reserve(n); err != nil {
		return nil, err
	}
	n.number = s.index.number()
	return chain(p), nil
}

// makeActive makes the directories, and then the record, which makes them count.
func (s *Snapshotter) makeActive(n *node, parent string, layers []*layer) ([]mount.Mount, error) {
	mounts, err := s.mounts(n, layers)
	if err != nil {
		return nil, err
	}
	dir := s.activePath(n.number)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	if n.kind == snapshots.KindActive {
		if err := os.Mkdir(filepath.Join(dir, "work"), 0o700); err != nil {
			return nil, err
		}
	}
	if hasUpper(n.kind, layers) {
		if err := s.makeUpper(filepath.Join(dir, "fs"), n.labels, layers); err != nil {
			return nil, err
		}
	}
	record := activeRecord{
		Key: n.name, Kind: n.kind, Parent: parent, Labels: n.labels, Created: n.created, Updated: n.updated,
	}
	if n.volatile {
		record.BootID = fsx.BootID()
	}
	return mounts, s.writeRecord(n.number, record)
}

// writeRecord writes the record of an active snapshot, durably unless it is volatile.
func (s *Snapshotter) writeRecord(number uint64, record activeRecord) error {
	dir := s.activePath(number)
	if err := fsx.ReplaceJSON(filepath.Join(dir, recordName), record); err != nil {
		return err
	}
	if record.BootID != "" {
		return nil
	}
	return errors.Join(syncPath(filepath.Join(dir, recordName)), syncPath(dir), syncPath(s.path(activeDir)))
}

// hasUpper says whether a snapshot has an fs directory: to write in; to bind when there is no layer; or to be the root of
// a view whose uppermost layer does not say what its root is like.
func hasUpper(kind snapshots.Kind, layers []*layer) bool {
	return kind == snapshots.KindActive || len(layers) == 0 || layers[0].rootImplied && rootLayer(layers) != nil
}

// rootLayer is the uppermost layer that says what the root directory is like.
func rootLayer(layers []*layer) *layer {
	for _, l := range layers {
		if !l.rootImplied {
			return l
		}
	}
	return nil
}

// makeUpper makes the directory that is the root of the merged tree.
func (s *Snapshotter) makeUpper(path string, labels map[string]string, layers []*layer) error {
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	mode, uid, gid := uint32(0o755), uint32(0), uint32(0)
	if l := rootLayer(layers); l != nil {
		var st unix.Stat_t
		if err := unix.Lstat(s.layerPath(l.number), &st); err != nil {
			return fmt.Errorf("stat layer %d: %w", l.number, err)
		}
		mode, uid, gid = st.Mode&0o7777, st.Uid, st.Gid
	}
	if err := mappedRoot(labels[snapshots.LabelSnapshotUIDMapping], &uid); err != nil {
		return err
	}
	if err := mappedRoot(labels[snapshots.LabelSnapshotGIDMapping], &gid); err != nil {
		return err
	}
	if err := os.Lchown(path, int(uid), int(gid)); err != nil {
		return err
	}
	return unix.Chmod(path, mode)
}

// mappedRoot reads what a list of mappings, "container:host:length" each and separated by commas, makes of id 0.
func mappedRoot(mappings string, id *uint32) error {
	if mappings == "" {
		return nil
	}
	for mapping := range strings.SplitSeq(mappings, ",") {
		var numbers [3]uint32
		fields := strings.Split(mapping, ":")
		if len(fields) != len(numbers) {
			return fmt.Errorf("id mapping %q is not container:host:length: %w", mapping, errdefs.ErrInvalidArgument)
		}
		for i, field := range fields {
			n, err := strconv.ParseUint(field, 10, 32)
			if err != nil {
				return fmt.Errorf("id mapping %q: %q is not a 32-bit number: %w", mapping, field, errdefs.ErrInvalidArgument)
			}
			numbers[i] = uint32(n)
		}
		if numbers[0] == 0 && numbers[2] > 0 {
			*id = numbers[1]
			return nil
		}
	}
	return fmt.Errorf("id mappings %q do not map id 0: %w", mappings, errdefs.ErrInvalidArgument)
}

// Mounts answers how to mount an active snapshot or a view. It also makes a volatile snapshot mountable again, which
// Linux refuses after a first mount; within one boot nothing is lost by that. Do not call it between another caller's
// Mounts and mount(2) of the same key.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	s.mu.Lock()
	n, err := s.index.get(key)
	if err != nil {
		s.mu.Unlock()
		return nil, fmt.Errorf("mounts: %w", err)
	}
	layers := chain(n.parent)
	s.mu.Unlock()
	if n.kind == snapshots.KindCommitted {
		return nil, fmt.Errorf("mounts: snapshot %q is committed; make a view of it: %w", key, errdefs.ErrFailedPrecondition)
	}
	if n.volatile {
		// A record of another boot is never loaded, so this mark is of this one.
		if err := os.RemoveAll(filepath.Join(s.activePath(n.number), "work", "work", "incompat")); err != nil {
			return nil, fmt.Errorf("mounts: snapshot %q: %w", key, err)
		}
	}
	mounts, err := s.mounts(n, layers)
	if err != nil {
		return nil, fmt.Errorf("mounts: snapshot %q: %w", key, err)
	}
	return mounts, nil
}

// mounts says how to mount a snapshot on layers, uppermost first, all of which must be there.
func (s *Snapshotter) mounts(n *node, layers []*layer) ([]mount.Mount, error) {
	paths := make([]string, 0, len(layers)+1)
	upper := filepath.Join(s.activePath(n.number), "fs")
	own := hasUpper(n.kind, layers)
	if own && n.kind == snapshots.KindView {
		paths = append(paths, upper)
	}
	for _, l := range layers {
		if err := s.checkLayer(l); err != nil {
			return nil, err
		}
		paths = append(paths, s.layerPath(l.number))
	}
	switch {
	case n.kind == snapshots.KindActive && len(layers) == 0:
		return []mount.Mount{{Type: "bind", Source: upper, Options: []string{"rw", "rbind"}}}, nil
	case n.kind == snapshots.KindView && len(paths) == 1:
		return []mount.Mount{{Type: "bind", Source: paths[0], Options: []string{"ro", "rbind"}}}, nil
	}
	var options []string
	if n.kind == snapshots.KindActive {
		options = append(options, "workdir="+filepath.Join(s.activePath(n.number), "work"), "upperdir="+upper)
	}
	options = append(options, "lowerdir="+strings.Join(paths, ":"))
	options = append(options, s.options...)
	if n.volatile && n.kind == snapshots.KindActive {
		options = append(options, "volatile")
	}
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: options}}, nil
}

// UpperDir is the writable directory of an active snapshot: what an overlay of it has as its upper one.
func (s *Snapshotter) UpperDir(_ context.Context, key string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.index.get(key)
	if err != nil {
		return "", fmt.Errorf("writable directory: %w", err)
	}
	if n.kind != snapshots.KindActive {
		return "", fmt.Errorf("snapshot %q is not active, so it has no writable directory: %w", key, errdefs.ErrFailedPrecondition)
	}
	return filepath.Join(s.activePath(n.number), "fs"), nil
}
