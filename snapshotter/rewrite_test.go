package snapshotter

import (
	"context"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// mustRewrite puts files in the place of those of a layer.
func mustRewrite(t *testing.T, s *Snapshotter, id LayerID, files ...string) {
	t.Helper()
	l, key, err := s.Rewrite(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release()
	if key != id.DiffID && key != id.ChainID || l.Old() == l.Path() {
		t.Errorf("the key is %s, the path %s in place of %s", key, l.Path(), l.Old())
	}
	writeFiles(t, l.Path(), files...)
	if err := l.Commit(t.Context(), LayerStats{}); err != nil {
		t.Fatal(err)
	}
}

func mustCleanup(t *testing.T, s *Snapshotter) {
	t.Helper()
	if err := s.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestRewrite(t *testing.T) {
	s := open(t, t.TempDir(), WithLayerGrace(time.Hour))
	a := addLayer(t, s, id("a", "a"), "old")
	mustChain(t, s, "", Link{Name: "a", Layer: a})
	a.Release()
	mustRewrite(t, s, id("a", "a"), "new") // nobody uses it: the old directory is garbage
	mustCleanup(t, s)
	wantEntries(t, s, layersDir, "1")
	if got := list(t, s.layerPath(1)); !slices.Equal(got, []string{"new"}) {
		t.Errorf("the layer holds %q", got)
	}

	l, _, err := s.Rewrite(t.Context(), id("a", "a"))
	if err != nil {
		t.Fatal(err)
	}
	if got := addLayer(t, s, id("a", "a+x")); got.Path() != s.layerPath(1) {
		t.Errorf("while it is rewritten the layer is %s", got.Path())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, _, err := s.Rewrite(ctx, id("a", "a")); err == nil {
		t.Error("two rewrite it at once")
	}
	writeFiles(t, l.Path(), "not wanted")
	l.Release()
	wantEntries(t, s, layersDir, "1")
	if got := list(t, s.layerPath(1)); !slices.Equal(got, []string{"new"}) {
		t.Errorf("after a rewrite that was given up the layer holds %q", got)
	}
	if _, _, err := s.Rewrite(t.Context(), id("none", "none")); !errdefs.IsNotFound(err) {
		t.Errorf("rewrite of nothing: %v", err)
	}
	if err := os.RemoveAll(s.layerPath(1)); err != nil {
		t.Fatal(err)
	}
	mustRewrite(t, s, id("a", "a"), "again")
	if got := list(t, s.layerPath(1)); !slices.Equal(got, []string{"again"}) {
		t.Errorf("the layer that was gone holds %q", got)
	}
}

// TestRewriteUnderMounts rewrites a layer that is mounted, and restarts before the mount is gone.
func TestRewriteUnderMounts(t *testing.T) {
	s := open(t, t.TempDir())
	base, top := addLayer(t, s, id("base", "base"), "base/old"), addLayer(t, s, id("top", "base+top"), "top")
	mustChain(t, s, "", Link{Name: "base", Layer: base}, Link{Name: "base+top", Layer: top})
	base.Release()
	top.Release()
	path, unmount := mounted(t, mustPrepare(t, s, "running", "base+top"))
	mustPrepare(t, s, "other", "")
	mustRewrite(t, s, id("base", "base"), "base/new")
	mustCleanup(t, s)
	wantEntries(t, s, layersDir, "1", "2", "5")
	if got := list(t, path); !slices.Equal(got, []string{"base/old", "top"}) {
		t.Errorf("the mount shows %q", got)
	}
	next, _ := mounted(t, mustPrepare(t, s, "next", "base+top"))
	if got := list(t, next); !slices.Equal(got, []string{"base/new", "top"}) {
		t.Errorf("the next mount shows %q", got)
	}
	s = reopen(t, s)
	mustCleanup(t, s)
	wantEntries(t, s, layersDir, "1", "2", "5")
	if problems := s.Problems(t.Context()); len(problems) > 0 {
		t.Error(problems)
	}
	unmount()
	if err := s.Remove(t.Context(), "running"); err != nil {
		t.Fatal(err)
	}
	mustCleanup(t, s)
	wantEntries(t, s, layersDir, "1", "2")
}

// TestRewriteKilled leaves what a kill leaves after the record of the old directory and before the exchange.
func TestRewriteKilled(t *testing.T) {
	s := open(t, t.TempDir())
	a := addLayer(t, s, id("a", "a"), "old")
	mustChain(t, s, "", Link{Name: "a", Layer: a})
	a.Release()
	mustPrepare(t, s, "running", "a")
	writeFiles(t, s.layerPath(7), "new")
	retired := &layer{number: 7, retired: []string{"running"}, created: now()}
	if err := s.db.apply(change{putLayers: map[uint64]layerRecord{7: retired.record()}}); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, s)
	mustCleanup(t, s)
	wantEntries(t, s, layersDir, "1", "7")
	if got := list(t, s.layerPath(1)); !slices.Equal(got, []string{"old"}) {
		t.Errorf("the layer holds %q", got)
	}
	if err := s.Remove(t.Context(), "running"); err != nil {
		t.Fatal(err)
	}
	mustCleanup(t, s)
	wantEntries(t, s, layersDir, "1")
}
