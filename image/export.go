package image

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ExportOptions are what an export may choose.
type ExportOptions struct {
	SendOptions
	// Docker makes an archive that `docker load` and skopeo's docker-archive read, besides those that read OCI layouts.
	Docker bool
	// Auth is the credential for fetching what is not kept here.
	Auth Auth
}

// Exported is an image that went into an archive.
type Exported struct {
	Name    string
	Digest  digest.Digest // of the manifest or index
	Missing []string      // as Pushed.Missing
}

// Export writes images as an OCI layout in a tar: the documents and blobs as they are, byte for byte, each once. What is not
// kept here is fetched by its digest from where the image came from. The same images give the same archive. After an error
// what was written is good for nothing.
func (s *Store) Export(ctx context.Context, w io.Writer, refs []string, o ExportOptions) ([]Exported, error) {
	if len(refs) == 0 {
		return nil, fmt.Errorf("export: no image was named: %w", errdefs.ErrInvalidArgument)
	}
	ctx = s.storeContext(ctx)
	e := &exporter{s: s, tar: tar.NewWriter(w), docker: o.Docker}
	defer func() {
		for _, out := range e.outs {
			out.close()
		}
	}()
	for _, ref := range refs {
		out, err := s.outgoing(ctx, ref, o.Auth, o.SendOptions)
		if err != nil {
			return nil, fmt.Errorf("export %s: %w", ref, err)
		}
		e.outs = append(e.outs, out)
	}
	exported, err := e.run(ctx)
	if err != nil {
		return nil, fmt.Errorf("export %s: %w", strings.Join(refs, ", "), err)
	}
	return exported, nil
}

type exporter struct {
	s      *Store
	outs   []*outgoing
	tar    *tar.Writer
	docker bool
}

// dockerImage is an element of what docker calls manifest.json.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (e *exporter) run(ctx context.Context) ([]Exported, error) {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	var saved []dockerImage
	var exported []Exported
	for _, out := range e.outs {
		index.Manifests = append(index.Manifests, named(out))
		exported = append(exported, Exported{Name: out.name, Digest: out.target.Digest, Missing: out.missing})
		if e.docker {
			one, err := e.saved(ctx, out)
			if err != nil {
				return nil, err
			}
			saved = addSaved(saved, one)
		}
	}
	if err := e.text(layoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}); err != nil {
		return nil, err
	}
	if err := e.text(indexFile, index); err != nil {
		return nil, err
	}
	if e.docker {
		if err := e.text(manifestFile, saved); err != nil {
			return nil, err
		}
	}
	if err := e.blobs(ctx); err != nil {
		return nil, err
	}
	return exported, e.tar.Close()
}

// named is a target with its name, which is left out when it is by digest and not the target's.
func named(out *outgoing) ocispec.Descriptor {
	d := plain(out.target)
	full, err := reference.ParseNormalizedNamed(out.name)
	if err != nil {
		return d
	}
	if tagged, ok := full.(reference.Tagged); ok {
		d.Annotations = map[string]string{annotationName: out.name, ocispec.AnnotationRefName: tagged.Tag()}
	} else if digested, ok := full.(reference.Digested); ok && digested.Digest() == d.Digest {
		d.Annotations = map[string]string{annotationName: out.name}
	}
	return d
}

// blobPath is where a blob is in an OCI layout.
func blobPath(d digest.Digest) string { return "blobs/" + d.Algorithm().String() + "/" + d.Encoded() }

// saved says in docker's words what an image consists of; of an index it is the image that is here.
func (e *exporter) saved(ctx context.Context, out *outgoing) (dockerImage, error) {
	d := out.target
	if images.IsIndexType(d.MediaType) {
		d = out.manifest
	}
	data, err := e.s.stored(ctx, d)
	if err != nil {
		return dockerImage{}, err
	}
	manifest, err := parseManifest(data, d.MediaType)
	if err != nil {
		return dockerImage{}, fmt.Errorf("manifest %s: %w", d.Digest, err)
	}
	one := dockerImage{Config: blobPath(manifest.Config.Digest), Layers: []string{}}
	for _, layer := range manifest.Layers {
		one.Layers = append(one.Layers, blobPath(layer.Digest))
	}
	if full, err := reference.ParseNormalizedNamed(out.name); err == nil && !strings.Contains(out.name, "@") {
		one.RepoTags = []string{reference.FamiliarString(full)}
	}
	return one, nil
}

// addSaved adds an image, or its name when the image is there.
func addSaved(saved []dockerImage, one dockerImage) []dockerImage {
	for i := range saved {
		if saved[i].Config == one.Config && slices.Equal(saved[i].Layers, one.Layers) {
			saved[i].RepoTags = append(saved[i].RepoTags, one.RepoTags...)
			return saved
		}
	}
	return append(saved, one)
}

func (e *exporter) text(name string, document any) error {
	data, err := json.Marshal(document)
	if err != nil {
		return err
	}
	if err := e.header(name, int64(len(data))); err != nil {
		return err
	}
	_, err = e.tar.Write(data)
	return err
}

// header begins a file. Nothing in it depends on this machine or on the time.
func (e *exporter) header(name string, size int64) error {
	return e.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0)})
}

// blobs writes what the images consist of.
func (e *exporter) blobs(ctx context.Context) error {
	written := map[digest.Digest]bool{}
	for _, out := range e.outs {
		for _, d := range slices.Concat(out.parts.documents, out.parts.blobs) {
			if written[d.Digest] {
				continue
			}
			written[d.Digest] = true
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			if err := e.blob(ctx, out, d); err != nil {
				return err
			}
		}
	}
	return nil
}

func (e *exporter) blob(ctx context.Context, out *outgoing, d ocispec.Descriptor) error {
	r, err := out.open(ctx, d)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := e.header(blobPath(d.Digest), d.Size); err != nil {
		return err
	}
	_, err = io.Copy(e.tar, r)
	return err
}
