package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/image/registry"
)

// annotationName is the full name of an image in an OCI layout; the specification's own annotation is often the tag alone.
const annotationName = "io.containerd.image.name"

// ImportOptions are what an import may choose.
type ImportOptions struct {
	// Name is given to the image instead of the archive's name for it. Without a tag it gets the archive's tags, else the
	// archive must have one image.
	Name string
	// Platform chooses from indexes; nil is this machine's.
	Platform *ocispec.Platform
}

// Imported is an image that came from an archive.
type Imported struct {
	ID    string
	Names []string
	// Digest of what the names mean: a manifest or an index.
	Digest digest.Digest
	// Missing are the platforms that its index names and that were not in the archive.
	Missing []string
}

// Import reads images from an archive: an OCI layout or what docker saved, a tar, compressed or not. It reads it once, in
// order, into the content store. Images with an index are kept whole, as far as they are in the archive; the layers of one platform are
// unpacked. Blobs of imported images are kept in any case, since there is no registry to fetch them from again. When one
// of several images cannot be imported those before it stay, and are answered with the error.
func (s *Store) Import(ctx context.Context, r io.Reader, o ImportOptions) ([]Imported, error) {
	ctx, release, err := s.lease(s.storeContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	defer release()
	a, err := s.readArchive(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	found, err := a.images(ctx)
	if err == nil {
		err = rename(found, o.Name)
	}
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	var all []Imported
	for _, one := range found {
		imported, err := s.importOne(ctx, one, o)
		if err != nil {
			return all, fmt.Errorf("import %s: %w", strings.Join(one.names, ", "), err)
		}
		all = append(all, imported)
	}
	return all, nil
}

// archived is an image in an archive.
type archived struct {
	target ocispec.Descriptor
	names  []string // full, except for a tag alone
	tag    string   // when that is all that the archive says
}

// images says what is in the archive.
func (a *archive) images(ctx context.Context) ([]archived, error) {
	switch {
	case a.texts[indexFile] != nil:
		return a.layout()
	case a.texts[manifestFile] != nil:
		return a.saved(ctx)
	}
	return nil, refused("the archive is neither an OCI layout (no %s) nor what docker saves (no %s)", indexFile, manifestFile)
}

// layout reads an OCI layout.
func (a *archive) layout() ([]archived, error) {
	var version ocispec.ImageLayout
	if err := json.Unmarshal(a.texts[layoutFile], &version); err != nil {
		return nil, refused("%s: %v", layoutFile, err)
	}
	if version.Version != ocispec.ImageLayoutVersion {
		return nil, fmt.Errorf("%s: version %q, known is %s: %w", layoutFile, version.Version, ocispec.ImageLayoutVersion, errdefs.ErrNotImplemented)
	}
	if _, err := children(a.texts[indexFile], ocispec.MediaTypeImageIndex); err != nil {
		return nil, fmt.Errorf("%s: %w", indexFile, err)
	}
	var index ocispec.Index
	if err := decode(a.texts[indexFile], ocispec.MediaTypeImageIndex, &index); err != nil {
		return nil, fmt.Errorf("%s: %w", indexFile, err)
	}
	var found []archived
	for _, d := range index.Manifests {
		if !isDocument(d) {
			return nil, refused("%s: %s is a %q, neither an image nor an index", indexFile, d.Digest, d.MediaType)
		}
		one, err := layoutNames(d)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", indexFile, err)
		}
		found = append(found, one)
	}
	return merge(found), nil
}

// layoutNames reads what a layout calls an image.
func layoutNames(d ocispec.Descriptor) (archived, error) {
	one := archived{target: plain(d)}
	name, ref := d.Annotations[annotationName], d.Annotations[ocispec.AnnotationRefName]
	switch {
	case name == "" && ref == "":
		return one, nil
	case name == "" && !strings.ContainsAny(ref, "/:@"):
		one.tag = ref
		return one, nil
	case name == "":
		name = ref
	}
	named, err := parseName(name)
	if err != nil {
		return one, err
	}
	if by, ok := named.(reference.Digested); ok && by.Digest() != d.Digest {
		return one, refused("it calls %s %q, which is the name of something else", d.Digest, name)
	}
	one.names = []string{named.String()}
	return one, nil
}

// merge makes one of those that are the same image by several names.
func merge(found []archived) []archived {
	var merged []archived
	at := map[digest.Digest]int{}
	for _, one := range found {
		i, again := at[one.target.Digest]
		if !again || one.tag != "" || merged[i].tag != "" {
			at[one.target.Digest] = len(merged)
			merged = append(merged, one)
			continue
		}
		merged[i].names = append(merged[i].names, one.names...)
	}
	return merged
}

// saved reads what docker saved, and makes manifests for it, since it has none.
func (a *archive) saved(ctx context.Context) ([]archived, error) {
	var list []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(a.texts[manifestFile], &list); err != nil {
		return nil, refused("%s: %v", manifestFile, err)
	}
	var found []archived
	for i, saved := range list {
		if len(saved.Layers) > maxLayers {
			return nil, refused("%s: image %d has %d layers, overlayfs takes %d", manifestFile, i, len(saved.Layers), maxLayers)
		}
		target, err := a.manifest(ctx, saved.Config, saved.Layers)
		if err != nil {
			return nil, fmt.Errorf("%s: image %d: %w", manifestFile, i, err)
		}
		one := archived{target: target}
		for _, tag := range saved.RepoTags {
			named, err := parseName(tag)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", manifestFile, err)
			}
			if strings.Contains(named.String(), "@") {
				return nil, refused("%s: the tag %q is a digest", manifestFile, tag)
			}
			one.names = append(one.names, named.String())
		}
		found = append(found, one)
	}
	return found, nil
}

