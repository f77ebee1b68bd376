package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxManifest bounds a manifest that is read only to learn its digest.
const maxManifest = 8 << 20

// accepted are the kinds of document that a name may mean.
var accepted = strings.Join([]string{
	images.MediaTypeDockerSchema2Manifest, images.MediaTypeDockerSchema2ManifestList,
	ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, "*/*",
}, ", ")

// Resolve asks for the digest and media type of what the reference names. A tag is asked of endpoints that are trusted to
// resolve, a digest of all.
func (r *Repository) Resolve(ctx context.Context) (ocispec.Descriptor, error) {
	ctx, tried := r.trail(ctx)
	d, err := r.resolve(ctx)
	return d, explain(ctx, "manifest of "+r.ref, tried, err)
}

func (r *Repository) resolve(ctx context.Context) (ocispec.Descriptor, error) {
	var d ocispec.Descriptor
	target, needs := r.spec.Object, docker.HostCapabilityPull|docker.HostCapabilityResolve
	known := r.spec.Digest()
	if known != "" {
		if err := known.Validate(); err != nil {
			return d, fmt.Errorf("digest %q: %w: %w", known, errdefs.ErrInvalidArgument, err)
		}
		target, needs = known.String(), docker.HostCapabilityPull
	}
	if target == "" {
		return d, fmt.Errorf("the name has neither tag nor digest: %w", errdefs.ErrInvalidArgument)
	}
	q := question{method: http.MethodHead, path: []string{"manifests", target}, header: http.Header{"Accept": {accepted}}, needs: needs}
	q.take = func(response *http.Response) (err error) {
		d, err = described(response, known)
		return err
	}
	err := r.ask(ctx, q)
	if !errors.Is(err, errNotDescribed) && !unexplained(err) {
		return d, err
	}
	// Some registries describe manifests only when they give them, and none says in answer to HEAD why it refuses.
	q.method = http.MethodGet
	q.header.Set("Accept-Encoding", "identity")
	return d, r.ask(ctx, q)
}

// errNotDescribed is the answer to HEAD of a registry that does not say what the manifest is.
var errNotDescribed = fmt.Errorf("the answer says neither digest nor size: %w", errdefs.ErrDataLoss)

// unexplained says that an endpoint refused without a word.
func unexplained(err error) bool {
	var answer *answerError
	return errors.As(err, &answer) && answer.text == "" && (answer.status == http.StatusForbidden || answer.status == http.StatusBadRequest)
}

// described takes from an answer what a manifest is; that of GET has the manifest.
func described(r *http.Response, known digest.Digest) (ocispec.Descriptor, error) {
	mediaType, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	d := ocispec.Descriptor{MediaType: strings.TrimSpace(mediaType), Digest: known, Size: r.ContentLength}
	if r.Request.Method == http.MethodGet {
		data, err := io.ReadAll(io.LimitReader(r.Body, maxManifest+1))
		if err != nil {
			return d, err
		}
		if len(data) > maxManifest {
			return d, fmt.Errorf("the manifest has more than %d bytes: %w", maxManifest, errdefs.ErrInvalidArgument)
		}
		_ = r.Body.Close()
		got := digest.FromBytes(data)
		if known != "" {
			got = known.Algorithm().FromBytes(data)
		}
		// What a name means is decided by the content, not by what a header says of it.
		if said := digest.Digest(r.Header.Get("Docker-Content-Digest")); known == "" && said != "" && said.Validate() == nil && said.Algorithm().FromBytes(data) != said {
			return d, fmt.Errorf("its header says that the manifest is %s, and it is %s: %w", said, got, errdefs.ErrDataLoss)
		}
		if d.Digest, d.Size = got, int64(len(data)); known != "" && got != known {
			return d, fmt.Errorf("it gives a manifest with the digest %s: %w", got, errdefs.ErrDataLoss)
		}
		return d, nil
	}
	_ = r.Body.Close()
	if d.Digest == "" {
		d.Digest = digest.Digest(r.Header.Get("Docker-Content-Digest"))
	}
	if d.Digest == "" || d.Size < 0 {
		return d, errNotDescribed
	}
	if err := d.Digest.Validate(); err != nil {
		return d, fmt.Errorf("its header says that the manifest is %q, which is no digest: %w: %w", d.Digest, errdefs.ErrDataLoss, err)
	}
	return d, nil
}
