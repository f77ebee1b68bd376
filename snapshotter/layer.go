package snapshotter

import (
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// LayerID names a layer at a place in an image. DiffID is the digest of the layer's uncompressed tar, ChainID that of
// the layer and all layers below it (image-spec, config.md). For the lowest layer the two are equal.
type LayerID struct {
	DiffID, ChainID digest.Digest
}

// LayerStats is what the writer of a layer knows about it.
type LayerStats struct {
	// Size is the layer's use of the disk in bytes, Inodes the number of its inodes, hard links once. Zero Inodes
	// lets Commit walk the directory for both.
	Size, Inodes int64
	// RootImplied says that the tar had no entry for the root, so that the root's attributes come from the layer below.
	RootImplied bool
	// Synced says that nothing was written since Sync, so that Commit need not sync again.
	Synced bool
}

// Link is one step of a chain of committed snapshots.
type Link struct {
	// Name of the snapshot that is made, by custom the chainID. Names and keys share one space.
	Name string
	// Layer is a committed layer that the caller still holds.
	Layer *Layer
	// Labels of the snapshot, may be nil.
	Labels map[string]string
}

// Layer is a hold on a layer directory: one that exists, or one that the holder alone may write. It is for one
// goroutine at a time.
//
//	l, err := s.Layer(ctx, id)             // waits while another caller writes the same layer
//	defer l.Release()                      // throws the directory away unless it was committed
//	if !l.Committed() {
//		result, err := layer.Write(ctx, l.Dir(), tar, layer.Options{})
//		... verify the digest ...
//		if result.NeedsParents() {
//			l.KeyByChain()                 // lets go of the diffID; then wait for the layers below
//			err = layer.Adopt(ctx, l.Dir(), &result, pathsOfTheLayersBelowUppermostFirst)
//		}
//		err = l.Commit(ctx, snapshotter.LayerStats{...})
//	}
//	... when all layers of the image are committed and held: s.Chain(ctx, "", links)
type Layer struct {
	s    *Snapshotter
	id   LayerID
	mark uint64 // of the syncer, before anything was written

	written int // bytes since the disk was last set to work

	// These are guarded by s.mu.
	layer    *layer // when committed
	repairs  *layer // the record that is there without a directory, or whose directory is written anew
	rewrites bool   // the latter
	flights  []*flight
	byChain  bool
	released bool

	number uint64 // of the directory that is written
	dir    *os.File
}

// flight is the writing of a layer, for others to wait for.
type flight struct {
	key  digest.Digest
	done chan struct{}
}

// Layer answers a hold on the layer id. When its directory is committed, by its diffID or (for a layer that needs the
// layers below) by its chainID, the hold is on that. Otherwise the caller becomes the writer, and whoever asks for the
// same diffID or chainID meanwhile waits until it commits, gives up, or calls KeyByChain. A record whose directory is
// gone counts as not there: it is written again in its place, for all snapshots that use it.
//
// Do not wait for another layer while being the writer of a diffID (before KeyByChain): the other may wait for you.
func (s *Snapshotter) Layer(ctx context.Context, id LayerID) (*Layer, error) {
	for _, d := range []digest.Digest{id.DiffID, id.ChainID} {
		if err := d.Validate(); err != nil {
			return nil, fmt.Errorf("layer %q: %w: %w", d, err, errdefs.ErrInvalidArgument)
		}
	}
	for {
		l, wait := s.claim(id)
		switch {
		case wait != nil:
			select {
			case <-wait:
				continue
			case <-ctx.Done():
				return nil, fmt.Errorf("wait for layer %s, which another caller writes: %w", id.DiffID, ctx.Err())
			}
		case l.repairs != nil && s.checkLayer(l.repairs) == nil:
			l.Release() // it is there again
			continue
		case l.layer == nil:
			if err := l.begin(); err != nil {
				l.Release()
				return nil, fmt.Errorf("layer %s: %w", id.DiffID, err)
			}
			return l, nil
		}
		err := s.checkLayer(l.layer)
		if err == nil {
			return l, nil
		}
		l.Release()
		if !errdefs.IsDataLoss(err) {
			return nil, err
		}
		s.log.Warn("a layer is written again", "error", err)
	}
}

// claim takes a hold on a committed layer, or the right to write it, or says what to wait for.
func (s *Snapshotter) claim(id LayerID) (*Layer, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := &Layer{s: s, id: id}
	for _, key := range []digest.Digest{id.DiffID, id.ChainID} {
		found := s.index.keyed[key]
		if found == nil {
			continue
		}
		if !found.missing {
			found.holds++
			l.layer = found
			return l, nil
		}
		l.repairs = found
	}
	for _, key := range []digest.Digest{id.ChainID, id.DiffID} {
		if f := s.index.flights[key]; f != nil {
			return nil, f.done
		}
	}
	keys := []digest.Digest{id.DiffID}
	if id.ChainID != id.DiffID {
		keys = append(keys, id.ChainID)
	}
	for _, key := range keys {
		f := &flight{key: key, done: make(chan struct{})}
		s.index.flights[key] = f
		l.flights = append(l.flights, f)
	}
	if l.repairs != nil {
		l.repairs.holds++
	}
	l.number = s.index.number()
	return l, nil
}

// begin makes the directory to write in.
func (l *Layer) begin() error {
	l.mark = l.s.syncer.mark()
	path := l.s.layerPath(l.number)
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(path, 0o755); err != nil { // whatever the umask
		return err
	}
	var err error
	l.dir, err = os.Open(path)
	return err
}

// Committed says that the directory is complete and durable and must not be written.
func (l *Layer) Committed() bool { return l.dir == nil }

// Path is the absolute path of the layer directory.
func (l *Layer) Path() string {
	if l.layer != nil {
		return l.s.layerPath(l.layer.number)
	}
	return l.s.layerPath(l.number)
}

// Dir is the open directory for the writer, nil once the layer is committed. The Layer owns it.
func (l *Layer) Dir() *os.File { return l.dir }

// KeyByChain makes this layer known by its chainID only, because what is in the directory depends on the layers below.
// Those who wait for the diffID go on and write their own. It does nothing on a committed layer.
func (l *Layer) KeyByChain() {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	if l.layer != nil {
		return
	}
	l.byChain = true
	if l.id.ChainID != l.id.DiffID {
		l.land(l.id.DiffID)
	}
}

// land ends the flights of the given keys.
func (l *Layer) land(keys ...digest.Digest) {
	l.flights = slices.DeleteFunc(l.flights, func(f *flight) bool {
		if !slices.Contains(keys, f.key) {
			return false
		}
		delete(l.s.index.flights, f.key)
		close(f.done)
		return true
	})
}

// Sync makes the directory durable, and all else that was written to its filesystem since Layer answered: one syncfs, shared
// with other layers that wait for one.
func (l *Layer) Sync(ctx context.Context) error {
	if err := l.s.syncer.sync(ctx, l.mark); err != nil {
		return fmt.Errorf("layer %s: %w", l.id.DiffID, err)
	}
	return nil
}

// earlyBytes is how much is written for one layer before the disk is set to work on it. The kernel would wait for a tenth of
// the memory, or half a minute, so that all of a large layer were left for the sync at its end.
const earlyBytes = 96 << 20

// Wrote says how much was written for this layer, so that the disk can begin with it before Sync. It is for one goroutine,
// which may be another one than the writer's, until Sync.
func (l *Layer) Wrote(bytes int) {
	if l.written += bytes; l.written >= earlyBytes {
		l.written = 0
		l.s.syncer.start()
	}
}

// Commit makes the directory durable, as Sync does, and records it. The hold stays. On an error the layer is not committed
// and Release throws it away. Committing twice is no error.
func (l *Layer) Commit(ctx context.Context, stats LayerStats) error {
	if l.Committed() {
		return nil
	}
	made, retired, err := l.commit(ctx, stats)
	if err != nil {
		return fmt.Errorf("commit layer %s: %w", l.id.DiffID, err)
	}
	l.dir.Close()
	l.dir = nil
	s := l.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if retired != nil {
		s.index.addLayer(retired)
	}
	delete(s.index.busy, l.number)
	if made == l.repairs {
		made.missing = false
		l.repairs = nil // its hold is now this Layer's
	} else {
		s.index.addLayer(made)
		made.holds++
	}
	l.layer = made
	l.land(l.id.DiffID, l.id.ChainID)
	return nil
}

// commit writes what makes the layer last, and answers it: a new one, or that which is repaired and what it replaces.
func (l *Layer) commit(ctx context.Context, stats LayerStats) (made, retired *layer, err error) {
	s := l.s
	if stats.Inodes == 0 {
		usage, err := measure(ctx, s.layerPath(l.number))
		if err != nil {
			return nil, nil, err
		}
		stats.Size, stats.Inodes = usage.Size, usage.Inodes
	}
	opaque, err := isOpaque(s.layerPath(l.number))
	if err != nil {
		return nil, nil, err
	}
	if !stats.Synced {
		if err := s.syncer.sync(ctx, l.mark); err != nil {
			return nil, nil, err
		}
	}
	key := l.id.DiffID
	if l.byChain {
		key = l.id.ChainID
	}
	if l.rewrites {
		retired, err = l.swap()
		return l.repairs, retired, err
	}
	if l.repairs != nil && l.repairs.key == key {
		if err := os.Rename(s.layerPath(l.number), s.layerPath(l.repairs.number)); err != nil {
			return nil, nil, err
		}
		return l.repairs, nil, syncPath(s.path(layersDir))
	}
	made = &layer{
		number: l.number, key: key, size: stats.Size, inodes: stats.Inodes,
		rootImplied: stats.RootImplied, opaque: opaque, created: now(),
	}
	return made, nil, s.db.apply(change{putLayers: map[uint64]layerRecord{made.number: made.record()}})
}

// Release ends the hold; it may be called twice. A layer that was not committed is removed. A committed one that no
// snapshot uses stays for a while, so that a pull that is tried again finds it, and goes at a later Cleanup.
func (l *Layer) Release() {
	if l.released {
		return
	}
	l.released = true
	s := l.s
	if l.dir != nil {
		l.dir.Close()
		l.dir = nil
	}
	s.mu.Lock()
	for _, held := range []*layer{l.layer, l.repairs} {
		if held != nil {
			held.holds--
		}
	}
	unfinished := l.layer == nil
	l.land(l.id.DiffID, l.id.ChainID)
	s.mu.Unlock()
	if unfinished {
		s.discard(context.Background(), layersDir, l.number)
	}
}

// Chain makes committed snapshots from held layers in one durable step, the first on top of parent ("" for none), each
// next one on top of the one before. A link whose name exists with the same layer and parent is left as it is, so Chain may
// be repeated; with another layer or parent it is errdefs.ErrAlreadyExists.
func (s *Snapshotter) Chain(ctx context.Context, parent string, links []Link) error {
	for _, link := range links {
		if link.Layer == nil || link.Layer.layer == nil || link.Layer.released {
			return fmt.Errorf("chain: the layer of snapshot %q is not committed and held: %w", link.Name, errdefs.ErrFailedPrecondition)
		}
	}
	for {
		added, wait, err := s.reserveChain(parent, links)
		if err != nil {
			return fmt.Errorf("chain: %w", err)
		}
		if wait == nil {
			return s.commitChain(added)
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return fmt.Errorf("chain: wait for another change of the same snapshots: %w", ctx.Err())
		}
	}
}

// reserveChain takes the names that are free. When one is being made or removed, it takes none and says what to wait for.
func (s *Snapshotter) reserveChain(parent string, links []Link) (added []*node, wait <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range append([]string{parent}, names(links)...) {
		if n := s.index.nodes[name]; n != nil && n.state != published {
			return nil, n.settled, nil
		}
	}
	below, err := s.index.parentFor(parent)
	if err != nil {
		return nil, nil, err
	}
	for _, link := range links {
		n := s.index.nodes[link.Name]
		if n == nil {
			n = &node{
				name: link.Name, kind: snapshots.KindCommitted, parent: below, layer: link.Layer.layer,
				labels: withoutEmpty(link.Labels), created: now(),
			}
			n.updated = n.created
			if err = s.index.reserve(n); err == nil {
				added = append(added, n)
			}
		} else if n.kind != snapshots.KindCommitted || n.parent != below || n.layer != link.Layer.layer {
			err = fmt.Errorf("snapshot %q exists with another layer or parent: %w", link.Name, errdefs.ErrAlreadyExists)
		}
		if err != nil {
			s.index.dropAll(added)
			return nil, nil, err
		}
		below = n
	}
	return added, nil, nil
}

func names(links []Link) []string {
	names := make([]string, 0, len(links))
	for _, link := range links {
		names = append(names, link.Name)
	}
	return names
}

// commitChain records reserved snapshots.
func (s *Snapshotter) commitChain(added []*node) error {
	if len(added) == 0 {
		return nil
	}
	records := map[string]snapshotRecord{}
	for _, n := range added {
		records[n.name] = n.record()
	}
	err := s.db.apply(change{putSnapshots: records})
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.index.dropAll(added)
		return fmt.Errorf("chain: %w", err)
	}
	for _, n := range added {
		s.index.settle(n, published)
	}
	return nil
}

// LayerDirs answers the layer directories of a snapshot of any kind, uppermost first, as they are mounted. The writable
// directory of an active snapshot is not among them.
func (s *Snapshotter) LayerDirs(ctx context.Context, key string) ([]string, error) {
	s.mu.Lock()
	n, err := s.index.get(key)
	if err != nil {
		s.mu.Unlock()
		return nil, fmt.Errorf("layer directories: %w", err)
	}
	layers := chain(n)
	s.mu.Unlock()
	var dirs []string
	for _, l := range layers {
		if err := s.checkLayer(l); err != nil {
			return nil, fmt.Errorf("layer directories of snapshot %q: %w", key, err)
		}
		dirs = append(dirs, s.layerPath(l.number))
	}
	return dirs, nil
}