// manifest stores a manifest of a configuration and layers that are files of the archive.
func (a *archive) manifest(ctx context.Context, config string, layers []string) (ocispec.Descriptor, error) {
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{}}
	var err error
	if m.Config, err = a.find(config); err != nil {
		return m.Config, fmt.Errorf("configuration: %w", err)
	}
	m.Config.MediaType = ocispec.MediaTypeImageConfig
	for _, name := range layers {
		d, err := a.find(name)
		if err == nil {
			d.MediaType, err = a.s.layerType(ctx, d)
		}
		if err != nil {
			return d, fmt.Errorf("layer: %w", err)
		}
		m.Layers = append(m.Layers, d)
	}
	data, err := json.Marshal(m)
	if err != nil {
		return m.Config, err
	}
	d := ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	return d, a.s.keep(ctx, d, data, nil)
}

// layerType says by its first bytes how a stored layer is compressed.
func (s *Store) layerType(ctx context.Context, d ocispec.Descriptor) (string, error) {
	reader, err := s.content.ReaderAt(ctx, d)
	if err != nil {
		return "", err
	}
	defer reader.Close()
	magic := make([]byte, 4)
	n, err := content.NewReader(reader).Read(magic)
	if err != nil && err != io.EOF {
		return "", err
	}
	switch compressionOf(magic[:n]) {
	case compressedGzip:
		return ocispec.MediaTypeImageLayerGzip, nil
	case compressedZstd:
		return ocispec.MediaTypeImageLayerZstd, nil
	}
	return ocispec.MediaTypeImageLayer, nil
}

// rename gives images the name that was asked for, and refuses those that have none.
func rename(found []archived, name string) error {
	if len(found) == 0 {
		return refused("the archive has no image")
	}
	for i := range found {
		one := &found[i]
		switch {
		case name != "":
			names, err := renamed(*one, name, len(found))
			if err != nil {
				return err
			}
			one.names = names
		case one.tag != "":
			return refused("the archive gives %s nothing but the tag %q: say by which name it is to be known", one.target.Digest, one.tag)
		case len(one.names) == 0:
			return refused("the archive gives %s no name: say by which it is to be known", one.target.Digest)
		}
	}
	return nil
}

