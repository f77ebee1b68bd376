package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"

	"github.com/criserver/criserver/image/layer"
	"github.com/criserver/criserver/image/registry"
	"github.com/criserver/criserver/snapshotter"
)

// checkLayers checks the layers of an image, the lowest first, since those above may be made of what is below.
func (c *checker) checkLayers(ctx context.Context, sub *subject, f *found) error {
	chain := digestStrings(f.chainIDs)
	if err := c.s.keeper.hold(ctx, chain); err != nil {
		return err
	}
	defer c.s.keeper.drop(chain)
	repaired := false
	sub.spoiled = false
	for i := range f.layers {
		id := snapshotter.LayerID{DiffID: f.diffIDs[i], ChainID: f.chainIDs[i]}
		if c.layers[id.DiffID.String()] || c.layers[id.ChainID.String()] {
			continue
		}
		broken := c.sum.Broken - c.sum.Repaired
		mended, err := c.checkLayer(ctx, sub, f, i, id)
		sub.spoiled = sub.spoiled || c.sum.Broken-c.sum.Repaired > broken
		if err != nil {
			return err
		}
		repaired = repaired || mended
	}
	if repaired {
		c.s.forgetFiles(f.id.String())
	}
	return nil
}

// forgetFiles forgets what was read of an image's files.
func (s *Store) forgetFiles(id string) {
	if e, err := s.index.find(id); err == nil {
		e.files.mu.Lock()
		clear(e.files.read)
		e.files.mu.Unlock()
	}
}

// checkLayer checks one layer and mends it. An error is one of the check's own.
func (c *checker) checkLayer(ctx context.Context, sub *subject, f *found, i int, id snapshotter.LayerID) (mended bool, err error) {
	c.sum.Layers++
	if blob := c.blobs[f.layers[i].Digest]; blob != sound && (blob == broken || !c.o.Repair) {
		c.layers[id.ChainID.String()] = true
		return false, c.checkFigures(ctx, sub, f, i)
	}
	hold, key, err := c.s.snapshots.Rewrite(ctx, id)
	if errdefs.IsNotFound(err) {
		return c.missing(ctx, sub, f, i, "it has no record")
	}
	if err != nil {
		return false, err
	}
	defer hold.Release()
	c.layers[key.String()] = true
	if _, err := os.Lstat(hold.Old()); err != nil {
		hold.Release()
		return c.missing(ctx, sub, f, i, "its directory is gone")
	}
	result, err := c.unpackAgain(ctx, sub, f, i, hold, key)
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	if errors.Is(err, errSpoiled) {
		c.sum.Unverified++
		return false, nil
	}
	if err != nil {
		c.sum.Unverified++
		c.found(c.layerFinding(sub, f, i, "it cannot be verified: "+err.Error()))
		return false, nil
	}
	problem, err := compareDirs(ctx, hold)
	if err != nil || problem == "" {
		return false, err
	}
	finding := c.layerFinding(sub, f, i, problem)
	if c.o.Repair {
		err := hold.Commit(ctx, snapshotter.LayerStats{Size: result.Size, Inodes: result.Inodes, RootImplied: result.RootImplied})
		if finding.Repaired = err == nil; err != nil {
			finding.Problem += "; it stays: " + err.Error()
		}
	}
	c.found(finding)
	return finding.Repaired, nil
}

func (c *checker) layerFinding(sub *subject, f *found, i int, problem string) Finding {
	return Finding{What: fmt.Sprintf("layer %s (%d of %d)", f.diffIDs[i], i+1, len(f.layers)), Images: sub.names, Problem: problem}
}

// compareDirs compares what is with what was unpacked again.
func compareDirs(ctx context.Context, hold *snapshotter.Layer) (string, error) {
	old, err := os.Open(hold.Old())
	if err != nil {
		return "", err
	}
	defer old.Close()
	return layer.Difference(ctx, old, hold.Dir())
}

// errSpoiled says that a layer is made of others that are broken: it will differ while they do.
var errSpoiled = errors.New("a layer below is broken")

// unpackAgain writes layer i anew, from its blob here or from where the image came from.
func (c *checker) unpackAgain(ctx context.Context, sub *subject, f *found, i int, hold *snapshotter.Layer, key digest.Digest) (layer.Result, error) {
	p, err := c.pull(ctx, sub)
	if err != nil {
		return layer.Result{}, err
	}
	result, source, err := p.unpack(ctx, hold, f.layers[i], f.diffIDs[i])
	if source != nil {
		defer source.close(ctx)
	}
	if err == nil {
		err = hold.Sync(ctx) // for the blob
	}
	if err == nil {
		err = source.commit(ctx, f.layers[i])
	}
	if err != nil || !result.NeedsParents() {
		return result, err
	}
	if sub.spoiled {
		return result, errSpoiled
	}
	if key != f.chainIDs[i] {
		return result, fmt.Errorf("it is made of the layers below it, and is kept as if it were not: %w", errdefs.ErrDataLoss)
	}
	var below []string
	for j := i - 1; j >= 0; j-- {
		dirs, err := c.s.snapshots.LayerDirs(ctx, f.chainIDs[j].String())
		if err != nil {
			return result, err
		}
		below = append(below, dirs[0])
	}
	return result, layer.Adopt(ctx, hold.Dir(), &result, below)
}

// pull makes what unpacks layers from where the image came from.
func (c *checker) pull(ctx context.Context, sub *subject) (*pull, error) {
	named, err := parseName(sub.names[0])
	if err != nil {
		return nil, err
	}
	p := &pull{s: c.s, named: named, platform: platforms.Default(), began: time.Now()}
	p.repo = registry.Nowhere(named.String(), "its blob is not kept, and nothing says where it came from")
	if len(sub.origins.repositories) > 0 && c.o.Repair {
		p.repo, err = sub.origins.repository(ctx, sub.origins.repositories[0])
	}
	return p, err
}

// missing reports a layer without a directory, and makes it as a pull would.
func (c *checker) missing(ctx context.Context, sub *subject, f *found, i int, problem string) (bool, error) {
	c.layers[f.chainIDs[i].String()] = true
	finding := c.layerFinding(sub, f, i, problem)
	if c.o.Repair {
		p, err := c.pull(ctx, sub)
		if err == nil {
			err = p.fetchLayers(ctx, f)
		}
		if finding.Repaired = err == nil; err != nil {
			finding.Problem += "; it stays: " + err.Error()
		}
	}
	c.found(finding)
	return finding.Repaired, nil
}

// checkFigures compares a layer with what was written down when it was made.
func (c *checker) checkFigures(ctx context.Context, sub *subject, f *found, i int) error {
	c.sum.Unverified++
	dirs, err := c.s.snapshots.LayerDirs(ctx, f.chainIDs[i].String())
	if err != nil || len(dirs) == 0 {
		c.found(c.layerFinding(sub, f, i, errors.Join(err, errdefs.ErrDataLoss).Error()))
		return nil
	}
	usage, err := c.s.snapshots.Usage(ctx, f.chainIDs[i].String())
	if err != nil {
		return err
	}
	dir, err := os.Open(dirs[0])
	if err != nil {
		return err
	}
	defer dir.Close()
	size, inodes, err := layer.Measure(ctx, dir)
	if err != nil {
		return err
	}
	if inodes != usage.Inodes {
		c.found(c.layerFinding(sub, f, i, fmt.Sprintf("it has %d files, and had %d when it was made (%d and %d bytes)", inodes, usage.Inodes, size, usage.Size)))
	}
	return nil
}
