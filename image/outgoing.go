package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/image/registry"
)

// SendOptions choose what of an image a push or an export sends. The zero value is the whole index when all of it is here,
// else the manifest of the platform that is.
type SendOptions struct {
	// Platform sends the manifest for that platform alone.
	Platform *ocispec.Platform
	// All sends the whole index. What of it is not here is fetched from where the image was pulled.
	All bool
}

// outgoing is an image on its way out, to a registry or into an archive. What it consists of stays until close.
type outgoing struct {
	s        *Store
	name     string             // of the record
	target   ocispec.Descriptor // what is sent
	manifest ocispec.Descriptor // of the image that is here
	missing  []string           // platforms of the index that are not sent, because they are not here
	parts    *parts
	origins  *origins
	release  func()
}

// outgoing finds what ref means and what of it is sent.
func (s *Store) outgoing(ctx context.Context, ref string, auth Auth, o SendOptions) (*outgoing, error) {
	if o.Platform != nil && o.All {
		return nil, fmt.Errorf("one platform and all platforms at once: %w", errdefs.ErrInvalidArgument)
	}
	ctx, release, err := s.lease(ctx)
	if err != nil {
		return nil, err
	}
	out := &outgoing{s: s, release: release}
	if err = out.find(ctx, ref, auth); err == nil {
		err = out.choose(ctx, o)
	}
	if err != nil {
		out.close()
		return nil, err
	}
	return out, nil
}

func (out *outgoing) close() {
	if out.origins != nil {
		out.origins.close()
	}
	out.release()
}

// find resolves the name and keeps what it means from the garbage collection.
func (out *outgoing) find(ctx context.Context, ref string, auth Auth) error {
	record, e, err := out.s.record(ctx, ref)
	if err != nil {
		return err
	}
	out.name, out.target = record.Name, plain(record.Target)
	if out.manifest, err = out.s.manifestOf(ctx, record); err != nil {
		return err
	}
	out.origins = out.s.newOrigins(out.s.index.names(e.ID), auth)
	lease, _ := leases.FromContext(ctx)
	for _, d := range []digest.Digest{out.target.Digest, out.manifest.Digest} {
		err := out.s.leases.AddResource(ctx, leases.Lease{ID: lease}, leases.Resource{ID: d.String(), Type: "content"})
		if err != nil {
			return fmt.Errorf("keep %s: %w", d, err)
		}
	}
	return nil
}

// choose says what is sent.
func (out *outgoing) choose(ctx context.Context, o SendOptions) (err error) {
	if o.Platform != nil && images.IsIndexType(out.target.MediaType) {
		return out.choosePlatform(ctx, platforms.Normalize(*o.Platform))
	}
	read := out.s.stored
	if o.All {
		read = func(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
			data, err := out.s.stored(ctx, d)
			if errdefs.IsNotFound(err) {
				return out.origins.document(ctx, d)
			}
			return data, err
		}
	}
	if out.parts, err = partsOf(ctx, out.target, read); err != nil || len(out.parts.missing) == 0 {
		return err
	}
	if o.All {
		return fmt.Errorf("of the index %s there is neither here nor where the image came from: %s: %w",
			out.target.Digest, strings.Join(platformNames(out.parts.missing), ", "), errdefs.ErrNotFound)
	}
	out.missing, out.target = platformNames(out.parts.missing), out.manifest
	out.parts, err = partsOf(ctx, out.target, out.s.stored)
	return err
}

func (out *outgoing) choosePlatform(ctx context.Context, platform ocispec.Platform) error {
	for depth := 0; images.IsIndexType(out.target.MediaType); depth++ {
		data, err := out.s.stored(ctx, out.target)
		if err == nil && depth == maxNesting {
			err = fmt.Errorf("index %s lies too deep in other indexes: %w", out.target.Digest, errdefs.ErrInvalidArgument)
		}
		if err == nil {
			out.target, err = parseIndex(data, out.target.MediaType, platforms.OnlyStrict(platform))
		}
		if err != nil {
			return err
		}
	}
	out.target = plain(out.target)
	var err error
	out.parts, err = partsOf(ctx, out.target, out.s.stored)
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("the image for %s is not here, pull it first: %w", platforms.FormatAll(platform), err)
	}
	return err
}

// open reads a part, from here or, when its blob was not kept, by its digest from where the image came from. What comes is
// verified; the last read fails when it is not what it should be.
func (out *outgoing) open(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	reader, err := out.s.content.ReaderAt(ctx, plain(d))
	if errdefs.IsNotFound(err) {
		return out.origins.open(ctx, d)
	}
	if err != nil {
		return nil, err
	}
	return newVerifying(io.NewSectionReader(reader, 0, reader.Size()), reader, d), nil
}

// plain is a descriptor without what belongs to the place where it was found.
func plain(d ocispec.Descriptor) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
}

