package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/criserver/criserver/image/registry"
)

// parallelUploads is how many blobs one push sends at once.
const parallelUploads = 6

// slowestCommit is the rate in bytes a second at which a registry has to take what it was sent; some copy a blob to their
// storage before they answer.
const slowestCommit = 8 << 20

// PushOptions are what a push may choose.
type PushOptions struct {
	SendOptions
	// To is the name to push as, by tag; "" is the image's own.
	To string
	// Auth is the credential for the registry.
	Auth Auth
	// Report, when set, is told of each part that is there, in no order, one at a time.
	Report func(Part)
}

// Part is a manifest or a blob and what became of it.
type Part struct {
	Digest digest.Digest
	Size   int64
	// How it came to be there: "uploaded", "existed", "mounted".
	How string
}

// Pushed says what a push has put where.
type Pushed struct {
	// Name is the full name by tag, Digest what it means there now.
	Name   string
	Digest digest.Digest
	// Parts by how they came to be there, and the bytes that were sent.
	Uploaded, Existed, Mounted int
	Bytes                      int64
	// Missing are the platforms of the image's index that are not here; then only the one that is was pushed.
	Missing []string
}

// Push sends an image to a registry: the documents as they are, byte for byte, and their blobs, several at once. What is there
// already is not sent again, what another repository of the registry has is mounted from it, and what is not kept
// here is fetched by its digest from where the image came from. The name is given last. When the destination is one of the
// image's own repositories it gets its name by digest there.
func (s *Store) Push(ctx context.Context, ref string, o PushOptions) (Pushed, error) {
	ctx = s.storeContext(ctx)
	out, err := s.outgoing(ctx, ref, o.Auth, o.SendOptions)
	if err != nil {
		return Pushed{}, fmt.Errorf("push %s: %w", ref, err)
	}
	defer out.close()
	pushed, err := s.push(ctx, out, o)
	if err != nil {
		return Pushed{}, fmt.Errorf("push %s: %w", ref, err)
	}
	return pushed, nil
}

// pushing is one push under way.
type pushing struct {
	out    *outgoing
	to     reference.Named
	pusher *registry.Pusher
	meter  meter
	report func(Part)

	mu     sync.Mutex
	pushed Pushed
}

func (s *Store) push(ctx context.Context, out *outgoing, o PushOptions) (_ Pushed, err error) {
	to, err := parseName(cmp.Or(o.To, out.name))
	if err != nil {
		return Pushed{}, err
	}
	if strings.Contains(to.String(), "@") {
		return Pushed{}, fmt.Errorf("%s is a name by digest; say by which tag to push: %w", to, errdefs.ErrInvalidArgument)
	}
	out.origins.limit(reference.Domain(to))
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p := &pushing{out: out, to: to, report: o.Report}
	if s.config.NoProgress > 0 {
		go p.meter.watch(ctx, cancel, s.config.NoProgress)
	}
	defer func() {
		if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(err, cause) {
			err = cause
		}
	}()
	repo, err := registry.Open(ctx, s.config.Registry, to.String(), registry.Options{Auth: o.Auth, Wait: p.meter.pause})
	if err != nil {
		return Pushed{}, err
	}
	defer repo.Close()
	if p.pusher, err = repo.Pusher(ctx, out.target.Digest); err != nil {
		return Pushed{}, err
	}
	if err := p.run(ctx); err != nil {
		return Pushed{}, err
	}
	p.pushed.Name, p.pushed.Digest, p.pushed.Missing = to.String(), out.target.Digest, out.missing
	s.log.Info("image pushed", "image", out.name, "to", to.String(), "digest", out.target.Digest, "uploaded", p.pushed.Uploaded,
		"mounted", p.pushed.Mounted, "existed", p.pushed.Existed, "bytes", p.pushed.Bytes)
	return p.pushed, p.remember(ctx)
}

// run sends the blobs, then the documents, each after those that it refers to.
func (p *pushing) run(ctx context.Context) error {
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(parallelUploads)
	for _, blob := range p.out.parts.blobs {
		group.Go(func() error { return p.send(groupCtx, blob, p.mountable()) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, document := range p.out.parts.documents {
		if err := p.send(ctx, document, ""); err != nil {
			return err
		}
	}
	return nil
}

// mountable is the repository of the same registry that has the blobs, if there is one, as a path.
func (p *pushing) mountable() string {
	for _, name := range p.out.origins.repositories {
		named, err := reference.ParseNormalizedNamed(name)
		if err == nil && reference.Domain(named) == reference.Domain(p.to) && reference.Path(named) != reference.Path(p.to) {
			return reference.Path(named)
		}
	}
	return ""
}

func (p *pushing) send(ctx context.Context, d ocispec.Descriptor, from string) error {
	how, err := p.pusher.Push(ctx, d, from, func(ctx context.Context) (io.ReadCloser, error) {
		r, err := p.out.open(ctx, d)
		if err != nil {
			return nil, err
		}
		return &uploading{meteredReader: meteredReader{r: r, meter: &p.meter}, Closer: r, d: d}, nil
	})
	if err != nil {
		return err
	}
	p.meter.moved.Add(1)
	p.mu.Lock()
	defer p.mu.Unlock()
	switch how {
	case registry.Uploaded:
		p.pushed.Uploaded++
		p.pushed.Bytes += d.Size
	case registry.Existed:
		p.pushed.Existed++
	case registry.Mounted:
		p.pushed.Mounted++
	}
	if p.report != nil {
		p.report(Part{Digest: d.Digest, Size: d.Size, How: how.String()})
	}
	return nil
}

// uploading is a blob on its way. Once all of it was read the registry may take its time: it is no stall, for a while.
type uploading struct {
	meteredReader
	io.Closer
	d      ocispec.Descriptor
	resume func()
}

func (u *uploading) Read(b []byte) (int, error) {
	n, err := u.meteredReader.Read(b)
	if err == io.EOF && u.resume == nil {
		u.resume = u.meter.pause()
		time.AfterFunc(time.Duration(u.d.Size/slowestCommit)*time.Second, u.resume)
	}
	return n, err
}

// Close is called when the registry has answered.
func (u *uploading) Close() error {
	if u.resume != nil {
		u.resume()
	}
	return u.Closer.Close()
}

// remember gives the image its name by digest in a repository that it has a name in.
func (p *pushing) remember(ctx context.Context) error {
	s, out := p.out.s, p.out
	if out.target.Digest != out.manifest.Digest && !images.IsIndexType(out.target.MediaType) {
		return nil // another platform's: no image of ours
	}
	known := false
	for _, name := range out.origins.repositories {
		known = known || name == p.to.Name()
	}
	name := digestName(p.to, out.target.Digest)
	if !known || s.index.meant([]string{name}, out.target.Digest) != nil {
		return nil
	}
	return s.setNames(ctx, out.target, out.manifest, []string{name})
}
