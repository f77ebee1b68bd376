package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/internal/ctxio"
)

// CheckOptions say what is checked, and whether it is mended.
type CheckOptions struct {
	// Ref is one image; "" is all.
	Ref string
	// Repair mends what is broken: blobs are fetched again from where the image came from, layers unpacked again. Only with it
	// is anything fetched or changed.
	Repair bool
	// Auth is the credential for fetching.
	Auth Auth
	// Report, when set, is told of each finding as it is made.
	Report func(Finding)
}

// Finding is something that is not as it should be.
type Finding struct {
	// What is a blob, a layer or a record, by its digest or number.
	What string
	// Images that have it, by name.
	Images []string
	// Problem says what is wrong, and when Repaired is false and Repair was asked for, why it stays.
	Problem  string
	Repaired bool
}

// Checked counts what a check has seen.
type Checked struct {
	Images, Blobs, Layers int
	// Absent blobs are not kept here; of layers whose blob is absent only the figures were compared, and they count as Unverified.
	Absent, Unverified int
	Bytes              int64
	Broken, Repaired   int
}

// Check reads all blobs of images, or of one, and compares them with their digests, and all layer directories with what their
// blobs unpack to. A layer whose blob is not kept is compared with the figures that were written down when it was
// unpacked; with Repair its blob is fetched for the comparison. What is broken is mended alone, and only with Repair.
//
// A layer that containers use is replaced beneath them: those that run keep the old directory, broken as it is, until
// they end; those that start later get the new one.
func (s *Store) Check(ctx context.Context, o CheckOptions) (Checked, error) {
	ctx, release, err := s.lease(s.storeContext(ctx))
	if err != nil {
		return Checked{}, fmt.Errorf("check: %w", err)
	}
	defer release()
	c := &checker{s: s, o: o, blobs: map[digest.Digest]state{}, layers: map[string]bool{}}
	if err := c.run(ctx); err != nil {
		return c.sum, fmt.Errorf("check: %w", err)
	}
	if c.sum.Repaired > 0 {
		s.gc.kick() // directories that were replaced
	}
	return c.sum, nil
}

// state of a blob.
type state int

const (
	unknown state = iota
	sound
	absent // not kept
	broken
)

// checker is one check under way.
type checker struct {
	s      *Store
	o      CheckOptions
	sum    Checked
	blobs  map[digest.Digest]state
	layers map[string]bool // checked, by diffID and chainID
}

// subject is what is checked at the moment.
type subject struct {
	names   []string
	origins *origins
	spoiled bool // a layer below is broken and stays so
}

func (c *checker) run(ctx context.Context) error {
	records, err := c.records(ctx)
	if err != nil {
		return err
	}
	if c.o.Ref == "" {
		for _, problem := range c.s.snapshots.Problems(ctx) {
			if !errdefs.IsDataLoss(problem) || !strings.Contains(problem.Error(), "is gone") { // those come with their image
				c.found(Finding{What: "record", Problem: problem.Error()})
			}
		}
	}
	for _, id := range sortedKeys(records) {
		c.sum.Images++
		for _, record := range records[id] {
			if err := c.record(ctx, id, record); err != nil {
				return err
			}
		}
	}
	return nil
}

