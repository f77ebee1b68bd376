package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/criserver/criserver/image/layer"
	"github.com/criserver/criserver/snapshotter"
)

// errStoredBroken says that a blob of the content store was not what it should be, and has been removed.
var errStoredBroken = errors.New("the stored blob is broken")

// chain is the layers of an image under way.
type chain struct {
	*found
	holds []*snapshotter.Layer
	done  []chan struct{} // closed when the hold is on a committed layer
}

// fetchLayers gets all layers, at once and in any order, and makes the chain of snapshots.
func (p *pull) fetchLayers(ctx context.Context, f *found) error {
	c := &chain{found: f, holds: make([]*snapshotter.Layer, len(f.layers)), done: make([]chan struct{}, len(f.layers))}
	for i := range c.done {
		c.done[i] = make(chan struct{})
	}
	defer func() {
		for _, hold := range c.holds {
			if hold != nil {
				hold.Release()
			}
		}
	}()
	group, groupCtx := errgroup.WithContext(ctx)
	for i := range f.layers {
		group.Go(func() error {
			err := p.fetchLayer(groupCtx, c, i)
			// A stored blob that is broken has been removed: now from the registry. One that an endpoint sent: from another.
			if errors.Is(err, errStoredBroken) || errdefs.IsDataLoss(err) && p.repo.Distrust(f.layers[i].Digest) {
				c.holds[i].Release()
				err = p.fetchLayer(groupCtx, c, i)
			}
			if err != nil {
				return fmt.Errorf("layer %d of %d (%s): %w", i+1, len(f.layers), f.layers[i].Digest, err)
			}
			close(c.done[i])
			p.meter.complete.Add(1)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	links := make([]snapshotter.Link, len(f.layers))
	for i := range links {
		links[i] = snapshotter.Link{Name: f.chainIDs[i].String(), Layer: c.holds[i]}
	}
	defer p.meter.pause()()
	return p.s.snapshots.Chain(ctx, "", links)
}

// fetchLayer ends with a hold on layer i, committed. A layer that is here is not fetched again, even if its blob is not.
func (p *pull) fetchLayer(ctx context.Context, c *chain, i int) error {
	resume := p.meter.pause() // another pull may be writing it
	hold, err := p.s.snapshots.Layer(ctx, snapshotter.LayerID{DiffID: c.diffIDs[i], ChainID: c.chainIDs[i]})
	resume()
	if err != nil {
		return err
	}
	c.holds[i] = hold
	if hold.Committed() {
		p.meter.done.Add(c.layers[i].Size)
		return nil
	}
	result, source, err := p.unpack(ctx, hold, c.layers[i], c.diffIDs[i])
	if source != nil {
		defer source.close(ctx)
	}
	if err != nil {
		return err
	}
	if result.NeedsParents() {
		hold.KeyByChain()
		if err := p.adopt(ctx, c, i, &result); err != nil {
			return err
		}
	}
	defer p.meter.pause()()
	// One sync for the blob and the layer; records are only of what is durable.
	if err := hold.Sync(ctx); err != nil {
		return err
	}
	if err := source.commit(ctx, c.layers[i]); err != nil {
		return err
	}
	stats := snapshotter.LayerStats{Size: result.Size, Inodes: result.Inodes, RootImplied: result.RootImplied, Synced: true}
	return hold.Commit(ctx, stats)
}

// adopt completes layer i by what it needs of the layers below, when those are there.
func (p *pull) adopt(ctx context.Context, c *chain, i int, result *layer.Result) error {
	defer p.meter.pause()()
	var below []string
	for j := i - 1; j >= 0; j-- {
		select {
		case <-c.done[j]:
			below = append(below, c.holds[j].Path())
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return layer.Adopt(ctx, c.holds[i].Dir(), result, below)
}

// unpack streams a blob into the directory of a layer and, unless it is there or is not to be kept, into the content store, where
// it is to be committed. The source is to be closed also after an error, if there is one. Whoever gets here is the writer of the layer
// and waits for nothing but a turn, the disk and the registry.
func (p *pull) unpack(ctx context.Context, hold *snapshotter.Layer, d ocispec.Descriptor, diffID digest.Digest) (layer.Result, *source, error) {
	resume := p.meter.pause()
	err := p.s.turns.Acquire(ctx, 1)
	resume()
	if err != nil {
		return layer.Result{}, nil, context.Cause(ctx)
	}
	defer p.s.turns.Release(1)
	source, err := p.source(ctx, d)
	if err != nil {
		return layer.Result{}, nil, err
	}
	result, got, err := p.write(ctx, hold, source, d)
	// What was sent decides what went wrong: a broken blob breaks the inflating and the tar in many ways.
	if broken := source.verify(d, err); broken != nil {
		return result, source, broken
	}
	if err != nil {
		return result, source, err
	}
	if got != diffID {
		return result, source, fmt.Errorf("the unpacked layer is %s, the configuration says %s: %w", got, diffID, errdefs.ErrDataLoss)
	}
	return result, source, nil
}

// write inflates a source into the directory of a layer, and gives the digest of the tar.
func (p *pull) write(ctx context.Context, hold *snapshotter.Layer, source io.Reader, d ocispec.Descriptor) (layer.Result, digest.Digest, error) {
	limits := p.s.config.Limits
	count := func(n int) {
		p.meter.unpack(n)
		hold.Wrote(n)
	}
	return pipeline(source, count, func(tar io.Reader) (layer.Result, error) {
		return layer.Write(ctx, hold.Dir(), limits.bound(tar, d), layer.Options{MaxSize: limits.layerSize(), Buffered: true})
	})
}

// source is a blob being read, from the registry (then it goes into the content store, too) or from the content store.
type source struct {
	stream   meteredReader
	tee      io.Reader
	closer   io.Closer
	digester digest.Digester
	writer   content.Writer // nil when the blob is in the content store, or is not to be kept
	stored   bool           // it comes from the content store
	ref      string         // of the writer
	store    *Store
	readErr  error // of the stream: why bytes are missing
}

// source opens a blob. A stored one that turns out to be broken is discarded by verify.
func (p *pull) source(ctx context.Context, d ocispec.Descriptor) (*source, error) {
	d = ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
	src := &source{store: p.s, digester: d.Digest.Algorithm().Digester(), ref: ingestRef(ctx, d)}
	if p.s.config.DiscardUnpacked {
		if _, err := p.s.content.Info(ctx, d.Digest); errdefs.IsNotFound(err) {
			stream, err := p.repo.Fetch(ctx, d)
			if err == nil {
				src.open(stream, stream, d, &p.meter)
			}
			return src, err
		}
	}
	for {
		writer, err := content.OpenWriter(trusted(ctx), p.s.content, content.WithRef(src.ref), content.WithDescriptor(d))
		if err == nil {
			src.writer = writer
			return src, p.download(ctx, src, d)
		}
		if !errdefs.IsAlreadyExists(err) {
			return nil, err
		}
		reader, err := p.s.content.ReaderAt(ctx, d)
		if err == nil {
			src.stored = true
			src.open(io.NewSectionReader(reader, 0, reader.Size()), reader, d, &p.meter)
			return src, nil
		}
		if !errdefs.IsNotFound(err) {
			return nil, err
		}
		p.s.discard(ctx, d, "its file is gone")
	}
}

// download opens a source at the registry. It closes it on an error.
func (p *pull) download(ctx context.Context, src *source, d ocispec.Descriptor) error {
	// The content store may have the bytes without our having a record of them: write them again, verified.
	err := src.writer.Truncate(0)
	if err == nil {
		var stream io.ReadCloser
		if stream, err = p.repo.Fetch(ctx, d); err == nil {
			src.open(stream, stream, d, &p.meter)
			return nil
		}
	}
	src.close(ctx)
	return err
}

func (s *source) open(r io.Reader, closer io.Closer, d ocispec.Descriptor, m *meter) {
	s.closer = closer
	s.stream = meteredReader{r: io.LimitReader(r, d.Size+1), meter: m}
	var sink io.Writer = s.digester.Hash()
	if s.writer != nil {
		sink = io.MultiWriter(sink, s.writer)
	}
	s.tee = io.TeeReader(&s.stream, sink)
}

// Read implements io.Reader and remembers the error.
func (s *source) Read(p []byte) (int, error) {
	n, err := s.tee.Read(p)
	if err != nil && err != io.EOF {
		s.readErr = err
	}
	return n, err
}

// verify reads the rest, whatever it is, and compares size and digest. unpacked is what the unpacking ended with.
func (s *source) verify(d ocispec.Descriptor, unpacked error) error {
	var errno syscall.Errno
	if errors.As(unpacked, &errno) && s.readErr == nil {
		return nil // the disk's fault (or the tar's): the rest would be fetched in vain
	}
	if s.readErr == nil {
		_, _ = io.Copy(io.Discard, s)
	}
	if s.readErr != nil {
		return s.readErr
	}
	err := verify(d, s.stream.n, s.digester.Digest())
	if err != nil && s.stored {
		s.store.discard(s.store.storeContext(context.Background()), d, err.Error())
		return fmt.Errorf("%w: %w", errStoredBroken, err)
	}
	if err != nil && unpacked != nil && !errors.Is(unpacked, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w (%w)", err, unpacked)
	}
	return err
}

// commit makes the blob, verified and durable, one of the content store's.
func (s *source) commit(ctx context.Context, d ocispec.Descriptor) error {
	if s.writer == nil {
		return nil
	}
	if err := s.writer.Commit(ctx, d.Size, d.Digest); err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("store blob: %w", err)
	}
	err := s.writer.Close()
	s.writer = nil
	return err
}

// close lets go of the stream, and of what was written when it was not committed.
func (s *source) close(ctx context.Context) {
	if s.closer != nil {
		_ = s.closer.Close()
	}
	if s.writer == nil {
		return
	}
	_ = s.writer.Close()
	if err := s.store.content.Abort(context.WithoutCancel(ctx), s.ref); err != nil && !errdefs.IsNotFound(err) {
		s.store.log.Warn("an unfinished blob stays until the next garbage collection", "ref", s.ref, "err", err)
	}
}
