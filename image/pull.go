package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/image/registry"
)

// Pull fetches an image by tag or digest, and answers its ID. A pull of the same name with the same credential and
// platform that is under way is joined; it goes on as long as one caller waits. When the last has gone nothing half-made
// is left, but layers that were complete are kept for a while. The error names the reference, every endpoint tried, and
// why each failed.
func (s *Store) Pull(ctx context.Context, ref string, o PullOptions) (string, error) {
	named, err := parseName(ref)
	if err != nil {
		return "", err
	}
	platform := platforms.DefaultSpec()
	if o.Platform != nil {
		platform = platforms.Normalize(*o.Platform)
	}
	key := named.String() + " " + platforms.FormatAll(platform) + " " + o.Auth.Key()
	defer s.watch(ctx, key, o.Watch)()
	id, err := s.pulls.do(ctx, key, func(ctx context.Context) (string, error) {
		p := &pull{s: s, named: named, platform: platforms.Only(platform), began: time.Now()}
		defer s.underway.add(key, p)()
		return p.run(s.storeContext(ctx), o.Auth)
	})
	if err != nil {
		return "", fmt.Errorf("pull %s: %w", named, fullDisk(err))
	}
	return id, nil
}

// fullDisk gives errors of a disk that is full their kind and a way out, wherever they arose.
func fullDisk(err error) error {
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) || errdefs.IsResourceExhausted(err) {
		return err
	}
	return fmt.Errorf("%w: free space on the filesystem of the root directory: %w", err, errdefs.ErrResourceExhausted)
}

// pull is one pull under way.
type pull struct {
	s        *Store
	named    reference.Named
	repo     *registry.Repository
	platform platforms.MatchComparer
	began    time.Time
	meter    meter
}

// found is what a pull has to fetch: the documents that lead to the layers.
type found struct {
	target   ocispec.Descriptor // what the name means
	manifest ocispec.Descriptor
	layers   []ocispec.Descriptor
	id       digest.Digest // of the configuration
	diffIDs  []digest.Digest
	chainIDs []digest.Digest
}

// size is that of all layers as the registry serves them.
func (f *found) size() (sum int64) {
	for _, l := range f.layers {
		sum += l.Size
	}
	return sum
}

// run is the pull from its first question to the record.
func (p *pull) run(ctx context.Context, auth registry.Auth) (_ string, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if limit := p.s.config.NoProgress; limit > 0 {
		go p.meter.watch(ctx, cancel, limit)
	}
	defer func() {
		// A cancelled step says "context canceled"; the cause says why.
		if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(err, cause) {
			err = cause
		}
	}()
	p.repo, err = registry.Open(ctx, p.s.config.Registry, p.named.String(), registry.Options{
		Auth: auth, Wait: p.meter.pause, Moved: func(n int64) { p.meter.moved.Add(n) },
	})
	if err != nil {
		return "", err
	}
	defer p.repo.Close()
	target, err := p.repo.Resolve(ctx)
	if err != nil {
		return "", err
	}
	if err := p.verified(ctx, target); err != nil {
		return "", err
	}
	if id, ok := p.unchanged(ctx, target); ok {
		return id, nil
	}
	return p.fetch(ctx, target)
}

// verified asks the verifiers, about an image that is here, too: they may have learned since.
func (p *pull) verified(ctx context.Context, target ocispec.Descriptor) error {
	p.meter.phase.Store(int32(Verifying))
	defer p.meter.phase.Store(int32(Resolving))
	defer p.meter.pause()()
	return p.s.config.Verifiers.verify(ctx, p.named.String(), target)
}

// unchanged says whether the image is here, whole, under the names that it would get. Pods that want to know of a newer
// image each time they start then cost one question to the registry and no write.
func (p *pull) unchanged(ctx context.Context, target ocispec.Descriptor) (id string, ok bool) {
	e := p.s.index.meant(p.names(target), target.Digest)
	if e == nil || images.IsIndexType(target.MediaType) && !p.platform.Match(e.Platform) {
		return "", false
	}
	if e.top() == "" {
		return e.ID, true
	}
	dirs, err := p.s.snapshots.LayerDirs(ctx, e.top())
	for _, dir := range dirs {
		if err == nil {
			_, err = os.Stat(dir)
		}
	}
	return e.ID, err == nil
}

// names are those that the image gets: by the tag, if it is pulled by one, and by digest.
func (p *pull) names(target ocispec.Descriptor) []string {
	names := []string{digestName(p.named, target.Digest)}
	if tagged, ok := p.named.(reference.Tagged); ok && tagged.Tag() != "" {
		names = append(names, p.named.String())
	}
	return names
}

