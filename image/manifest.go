package image

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// The bounds of what is read into memory and followed.
const (
	maxDocument = 8 << 20 // bytes of a manifest, an index or a configuration
	maxLayers   = 500     // overlayfs stacks no more (fs/overlayfs, OVL_MAX_STACK)
	maxNesting  = 3       // an index in an index
)

// decode reads a manifest or an index into v and checks that it is what its descriptor says: a document that is both an
// index and a manifest would mean different images to different readers (CVE-2021-41190).
func decode(data []byte, mediaType string, v any) error {
	var probe struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     string          `json:"mediaType"`
		Config        json.RawMessage `json:"config"`
		Layers        json.RawMessage `json:"layers"`
		Manifests     json.RawMessage `json:"manifests"`
		FSLayers      json.RawMessage `json:"fsLayers"`
	}
	if err := json.Unmarshal(data, &probe); err != nil {
		return fmt.Errorf("not a %s: %w: %w", mediaType, errdefs.ErrInvalidArgument, err)
	}
	switch {
	case probe.SchemaVersion == 1 || probe.FSLayers != nil:
		return fmt.Errorf("a manifest of docker's schema 1, which ended in 2017: build or push the image again: %w", errdefs.ErrNotImplemented)
	case probe.MediaType != "" && probe.MediaType != mediaType:
		return fmt.Errorf("the registry says it is a %s, the document says %s: %w", mediaType, probe.MediaType, errdefs.ErrInvalidArgument)
	case images.IsIndexType(mediaType) && (probe.Config != nil || probe.Layers != nil || probe.FSLayers != nil),
		images.IsManifestType(mediaType) && probe.Manifests != nil:
		return fmt.Errorf("the document is an index and a manifest at once: %w", errdefs.ErrInvalidArgument)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("not a %s: %w: %w", mediaType, errdefs.ErrInvalidArgument, err)
	}
	return nil
}

// parseIndex reads an index and chooses from it what fits the platform best.
func parseIndex(data []byte, mediaType string, platform platforms.MatchComparer) (ocispec.Descriptor, error) {
	var index ocispec.Index
	if err := decode(data, mediaType, &index); err != nil {
		return ocispec.Descriptor{}, err
	}
	var best *ocispec.Descriptor
	var have []string
	for i := range index.Manifests {
		d := &index.Manifests[i]
		if !isDocument(*d) {
			continue
		}
		if d.Platform == nil {
			// No platform is any platform, when there is nothing better.
			if best == nil {
				best = d
			}
			continue
		}
		have = append(have, platforms.FormatAll(*d.Platform))
		if !platform.Match(*d.Platform) {
			continue
		}
		if best == nil || best.Platform == nil || platform.Less(*d.Platform, *best.Platform) {
			best = d
		}
	}
	if best == nil {
		return ocispec.Descriptor{}, fmt.Errorf("no image for this platform; there are: %s: %w", strings.Join(have, ", "), errdefs.ErrNotFound)
	}
	return *best, checkDescriptor(*best, maxDocument)
}

// parseManifest reads a manifest and checks what it refers to.
func parseManifest(data []byte, mediaType string) (ocispec.Manifest, error) {
	var m ocispec.Manifest
	if err := decode(data, mediaType, &m); err != nil {
		return m, err
	}
	if !images.IsConfigType(m.Config.MediaType) {
		return m, fmt.Errorf("an artifact of type %q, not an image: %w", m.Config.MediaType, errdefs.ErrInvalidArgument)
	}
	if err := checkDescriptor(m.Config, maxDocument); err != nil {
		return m, fmt.Errorf("configuration: %w", err)
	}
	if len(m.Layers) > maxLayers {
		return m, fmt.Errorf("%d layers, overlayfs takes %d: squash the image: %w", len(m.Layers), maxLayers, errdefs.ErrInvalidArgument)
	}
	for i, layer := range m.Layers {
		if err := checkDescriptor(layer, 0); err != nil {
			return m, fmt.Errorf("layer %d: %w", i, err)
		}
		if !isLayerType(layer.MediaType) {
			return m, fmt.Errorf("layer %d is a %q, which is no layer that can be unpacked: %w", i, layer.MediaType, errdefs.ErrNotImplemented)
		}
	}
	return m, nil
}

// isLayerType says whether a media type is a tar, plain or in a compression that inflate knows. What it really is decides
// the content.
func isLayerType(mediaType string) bool {
	switch mediaType {
	case images.MediaTypeDockerSchema2Layer, images.MediaTypeDockerSchema2LayerGzip, images.MediaTypeDockerSchema2LayerZstd,
		images.MediaTypeDockerSchema2LayerForeign, images.MediaTypeDockerSchema2LayerForeignGzip,
		ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd:
		return true
	}
	return strings.HasPrefix(mediaType, "application/vnd.oci.image.layer.nondistributable.v1.tar") && !strings.Contains(mediaType, "encrypted")
}

// checkDescriptor refuses digests that cannot be verified, and sizes below zero or, with a limit, above it.
func checkDescriptor(d ocispec.Descriptor, limit int64) error {
	if err := d.Digest.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w: %w", d.Digest, errdefs.ErrInvalidArgument, err)
	}
	if d.Size < 0 || limit > 0 && d.Size > limit {
		return fmt.Errorf("%s has a size of %d bytes: %w", d.Digest, d.Size, errdefs.ErrInvalidArgument)
	}
	return nil
}

// parseConfig reads a configuration for a manifest of so many layers.
func parseConfig(data []byte, layers int) (ocispec.Image, error) {
	var config ocispec.Image
	if err := json.Unmarshal(data, &config); err != nil {
		return config, fmt.Errorf("configuration: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	if config.OS != "" && config.OS != "linux" {
		return config, fmt.Errorf("the image is for %s: %w", config.OS, errdefs.ErrInvalidArgument)
	}
	if got := len(config.RootFS.DiffIDs); got != layers {
		return config, fmt.Errorf("the configuration names %d layers, the manifest %d: %w", got, layers, errdefs.ErrInvalidArgument)
	}
	for i, id := range config.RootFS.DiffIDs {
		if err := id.Validate(); err != nil {
			return config, fmt.Errorf("diffID %d %q: %w: %w", i, id, errdefs.ErrInvalidArgument, err)
		}
		if id.Algorithm() != digest.SHA256 {
			return config, fmt.Errorf("diffID %d is not a sha256 digest: %w", i, errdefs.ErrInvalidArgument)
		}
	}
	return config, nil
}

// manifestType is the media type that a manifest says it has; one that says nothing is OCI's.
func manifestType(data []byte) string {
	var probe struct {
		MediaType string `json:"mediaType"`
	}
	if json.Unmarshal(data, &probe) != nil || probe.MediaType == "" {
		return ocispec.MediaTypeImageManifest
	}
	return probe.MediaType
}
