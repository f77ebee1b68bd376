package main

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// The media types of docker's schema 2, which image-spec does not name.
const (
	dockerManifest  = "application/vnd.docker.distribution.manifest.v2+json"
	dockerConfig    = "application/vnd.docker.container.image.v1+json"
	dockerLayerGzip = "application/vnd.docker.image.rootfs.diff.tar.gzip"
)

// layout is an OCI image layout in the making. Names in its index are "repository:tag".
type layout struct {
	dir   string
	index []ocispec.Descriptor
}

// layer is a layer's blob and the digest of its tar stream.
type layer struct {
	ocispec.Descriptor
	diffID digest.Digest
}

// image is what an image is made of. The configuration's user, entrypoint and so on are in config.
type image struct {
	layers []layer
	config ocispec.ImageConfig
	docker bool   // docker's media types
	arch   string // "" is this machine's
}

// blob stores content.
func (l *layout) blob(mediaType string, content []byte) (ocispec.Descriptor, error) {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(content), Size: int64(len(content))}
	return d, os.WriteFile(l.path(d.Digest), content, 0o644)
}

func (l *layout) path(d digest.Digest) string {
	return filepath.Join(l.dir, "blobs", d.Algorithm().String(), d.Encoded())
}

// layer stores a layer that fill writes, compressed as "gzip", "zstd" or "".
func (l *layout) layer(compression string, fill func(*tar.Writer) error) (layer, error) {
	file, err := os.CreateTemp(l.dir, ".layer-*")
	if err != nil {
		return layer{}, err
	}
	defer os.Remove(file.Name())
	defer file.Close()

	blob, diff := digest.SHA256.Digester(), digest.SHA256.Digester()
	buffered := bufio.NewWriterSize(io.MultiWriter(file, blob.Hash()), 1<<20)
	compressor, mediaType, err := compress(buffered, compression)
	if err != nil {
		return layer{}, err
	}
	archive := tar.NewWriter(io.MultiWriter(compressor, diff.Hash()))
	if err := fill(archive); err != nil {
		return layer{}, err
	}
	for _, closeNext := range []func() error{archive.Close, compressor.Close, buffered.Flush} {
		if err := closeNext(); err != nil {
			return layer{}, err
		}
	}
	info, err := file.Stat()
	if err != nil {
		return layer{}, err
	}
	made := layer{ocispec.Descriptor{MediaType: mediaType, Digest: blob.Digest(), Size: info.Size()}, diff.Digest()}
	if err := file.Chmod(0o644); err != nil {
		return layer{}, err
	}
	return made, os.Rename(file.Name(), l.path(made.Digest))
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

func compress(w io.Writer, compression string) (io.WriteCloser, string, error) {
	switch compression {
	case "gzip":
		return gzip.NewWriter(w), ocispec.MediaTypeImageLayerGzip, nil
	case "zstd":
		// One encoder goroutine: the output must not depend on how many there are.
		z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
		return z, ocispec.MediaTypeImageLayerZstd, err
	case "":
		return nopCloser{w}, ocispec.MediaTypeImageLayer, nil
	}
	return nil, "", fmt.Errorf("unknown compression %q", compression)
}

// manifest stores an image's configuration and manifest.
func (l *layout) manifest(i image) (ocispec.Descriptor, error) {
	platform := ocispec.Platform{OS: "linux", Architecture: i.arch}
	if i.arch == "" {
		platform.Architecture = runtime.GOARCH
	}
	created := epoch
	config := ocispec.Image{
		Created: &created, Platform: platform, Config: i.config,
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{}},
	}
	manifest := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Layers: []ocispec.Descriptor{},
	}
	configType := ocispec.MediaTypeImageConfig
	if i.docker {
		manifest.MediaType, configType = dockerManifest, dockerConfig
	}
	for _, layer := range i.layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, layer.diffID)
		config.History = append(config.History, ocispec.History{Created: &created, CreatedBy: "hack/testimages"})
		if i.docker {
			layer.MediaType = dockerLayerGzip
		}
		manifest.Layers = append(manifest.Layers, layer.Descriptor)
	}
	content, err := json.Marshal(config)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if manifest.Config, err = l.blob(configType, content); err != nil {
		return ocispec.Descriptor{}, err
	}
	if content, err = json.Marshal(manifest); err != nil {
		return ocispec.Descriptor{}, err
	}
	descriptor, err := l.blob(manifest.MediaType, content)
	descriptor.Platform = &platform
	return descriptor, err
}

// add stores an image under names ("repository:tag").
func (l *layout) add(i image, names ...string) error {
	descriptor, err := l.manifest(i)
	if err != nil {
		return err
	}
	l.name(descriptor, names...)
	return nil
}

// addIndex stores an index of manifests.
func (l *layout) addIndex(manifests []ocispec.Descriptor, names ...string) error {
	content, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: manifests,
	})
	if err != nil {
		return err
	}
	descriptor, err := l.blob(ocispec.MediaTypeImageIndex, content)
	if err != nil {
		return err
	}
	l.name(descriptor, names...)
	return nil
}

func (l *layout) name(d ocispec.Descriptor, names ...string) {
	for _, name := range names {
		d.Annotations = map[string]string{ocispec.AnnotationRefName: name}
		l.index = append(l.index, d)
	}
}

// finish writes what makes the directory an OCI layout.
func (l *layout) finish() error {
	index, err := json.MarshalIndent(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: l.index,
	}, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(l.dir, "index.json"), index, 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(l.dir, ocispec.ImageLayoutFile), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644)
}