// record finds the image record that ref means: the very name, or by ID one of the image's, tags first.
func (s *Store) record(ctx context.Context, ref string) (images.Image, *entry, error) {
	e, err := s.index.find(ref)
	if err != nil {
		return images.Image{}, nil, err
	}
	names := s.index.names(e.ID)
	slices.SortStableFunc(names, func(a, b string) int { return strings.Count(a, "@") - strings.Count(b, "@") })
	if full, err := Normalize(ref); err == nil && slices.Contains(names, full) {
		names = []string{full}
	}
	if len(names) == 0 {
		return images.Image{}, nil, fmt.Errorf("image %q: %w", ref, errdefs.ErrNotFound)
	}
	record, err := s.images.Get(ctx, names[0])
	return record, e, err
}

// origins are the repositories that have, or had, what an image consists of: those that its names name.
type origins struct {
	s            *Store
	repositories []string // "host/path", those that are known by digest first
	auth         Auth
	meter        *meter

	mu     sync.Mutex
	opened map[string]*registry.Repository
}

func (s *Store) newOrigins(names []string, auth Auth) *origins {
	return &origins{s: s, repositories: repositoriesOf(names), auth: auth, meter: &meter{}, opened: map[string]*registry.Repository{}}
}

// repositoriesOf are the repositories of an image's names. A name by digest says that the repository had the image, one by
// tag may have been given here.
func repositoriesOf(names []string) []string {
	names = slices.Clone(names)
	slices.SortStableFunc(names, func(a, b string) int { return strings.Count(b, "@") - strings.Count(a, "@") })
	var repositories []string
	for _, name := range names {
		named, err := reference.ParseNormalizedNamed(name)
		if err == nil && !slices.Contains(repositories, named.Name()) {
			repositories = append(repositories, named.Name())
		}
	}
	return repositories
}

// limit gives the credential to one host only.
func (o *origins) limit(host string) {
	if !o.auth.IsZero() && o.auth.ServerAddress == "" {
		o.auth.ServerAddress = host
	}
}

// repository opens one, once.
func (o *origins) repository(ctx context.Context, name string) (*registry.Repository, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if known := o.opened[name]; known != nil {
		return known, nil
	}
	repo, err := registry.Open(ctx, o.s.config.Registry, name+":latest", registry.Options{Auth: o.auth, Wait: o.meter.pause})
	if err == nil {
		o.opened[name] = repo
	}
	return repo, err
}

// Fetch opens a blob or a manifest at the first repository that has it. Nothing is verified.
func (o *origins) Fetch(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	err := error(nil)
	for _, name := range o.repositories {
		repo, failed := o.repository(ctx, name)
		if failed == nil {
			var r io.ReadCloser
			if r, failed = fetchOpened(ctx, repo, d); failed == nil {
				return r, nil
			}
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		err = errors.Join(err, failed)
	}
	if err == nil {
		return nil, fmt.Errorf("%s is not here, and nothing says where it came from: %w", d.Digest, errdefs.ErrNotFound)
	}
	return nil, fmt.Errorf("%s is not here and has to come from where the image came from: %w", d.Digest, err)
}

// fetchOpened reads the first byte, because a stream is not opened, and so cannot fail, before.
func fetchOpened(ctx context.Context, repo *registry.Repository, d ocispec.Descriptor) (io.ReadCloser, error) {
	r, err := repo.Fetch(ctx, d)
	if err != nil {
		return nil, err
	}
	first := make([]byte, min(1, d.Size))
	if _, err := io.ReadFull(r, first); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return &prefixed{first, r}, nil
}

type prefixed struct {
	first []byte
	io.ReadCloser
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.first) > 0 {
		n := copy(b, p.first)
		p.first = p.first[n:]
		return n, nil
	}
	return p.ReadCloser.Read(b)
}

// open is Fetch, verified.
func (o *origins) open(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	r, err := o.Fetch(ctx, d)
	if err != nil {
		return nil, err
	}
	return newVerifying(r, r, d), nil
}

// document fetches a manifest or an index.
func (o *origins) document(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	if err := checkDescriptor(d, maxDocument); err != nil {
		return nil, err
	}
	r, err := o.Fetch(ctx, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return readAll(r, d)
}

func (o *origins) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, repo := range o.opened {
		repo.Close()
	}
	clear(o.opened)
}

// verifying reads what a descriptor describes, and ends with an error unless it was that.
type verifying struct {
	io.Closer
	r        io.Reader
	d        ocispec.Descriptor
	digester digest.Digester
	n        int64
}

func newVerifying(r io.Reader, closer io.Closer, d ocispec.Descriptor) *verifying {
	return &verifying{Closer: closer, r: io.LimitReader(r, d.Size+1), d: d, digester: d.Digest.Algorithm().Digester()}
}

func (v *verifying) Read(p []byte) (int, error) {
	n, err := v.r.Read(p)
	v.n += int64(n)
	_, _ = v.digester.Hash().Write(p[:n])
	if v.n > v.d.Size || err == io.EOF {
		if broken := verify(v.d, v.n, v.digester.Digest()); broken != nil {
			return n, broken
		}
	}
	return n, err
}
