package image

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxParts bounds what one image, with all that its index names, may consist of.
const maxParts = 20_000

// isDocument says whether a descriptor is of a manifest or an index.
func isDocument(d ocispec.Descriptor) bool {
	return images.IsManifestType(d.MediaType) || images.IsIndexType(d.MediaType)
}

// children are what a manifest or an index refers to, whatever it is of: an artifact's are its configuration and its
// blobs. Nothing of it need be unpackable.
func children(data []byte, mediaType string) ([]ocispec.Descriptor, error) {
	var found []ocispec.Descriptor
	if images.IsIndexType(mediaType) {
		var index ocispec.Index
		if err := decode(data, mediaType, &index); err != nil {
			return nil, err
		}
		found = index.Manifests
	} else {
		var manifest ocispec.Manifest
		if err := decode(data, mediaType, &manifest); err != nil {
			return nil, err
		}
		found = append([]ocispec.Descriptor{manifest.Config}, manifest.Layers...)
	}
	if len(found) > maxParts {
		return nil, fmt.Errorf("it refers to %d others, at most %d are allowed: %w", len(found), maxParts, errdefs.ErrInvalidArgument)
	}
	for _, d := range found {
		limit := int64(0)
		if isDocument(d) {
			limit = maxDocument
		}
		if err := checkDescriptor(d, limit); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// parts are what an image consists of, from its name's target down.
type parts struct {
	documents []ocispec.Descriptor // manifests and indexes that are here, those that refer to others after them
	blobs     []ocispec.Descriptor // configurations, layers and whatever else, each once
	missing   []ocispec.Descriptor // manifests that an index names and that are not here
}

// partsOf walks the documents below target, which read reads. Those that an index names and for which read answers
// ErrNotFound are missing.
func partsOf(ctx context.Context, target ocispec.Descriptor, read func(context.Context, ocispec.Descriptor) ([]byte, error)) (*parts, error) {
	p := &parts{}
	seen := map[string]bool{}
	var walk func(d ocispec.Descriptor, depth int) error
	walk = func(d ocispec.Descriptor, depth int) error {
		if seen[d.Digest.String()] {
			return nil
		}
		if seen[d.Digest.String()] = true; len(seen) > maxParts {
			return fmt.Errorf("it has more than %d parts: %w", maxParts, errdefs.ErrInvalidArgument)
		}
		if !isDocument(d) {
			p.blobs = append(p.blobs, d)
			return nil
		}
		if depth > maxNesting {
			return fmt.Errorf("%s lies too deep in indexes: %w", d.Digest, errdefs.ErrInvalidArgument)
		}
		data, err := read(ctx, d)
		if errdefs.IsNotFound(err) && depth > 0 {
			p.missing = append(p.missing, d)
			return nil
		}
		if err != nil {
			return err
		}
		below, err := children(data, d.MediaType)
		if err != nil {
			return fmt.Errorf("%s: %w", d.Digest, err)
		}
		for _, child := range below {
			if err := walk(child, depth+1); err != nil {
				return err
			}
		}
		p.documents = append(p.documents, d)
		return nil
	}
	return p, walk(target, 0)
}

// platformNames says what the missing manifests are for.
func platformNames(missing []ocispec.Descriptor) []string {
	var out []string
	for _, d := range missing {
		name := d.Digest.String()
		if d.Platform != nil {
			name = platforms.FormatAll(*d.Platform) + " (" + name + ")"
		}
		out = append(out, name)
	}
	return out
}

// references are the labels by which containerd's garbage collection keeps what a document refers to. An index may have its
// manifests labelled one by one: each is a label of its own.
func references(mediaType string, below []ocispec.Descriptor) map[string]string {
	const label = "containerd.io/gc.ref.content."
	labels := map[string]string{}
	for i, d := range below {
		switch {
		case images.IsIndexType(mediaType):
			labels[label+"m."+d.Digest.Encoded()[:12]] = d.Digest.String()
		case i == 0:
			labels[label+"config"] = d.Digest.String()
		default:
			labels[fmt.Sprintf("%sl.%d", label, i-1)] = d.Digest.String()
		}
	}
	return labels
}