// fetch gets what is missing of an image and records it under its names.
func (p *pull) fetch(ctx context.Context, target ocispec.Descriptor) (_ string, err error) {
	ctx, release, err := p.s.pullLease(ctx)
	if err != nil {
		return "", err
	}
	defer func() { release(err) }()
	f, err := p.find(ctx, target)
	if err != nil {
		return "", err
	}
	chain := digestStrings(f.chainIDs)
	if err := p.s.keeper.hold(ctx, chain); err != nil {
		return "", err
	}
	defer p.s.keeper.drop(chain)
	p.meter.begin(f.size(), len(f.layers))
	if err := p.fetchLayers(ctx, f); err != nil {
		return "", err
	}
	p.meter.phase.Store(int32(Recording))
	if err := p.s.setNames(ctx, f.target, f.manifest, p.names(f.target)); err != nil {
		return "", err
	}
	p.s.log.Info("image pulled", "image", p.named.String(), "id", f.id, "layers", len(f.layers), "moved", p.meter.moved.Load(),
		"took", time.Since(p.began).Round(time.Millisecond))
	return f.id.String(), nil
}

// find gets index, manifest and configuration.
func (p *pull) find(ctx context.Context, target ocispec.Descriptor) (*found, error) {
	var err error
	f := &found{target: target, manifest: target}
	for depth := 0; ; depth++ {
		if !images.IsIndexType(f.manifest.MediaType) {
			break
		}
		if depth == maxNesting {
			return nil, fmt.Errorf("index %s lies too deep in other indexes: %w", f.manifest.Digest, errdefs.ErrInvalidArgument)
		}
		if f.manifest, err = p.choose(ctx, f.manifest); err != nil {
			return nil, err
		}
	}
	if !images.IsManifestType(f.manifest.MediaType) {
		return nil, fmt.Errorf("%s is a %q, not an image: %w", f.manifest.Digest, f.manifest.MediaType, errdefs.ErrInvalidArgument)
	}
	return f, p.readManifest(ctx, f)
}

// choose stores an index and gives the manifest in it for the platform.
func (p *pull) choose(ctx context.Context, index ocispec.Descriptor) (ocispec.Descriptor, error) {
	data, err := p.document(ctx, index)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	chosen, err := parseIndex(data, index.MediaType, p.platform)
	if err != nil {
		return chosen, fmt.Errorf("index %s: %w", index.Digest, err)
	}
	// An index may be pulled for several platforms: each is a reference of its own.
	return chosen, p.s.keep(ctx, index, data, references(index.MediaType, []ocispec.Descriptor{chosen}))
}

// readManifest stores manifest and configuration, and takes from them what the layers are.
func (p *pull) readManifest(ctx context.Context, f *found) error {
	data, err := p.document(ctx, f.manifest)
	if err != nil {
		return err
	}
	manifest, err := parseManifest(data, f.manifest.MediaType)
	if err != nil {
		return fmt.Errorf("manifest %s: %w", f.manifest.Digest, err)
	}
	config, err := p.document(ctx, manifest.Config)
	if err != nil {
		return err
	}
	parsed, err := parseConfig(config, len(manifest.Layers))
	if err != nil {
		return fmt.Errorf("%s: %w", manifest.Config.Digest, err)
	}
	f.id, f.layers, f.diffIDs = manifest.Config.Digest, manifest.Layers, parsed.RootFS.DiffIDs
	f.chainIDs = identity.ChainIDs(append([]digest.Digest(nil), f.diffIDs...))
	if err := p.s.keep(ctx, manifest.Config, config, nil); err != nil {
		return err
	}
	below := []ocispec.Descriptor{manifest.Config}
	if !p.s.config.DiscardUnpacked {
		below = append(below, manifest.Layers...)
	}
	return p.s.keep(ctx, f.manifest, data, references(f.manifest.MediaType, below))
}

// document gets a manifest, an index or a configuration, from here or from the registry, verified.
func (p *pull) document(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	if err := checkDescriptor(d, maxDocument); err != nil {
		return nil, err
	}
	data, err := p.s.stored(ctx, d)
	if err == nil || !errdefs.IsNotFound(err) {
		return data, err
	}
	for {
		data, err := p.fetchDocument(ctx, d)
		if err == nil || !errdefs.IsDataLoss(err) || !p.repo.Distrust(d.Digest) {
			return data, err
		}
	}
}

func (p *pull) fetchDocument(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	stream, err := p.repo.Fetch(ctx, d)
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	return readAll(&meteredReader{r: stream, meter: &p.meter}, d)
}

// verify compares what came with what its descriptor says.
func verify(d ocispec.Descriptor, size int64, got digest.Digest) error {
	switch {
	case size > d.Size:
		return fmt.Errorf("%s is longer than the %d bytes that its descriptor says: %w", d.Digest, d.Size, errdefs.ErrDataLoss)
	case size < d.Size:
		return fmt.Errorf("%s ended after %d of %d bytes: %w: %w", d.Digest, size, d.Size, errdefs.ErrDataLoss, io.ErrUnexpectedEOF)
	case got != d.Digest:
		return fmt.Errorf("what came for %s has the digest %s: %w", d.Digest, got, errdefs.ErrDataLoss)
	}
	return nil
}

func digestStrings(digests []digest.Digest) []string {
	out := make([]string, len(digests))
	for i, d := range digests {
		out[i] = d.String()
	}
	return out
}
