package image

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
)

// labelManifest on an image record is the manifest that was chosen from its index.
const labelManifest = "criserver.io/manifest"

// index is all image records in memory, so that List and Status, which kubelet asks for all the time, read no disk. The
// records in the database are the truth; each change is made there first. Entries are never written once they are in.
type index struct {
	mu      sync.RWMutex
	byID    map[string]*entry
	byName  map[string]meaning // full name -> what it means
	pinned  map[string]bool    // full names and IDs; never written after the start
	changes sync.Mutex         // one change at a time, database included; never taken by readers
}

// meaning is what a name means: an image, by way of the manifest or index that the registry had for the name.
type meaning struct {
	id     string
	target digest.Digest
}

// entry is an image: what clients see of it and where its layers are.
type entry struct {
	Image
	chain []string // chainIDs, lowest first: the names of its snapshots
	files *files
}

// top is the name of the snapshot that containers are made on; "" for an image without layers.
func (e *entry) top() string {
	if len(e.chain) == 0 {
		return ""
	}
	return e.chain[len(e.chain)-1]
}

// newIndex makes an index in which the images of these names and IDs are pinned.
func newIndex(pinned []string) (*index, error) {
	x := &index{byID: map[string]*entry{}, byName: map[string]meaning{}, pinned: map[string]bool{}}
	for _, ref := range pinned {
		if id, only, ok := idPrefix(ref); ok && only {
			x.pinned[id] = true
			continue
		}
		name, err := Normalize(ref)
		if err != nil {
			return nil, fmt.Errorf("pinned: %w", err)
		}
		x.pinned[name] = true
	}
	return x, nil
}

// find resolves an ID, a name, or a unique prefix of an ID.
func (x *index) find(ref string) (*entry, error) {
	prefix, onlyID, isID := idPrefix(ref)
	named, nameErr := parseName(ref)
	x.mu.RLock()
	defer x.mu.RUnlock()
	if e := x.byID[prefix]; isID && e != nil {
		return e, nil
	}
	if nameErr == nil && !onlyID {
		if known, ok := x.byName[named.String()]; ok {
			return x.byID[known.id], nil
		}
	}
	if !isID {
		if nameErr != nil {
			return nil, nameErr
		}
		return nil, fmt.Errorf("image %q: %w", ref, errdefs.ErrNotFound)
	}
	var match *entry
	for id, e := range x.byID {
		if !strings.HasPrefix(id, prefix) {
			continue
		}
		if match != nil {
			return nil, fmt.Errorf("image %q: several IDs begin so, give more of it: %w", ref, errdefs.ErrInvalidArgument)
		}
		match = e
	}
	if match == nil {
		return nil, fmt.Errorf("image %q: %w", ref, errdefs.ErrNotFound)
	}
	return match, nil
}

