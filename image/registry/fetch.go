package registry

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxCuts is how often in succession a stream may break off without a byte in between.
const maxCuts = 4

// Fetch opens a manifest or blob. A stream that breaks off is opened again where it did, at any endpoint, as long as bytes
// come. Parts of a large blob are fetched at once, if Config.Ranges says so. What is longer or shorter than the descriptor says
// is errdefs.ErrDataLoss; the digest is the caller's to verify. URLs of the descriptor are not followed: they are the image's to
// choose, not the administrator's.
func (r *Repository) Fetch(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	if r.ranges != nil && d.Size >= r.ranges.least {
		return r.fetchParts(ctx, d)
	}
	return opened(r.fetch(ctx, d, 0, 0, d.Size))
}

// opened makes no stream a nil one.
func opened(b *body, err error) (io.ReadCloser, error) {
	if err != nil {
		return nil, err
	}
	return b, nil
}

// fetch opens what is missing, from offset on, of a stream that began at from.
func (r *Repository) fetch(ctx context.Context, d ocispec.Descriptor, from, offset, to int64) (*body, error) {
	ctx, tried := r.trail(ctx)
	b := &body{r: r, d: d, from: from, offset: offset, end: to, ctx: ctx, tried: tried, what: fmt.Sprintf("%s of %s", d.Digest, r.ref)}
	if err := b.open(); err != nil {
		return nil, explain(ctx, b.what, tried, err)
	}
	return b, nil
}

// Distrust says that what an endpoint gave for the digest was not that, and answers whether there is another one to ask. From
// then on the repository asks only those.
func (r *Repository) Distrust(d digest.Digest) bool {
	hosts, err := r.hosts()
	if err != nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	host := r.served[d]
	if host == "" {
		return false
	}
	if r.bad == nil {
		r.bad = map[digest.Digest][]string{}
	}
	r.bad[d] = append(r.bad[d], host)
	delete(r.served, d)
	left := 0
	for _, h := range hosts {
		if h.Capabilities.Has(docker.HostCapabilityPull) {
			left++
		}
	}
	return left > len(r.bad[d])
}

func (r *Repository) distrusted(d digest.Digest) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bad[d]
}

// servedBy remembers which endpoint gives a blob.
func (r *Repository) servedBy(d digest.Digest, host string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.served == nil {
		r.served = map[digest.Digest]string{}
	}
	r.served[d] = host
}

// body is a stream of a blob's bytes that mends itself.
type body struct {
	r           *Repository
	d           ocispec.Descriptor
	from        int64 // where it began
	offset, end int64
	stream      io.ReadCloser
	source      *http.Response // whose body stream is
	cuts        int
	ctx         context.Context // of the request: it lives as long as the body
	what        string
	tried       *trail
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	for {
		if b.offset == b.end {
			return 0, b.finish()
		}
		if b.stream == nil {
			if err := b.open(); err != nil {
				return 0, explain(b.ctx, b.what, b.tried, err)
			}
		}
		if left := b.end - b.offset; int64(len(p)) > left {
			p = p[:left]
		}
		n, err := b.stream.Read(p)
		b.offset += int64(n)
		if n > 0 {
			b.cuts = 0
		}
		if err == nil || b.offset == b.end {
			return n, nil
		}
		_ = b.stream.Close()
		b.stream = nil
		if n > 0 {
			return n, nil
		}
		if err := b.cut(err); err != nil {
			return 0, explain(b.ctx, b.what, b.tried, err)
		}
	}
}

// finish is reached when all has come that was asked for; more of it is a lie about the size.
func (b *body) finish() error {
	if b.stream != nil && b.end == b.d.Size {
		var one [1]byte
		if n, _ := io.ReadFull(b.stream, one[:]); n > 0 {
			b.close()
			return explain(b.ctx, b.what, b.tried, fmt.Errorf("it goes on after the %d bytes that its descriptor says: %w", b.d.Size, errdefs.ErrDataLoss))
		}
	}
	b.close()
	return io.EOF
}