// records are those of the images to check, by ID.
func (c *checker) records(ctx context.Context) (map[string][]images.Image, error) {
	only := ""
	if c.o.Ref != "" {
		e, err := c.s.index.find(c.o.Ref)
		if err != nil {
			return nil, err
		}
		only = e.ID
	}
	all, err := c.s.images.List(ctx)
	if err != nil {
		return nil, err
	}
	records := map[string][]images.Image{}
	for _, record := range all {
		c.s.index.mu.RLock()
		known, ok := c.s.index.byName[record.Name]
		c.s.index.mu.RUnlock()
		if ok && (only == "" || known.id == only) {
			records[known.id] = append(records[known.id], record)
		}
	}
	return records, nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// found counts and reports a finding.
func (c *checker) found(f Finding) {
	c.sum.Broken++
	if f.Repaired {
		c.sum.Repaired++
	}
	if c.o.Report != nil {
		c.o.Report(f)
	}
}

// record checks what one name of an image means. An error is one of the check's, not of what it checks.
func (c *checker) record(ctx context.Context, id string, record images.Image) error {
	names := c.s.index.names(id)
	sub := &subject{names: names, origins: c.s.newOrigins(names, c.o.Auth)}
	defer sub.origins.close()
	read := func(ctx context.Context, d ocispec.Descriptor) ([]byte, error) { return c.document(ctx, sub, d) }
	all, err := partsOf(ctx, plain(record.Target), read)
	var stays *unrepaired
	switch {
	case errors.As(err, &stays):
		return nil // reported; nothing below it can be found
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		c.found(Finding{What: record.Target.Digest.String(), Images: names, Problem: err.Error()})
		return nil
	}
	for _, d := range all.blobs {
		if err := c.blob(ctx, sub, d); err != nil {
			return err
		}
	}
	manifest, err := c.s.manifestOf(ctx, record)
	if err != nil {
		c.found(Finding{What: record.Labels[labelManifest], Images: names, Problem: err.Error()})
		return nil
	}
	return c.image(ctx, sub, manifest)
}

// unrepaired is a document that is broken and stays so.
type unrepaired struct{ d digest.Digest }

func (u *unrepaired) Error() string { return u.d.String() + " is broken" }

// document reads a manifest or an index, and mends it.
func (c *checker) document(ctx context.Context, sub *subject, d ocispec.Descriptor) ([]byte, error) {
	if err := c.blob(ctx, sub, d); err != nil {
		return nil, err
	}
	switch c.blobs[d.Digest] {
	case absent:
		return nil, fmt.Errorf("%s: %w", d.Digest, errdefs.ErrNotFound)
	case broken:
		return nil, &unrepaired{d.Digest}
	}
	return content.ReadBlob(ctx, c.s.content, plain(d))
}

// blob checks one blob, once, and mends it.
func (c *checker) blob(ctx context.Context, sub *subject, d ocispec.Descriptor) error {
	if c.blobs[d.Digest] != unknown {
		return nil
	}
	c.sum.Blobs++
	err := c.readBlob(ctx, d)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err == nil:
		c.blobs[d.Digest] = sound
		return nil
	case errors.Is(err, errNotKept):
		c.sum.Absent++
		c.blobs[d.Digest] = absent
		return nil
	}
	c.blobs[d.Digest] = broken
	f := Finding{What: "blob " + d.Digest.String(), Images: sub.names, Problem: err.Error()}
	if c.o.Repair {
		if err := c.refetch(ctx, sub, d); err != nil {
			f.Problem += "; it stays: " + err.Error()
		} else {
			c.blobs[d.Digest], f.Repaired = sound, true
		}
	}
	c.found(f)
	return nil
}

var errNotKept = errors.New("the blob is not kept")

// readBlob reads a blob from disk and compares it with its descriptor. It changes nothing.
func (c *checker) readBlob(ctx context.Context, d ocispec.Descriptor) error {
	if _, err := c.s.content.Info(ctx, d.Digest); errdefs.IsNotFound(err) {
		return errNotKept
	} else if err != nil {
		return err
	}
	reader, err := c.s.content.ReaderAt(ctx, plain(d))
	if errdefs.IsNotFound(err) {
		return errors.New("its file is gone")
	}
	if err != nil {
		return err
	}
	defer reader.Close()
	n, err := io.Copy(io.Discard, ctxio.Reader(ctx, newVerifying(io.NewSectionReader(reader, 0, reader.Size()), reader, d)))
	c.sum.Bytes += n
	return err
}

// refetch gets a blob again, with the labels that its record had. The broken one goes once the registry answers.
func (c *checker) refetch(ctx context.Context, sub *subject, d ocispec.Descriptor) error {
	info, err := c.s.content.Info(ctx, d.Digest)
	if err != nil {
		return err
	}
	r, err := sub.origins.open(ctx, d)
	if err != nil {
		return err
	}
	defer r.Close()
	c.s.discard(ctx, d, "it is fetched again")
	d = plain(d)
	if err := content.WriteBlob(ctx, c.s.content, ingestRef(ctx, d), r, d, content.WithLabels(info.Labels)); err != nil {
		_ = c.s.content.Abort(context.WithoutCancel(ctx), ingestRef(ctx, d))
		return fmt.Errorf("store blob %s: %w", d.Digest, err)
	}
	return nil
}

// image checks the layers of the image that is here.
func (c *checker) image(ctx context.Context, sub *subject, d ocispec.Descriptor) error {
	data, err := content.ReadBlob(ctx, c.s.content, d)
	if err != nil {
		return err
	}
	manifest, err := parseManifest(data, d.MediaType)
	if err == nil && c.blobs[manifest.Config.Digest] != sound {
		if c.blobs[manifest.Config.Digest] == absent {
			c.found(Finding{What: "blob " + manifest.Config.Digest.String(), Images: sub.names, Problem: "the configuration of the image is gone; pull it again"})
		}
		return nil
	}
	var config ocispec.Image
	if err == nil {
		if data, err = content.ReadBlob(ctx, c.s.content, plain(manifest.Config)); err == nil {
			config, err = parseConfig(data, len(manifest.Layers))
		}
	}
	if err != nil {
		c.found(Finding{What: d.Digest.String(), Images: sub.names, Problem: err.Error()})
		return nil
	}
	f := &found{target: d, manifest: d, layers: manifest.Layers, id: manifest.Config.Digest, diffIDs: config.RootFS.DiffIDs}
	f.chainIDs = identity.ChainIDs(append([]digest.Digest(nil), f.diffIDs...))
	return c.checkLayers(ctx, sub, f)
}