func renamed(one archived, name string, count int) ([]string, error) {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil, refused("image name %q: %v", name, err)
	}
	if _, digested := named.(reference.Digested); digested {
		return nil, refused("image name %q: a name by digest cannot be given", name)
	}
	if !reference.IsNameOnly(named) {
		if count > 1 {
			return nil, refused("the archive has %d images, and %s is one tag: give a name without a tag", count, name)
		}
		return []string{named.String()}, nil
	}
	tags := []string{one.tag}
	if one.tag == "" {
		tags = nil
		for _, full := range one.names {
			known, err := parseName(full)
			if tagged, ok := known.(reference.Tagged); ok && err == nil {
				tags = append(tags, tagged.Tag())
			}
		}
	}
	if len(tags) == 0 {
		if count > 1 {
			return nil, refused("the archive gives %s no tag, and it has other images: import it alone", one.target.Digest)
		}
		tags = []string{"latest"}
	}
	var names []string
	for _, tag := range tags {
		tagged, err := reference.WithTag(named, tag)
		if err != nil {
			return nil, refused("the archive's tag %q: %v", tag, err)
		}
		names = append(names, tagged.String())
	}
	return names, nil
}

// importOne unpacks an image whose documents and blobs are in the content store, and records it.
func (s *Store) importOne(ctx context.Context, one archived, o ImportOptions) (Imported, error) {
	platform := platforms.DefaultSpec()
	if o.Platform != nil {
		platform = platforms.Normalize(*o.Platform)
	}
	named, err := parseName(one.names[0])
	if err != nil {
		return Imported{}, err
	}
	p := &pull{s: s, named: named, platform: platforms.Only(platform), began: time.Now()}
	p.repo = registry.Nowhere(named.String(), "it is not in the archive")
	f, err := p.find(ctx, one.target)
	if err != nil {
		return Imported{}, err
	}
	all, err := s.link(ctx, one.target)
	if err != nil {
		return Imported{}, err
	}
	chain := digestStrings(f.chainIDs)
	if err := s.keeper.hold(ctx, chain); err != nil {
		return Imported{}, err
	}
	defer s.keeper.drop(chain)
	if err := p.fetchLayers(ctx, f); err != nil {
		return Imported{}, err
	}
	if err := s.complete(ctx, f); err != nil {
		return Imported{}, err
	}
	if err := s.setNames(ctx, f.target, f.manifest, one.names); err != nil {
		return Imported{}, err
	}
	s.log.Info("image imported", "image", one.names, "id", f.id, "layers", len(f.layers), "took", time.Since(p.began).Round(time.Millisecond))
	return Imported{ID: f.id.String(), Names: one.names, Digest: f.target.Digest, Missing: platformNames(all.missing)}, nil
}

// complete refuses an image whose layers are here but whose blobs are not: the archive lacks them.
func (s *Store) complete(ctx context.Context, f *found) error {
	for _, d := range f.layers {
		if _, err := s.content.Info(ctx, d.Digest); err != nil {
			return fmt.Errorf("layer %s is not in the archive: %w", d.Digest, err)
		}
	}
	return nil
}

// link labels each document below target that is here with what it refers to, so that all of that stays as long as it does.
func (s *Store) link(ctx context.Context, target ocispec.Descriptor) (*parts, error) {
	all, err := partsOf(ctx, target, s.stored)
	if err != nil {
		return nil, err
	}
	for _, d := range all.documents {
		data, err := s.stored(ctx, d)
		if err != nil {
			return nil, err
		}
		below, err := children(data, d.MediaType)
		if err != nil {
			return nil, err
		}
		if err := s.keep(ctx, d, data, references(d.MediaType, below)); err != nil {
			return nil, err
		}
	}
	return all, nil
}