// cut waits after a stream broke off without a byte, and gives up at last.
func (b *body) cut(err error) error {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	err = fmt.Errorf("broke off after %d of %d bytes: %w", b.offset, b.d.Size, err)
	note(b.ctx, b.source, "", err)
	if b.cuts++; b.cuts > maxCuts || b.ctx.Err() != nil {
		return err
	}
	return pause(b.ctx, b.r.delay(b.cuts-1), b.r.wait)
}

// open asks for what is missing.
func (b *body) open() error {
	q := question{
		method: http.MethodGet, path: []string{"blobs", b.d.Digest.String()}, needs: docker.HostCapabilityPull,
		header: http.Header{"Accept": {"*/*"}, "Accept-Encoding": {"identity"}}, take: b.take, not: b.r.distrusted(b.d.Digest),
	}
	if images.IsManifestType(b.d.MediaType) || images.IsIndexType(b.d.MediaType) {
		q.path[0] = "manifests"
		q.header.Set("Accept", b.d.MediaType+", */*")
	}
	if b.offset > 0 || b.end < b.d.Size {
		q.header.Set("Range", fmt.Sprintf("bytes=%d-%d", b.offset, b.end-1))
	}
	return b.r.ask(b.ctx, q)
}

// take checks that an answer is what is missing, from there on.
func (b *body) take(r *http.Response) error {
	if encoding := r.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		return fmt.Errorf("it comes in encoding %q, which was not asked for: %w", encoding, errdefs.ErrDataLoss)
	}
	start, total := int64(0), r.ContentLength // -1 when it does not say
	if r.StatusCode == http.StatusPartialContent {
		var ok bool
		if start, total, ok = contentRange(r.Header.Get("Content-Range")); !ok || start != b.offset {
			return fmt.Errorf("asked for bytes from %d, it gives %q: %w", b.offset, r.Header.Get("Content-Range"), errdefs.ErrDataLoss)
		}
	}
	if total >= 0 && total != b.d.Size {
		return fmt.Errorf("it has %d bytes there, its descriptor says %d: %w", total, b.d.Size, errdefs.ErrDataLoss)
	}
	if start < b.offset { // it knows no ranges
		if b.from > 0 {
			return fmt.Errorf("it does not serve ranges: %w", errdefs.ErrNotImplemented)
		}
		if err := b.skip(r.Body, b.offset); err != nil {
			return err
		}
	}
	b.stream, b.source = r.Body, r
	b.r.servedBy(b.d.Digest, r.Request.Context().Value(hostKey{}).(string))
	return nil
}

// skip reads what is here already. It may take long, and is no standstill.
func (b *body) skip(r io.Reader, n int64) error {
	buffer := make([]byte, 64<<10)
	for n > 0 {
		got, err := r.Read(buffer[:min(n, int64(len(buffer)))])
		if n -= int64(got); b.r.moved != nil && got > 0 {
			b.r.moved(int64(got))
		}
		if err == io.EOF && n > 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil && n > 0 {
			return fmt.Errorf("read again what is here: %w", err)
		}
	}
	return nil
}

// contentRange reads "bytes FROM-TO/TOTAL"; the total is -1 when it is not known.
func contentRange(text string) (start, total int64, ok bool) {
	span, found := strings.CutPrefix(text, "bytes ")
	span, all, hasTotal := strings.Cut(span, "/")
	first, _, hasEnd := strings.Cut(span, "-")
	start, err := strconv.ParseInt(first, 10, 64)
	if !found || !hasTotal || !hasEnd || err != nil || start < 0 {
		return 0, 0, false
	}
	if all == "*" {
		return start, -1, true
	}
	total, err = strconv.ParseInt(all, 10, 64)
	return start, total, err == nil && total >= 0
}

func (b *body) close() {
	if b.stream != nil {
		_ = b.stream.Close()
		b.stream = nil
	}
	b.offset, b.end = b.d.Size, b.d.Size
}

// Close implements io.Closer.
func (b *body) Close() error {
	b.close()
	return nil
}