func (x *index) list() []Image {
	x.mu.RLock()
	defer x.mu.RUnlock()
	out := make([]Image, 0, len(x.byID))
	for _, e := range x.byID {
		out = append(out, e.Image)
	}
	slices.SortFunc(out, func(a, b Image) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// names of an image.
func (x *index) names(id string) []string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var names []string
	for name, known := range x.byName {
		if known.id == id {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// meant answers the image that all of the names mean by way of target, or nil.
func (x *index) meant(names []string, target digest.Digest) *entry {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var e *entry
	for _, name := range names {
		known := x.byName[name]
		if known.target != target || e != nil && e.ID != known.id {
			return nil
		}
		e = x.byID[known.id]
	}
	return e
}

// set gives names that mean target to an image, taking them from others. It answers the entries that have no name left, which are gone,
// and whether the image is new.
func (x *index) set(e *entry, target digest.Digest, names []string) (gone []*entry, isNew bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	changed := map[string]bool{e.ID: true}
	for _, name := range names {
		if old, ok := x.byName[name]; ok {
			changed[old.id] = true
		}
		x.byName[name] = meaning{e.ID, target}
	}
	old := x.byID[e.ID]
	if old != nil {
		e.files = old.files
	}
	x.byID[e.ID] = e
	return x.rename(changed), old == nil
}

// drop takes names away, and answers the entries that have none left.
func (x *index) drop(names []string) []*entry {
	x.mu.Lock()
	defer x.mu.Unlock()
	changed := map[string]bool{}
	for _, name := range names {
		if known, ok := x.byName[name]; ok {
			changed[known.id] = true
			delete(x.byName, name)
		}
	}
	return x.rename(changed)
}

// rename makes the entries of changed images anew with the names that they have. The mutex is held.
func (x *index) rename(changed map[string]bool) (gone []*entry) {
	names := map[string][]string{}
	for name, known := range x.byName {
		if changed[known.id] {
			names[known.id] = append(names[known.id], name)
		}
	}
	for id := range changed {
		old := x.byID[id]
		if old == nil {
			continue
		}
		if len(names[id]) == 0 {
			delete(x.byID, id)
			gone = append(gone, old)
			continue
		}
		e := *old
		e.setNames(names[id])
		e.Pinned = x.pinned[id] || slices.ContainsFunc(names[id], func(name string) bool { return x.pinned[name] })
		x.byID[id] = &e
	}
	return gone
}

// setNames sorts names into tags and digests.
func (i *Image) setNames(names []string) {
	i.RepoTags, i.RepoDigests, i.Ref = nil, nil, i.ID
	slices.Sort(names)
	for _, name := range names {
		if strings.Contains(name, "@") {
			i.RepoDigests = append(i.RepoDigests, name)
		} else {
			i.RepoTags = append(i.RepoTags, name)
		}
	}
	if len(i.RepoDigests) > 0 {
		i.Ref = i.RepoDigests[0]
	}
}

// setNames records that names mean the image of a manifest, which target leads to. The caller holds the image's chain.
func (s *Store) setNames(ctx context.Context, target, manifest ocispec.Descriptor, names []string) error {
	s.index.changes.Lock()
	defer s.index.changes.Unlock()
	return s.name(ctx, target, manifest, names)
}

// name is setNames while changes are locked: then an image that is here stays, and with it its chain.
func (s *Store) name(ctx context.Context, target, manifest ocispec.Descriptor, names []string) error {
	e, err := s.load(ctx, manifest)
	if err != nil {
		return err
	}
	// What the descriptor carries beyond these comes from outside and is of no use.
	record := images.Image{Target: plain(target), Labels: map[string]string{labelManifest: manifest.Digest.String()}}
	err = s.db.Update(func(tx *bolt.Tx) error {
		ctx := boltutil.WithTransaction(ctx, tx)
		for _, name := range names {
			record.Name = name
			if _, err := s.images.Create(ctx, record); errdefs.IsAlreadyExists(err) {
				if _, err := s.images.Update(ctx, record); err != nil {
					return err
				}
			} else if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("record image: %w", err)
	}
	// The chain is held, so this does not wait.
	if err := s.keeper.hold(context.WithoutCancel(ctx), e.chain); err != nil {
		return err
	}
	gone, isNew := s.index.set(e, target.Digest, names)
	if !isNew {
		s.keeper.drop(e.chain)
	}
	s.forget(gone)
	return nil
}

// forget lets go of what the entries held. Garbage collection comes later.
func (s *Store) forget(gone []*entry) {
	for _, e := range gone {
		s.keeper.drop(e.chain)
	}
	if len(gone) > 0 {
		s.gc.kick()
	}
}

// load reads an image from its stored documents.
func (s *Store) load(ctx context.Context, d ocispec.Descriptor) (*entry, error) {
	data, err := s.stored(ctx, d)
	if err != nil {
		return nil, err
	}
	manifest, err := parseManifest(data, d.MediaType)
	if err != nil {
		return nil, err
	}
	raw, err := s.stored(ctx, manifest.Config)
	if err != nil {
		return nil, err
	}
	config, err := parseConfig(raw, len(manifest.Layers))
	if err != nil {
		return nil, err
	}
	e := &entry{files: newFiles(), Image: Image{
		ID: manifest.Config.Digest.String(), Size: d.Size + manifest.Config.Size,
		Platform: config.Platform, Config: config.Config, Labels: maps.Clone(config.Config.Labels),
		LayerIDs: digestStrings(config.RootFS.DiffIDs),
	}}
	e.Checkpoint = isCheckpoint(manifest.Annotations)
	for _, layer := range manifest.Layers {
		e.Size += layer.Size
	}
	if config.Created != nil {
		e.Created = *config.Created
	}
	e.UID, e.Username = splitUser(config.Config.User)
	e.chain = digestStrings(identity.ChainIDs(append([]digest.Digest(nil), config.RootFS.DiffIDs...)))
	return e, nil
}

// splitUser gives the user of "user:group" as number or name.
func splitUser(user string) (*int64, string) {
	name, _, _ := strings.Cut(user, ":")
	if uid, err := strconv.ParseInt(name, 10, 64); err == nil {
		return &uid, ""
	}
	return nil, name
}

// loadIndex reads all records at the start. A record whose image is not whole is removed, and costs a pull.
func (s *Store) loadIndex(ctx context.Context) error {
	records, err := s.images.List(ctx)
	if err != nil {
		return fmt.Errorf("list image records: %w", err)
	}
	for _, record := range records {
		e, err := s.loadRecord(ctx, record)
		if err == nil {
			if err := s.keeper.hold(ctx, e.chain); err != nil {
				return err
			}
			if _, isNew := s.index.set(e, record.Target.Digest, []string{record.Name}); !isNew {
				s.keeper.drop(e.chain)
			}
			continue
		}
		s.log.Warn("an image is not whole and has to be pulled again", "image", record.Name, "err", err)
		if err := s.images.Delete(ctx, record.Name); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("remove the record of image %s: %w", record.Name, err)
		}
	}
	return nil
}

// manifestOf is the manifest of a record's image: its target, or what was chosen from that.
func (s *Store) manifestOf(ctx context.Context, record images.Image) (ocispec.Descriptor, error) {
	d := record.Target
	chosen := digest.Digest(record.Labels[labelManifest])
	if chosen == "" || chosen == d.Digest {
		return ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}, nil
	}
	info, err := s.content.Info(ctx, chosen)
	if err != nil {
		return d, err
	}
	raw, err := content.ReadBlob(ctx, s.content, ocispec.Descriptor{Digest: chosen, Size: info.Size})
	if err != nil {
		return d, err
	}
	return ocispec.Descriptor{Digest: chosen, Size: info.Size, MediaType: manifestType(raw)}, nil
}

func (s *Store) loadRecord(ctx context.Context, record images.Image) (*entry, error) {
	d, err := s.manifestOf(ctx, record)
	if err != nil {
		return nil, err
	}
	e, err := s.load(ctx, d)
	if err != nil {
		return nil, err
	}
	for _, name := range e.chain {
		if _, err := s.snapshots.Stat(ctx, name); err != nil {
			return nil, fmt.Errorf("snapshot: %w", err)
		}
	}
	return e, nil
}
