package snapshotter

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestLayersAreShared(t *testing.T) {
	s := open(t, t.TempDir())
	a := addLayer(t, s, id("a", "a"), "a")
	b := addLayer(t, s, id("b", "b"), "b")
	// The same layer on two bases is one directory.
	app1 := addLayer(t, s, id("app", "a+app"), "app")
	app2 := addLayer(t, s, id("app", "b+app"), "written twice")
	if app1.Path() != app2.Path() {
		t.Errorf("one diffID has the directories %s and %s", app1.Path(), app2.Path())
	}
	mustChain(t, s, "", Link{Name: "a", Layer: a}, Link{Name: "a+app", Layer: app1})
	mustChain(t, s, "", Link{Name: "b", Layer: b}, Link{Name: "b+app", Layer: app2})
	for _, name := range []string{"a", "b"} {
		path, _ := mounted(t, mustPrepare(t, s, "key-"+name, name+"+app"))
		if got := list(t, path); !slices.Equal(got, slices.Sorted(slices.Values([]string{name, "app"}))) {
			t.Errorf("%s+app shows %q", name, got)
		}
	}
	wantEntries(t, s, layersDir, "1", "2", "3")
}

func TestLayerGoesWithItsLastUser(t *testing.T) {
	s := open(t, t.TempDir())
	a, app := addLayer(t, s, id("a", "a"), "a"), addLayer(t, s, id("app", "a+app"), "app")
	mustChain(t, s, "", Link{Name: "a", Layer: a}, Link{Name: "a+app", Layer: app})
	mustChain(t, s, "", Link{Name: "app", Layer: app})
	app.Release()
	for _, step := range []struct {
		remove string
		left   []string
	}{
		{"app", []string{"1", "2"}}, {"a+app", []string{"1"}}, {"a", []string{"1"}},
	} {
		if err := s.Remove(t.Context(), step.remove); err != nil {
			t.Fatal(err)
		}
		wantEntries(t, s, layersDir, step.left...)
	}
	// It is held, and then kept for the grace of a pull that is tried again.
	a.Release()
	if err := s.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantEntries(t, s, layersDir, "1")
	s = reopen(t, s, WithLayerGrace(0))
	if l := addLayer(t, s, id("a", "a"), "written twice"); !slices.Equal(list(t, l.Path()), []string{"a"}) {
		t.Errorf("the layer holds %q, want what was committed", list(t, l.Path()))
	} else {
		l.Release()
	}
	if err := s.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantEntries(t, s, layersDir)
	wantEntries(t, s, trashDir)
}

// TestDoubleDiffID has one layer twice in a chain, which overlayfs refuses if it is mounted so.
func TestDoubleDiffID(t *testing.T) {
	s := open(t, t.TempDir())
	twice := addLayer(t, s, id("twice", "twice"), "x/f")
	between := addLayer(t, s, id("between", "between"), "g")
	if err := unix.Mknod(filepath.Join(s.path(layersDir, "2"), "x"), unix.S_IFCHR, 0); err != nil {
		t.Fatal(err)
	}
	mustChain(t, s, "", Link{Name: "1", Layer: twice}, Link{Name: "2", Layer: between}, Link{Name: "3", Layer: twice})
	dirs, err := s.LayerDirs(t.Context(), "3")
	if want := []string{twice.Path(), between.Path()}; err != nil || !slices.Equal(dirs, want) {
		t.Errorf("layers are %q, %v, want %q", dirs, err, want)
	}
	top, _ := mounted(t, mustPrepare(t, s, "top", "3"))
	if got := list(t, top); !slices.Equal(got, []string{"g", "x/f"}) {
		t.Errorf("the whole chain shows %q", got)
	}
	middle, _ := mounted(t, mustPrepare(t, s, "middle", "2"))
	if got := list(t, middle); !slices.Equal(got, []string{"g"}) {
		t.Errorf("the chain without its top shows %q", got)
	}
	if err := s.Remove(t.Context(), "3"); err != nil && !errdefs.IsFailedPrecondition(err) {
		t.Fatal(err)
	}
	wantEntries(t, s, layersDir, "1", "2")
}

func TestOpaqueRootHidesLayersBelow(t *testing.T) {
	requireRoot(t)
	s := open(t, t.TempDir())
	base := addLayer(t, s, id("base", "base"), "base")
	l, err := s.Layer(t.Context(), id("top", "base+top"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Release)
	writeFiles(t, l.Path(), "top")
	if err := unix.Setxattr(l.Path(), "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		t.Fatal(err)
	}
	if err := l.Commit(t.Context(), LayerStats{}); err != nil {
		t.Fatal(err)
	}
	mustChain(t, s, "", Link{Name: "base", Layer: base}, Link{Name: "top", Layer: l})
	s = reopen(t, s)
	path, _ := mounted(t, mustPrepare(t, s, "key", "top"))
	if got := list(t, path); !slices.Equal(got, []string{"top"}) {
		t.Errorf("it shows %q, want only the layer with the opaque root", got)
	}
}

func TestRootAttributesComeFromTheLayerThatHasThem(t *testing.T) {
	requireRoot(t)
	s := open(t, t.TempDir())
	base := addLayer(t, s, id("base", "base"), "f")
	if err := os.Chmod(base.Path(), 0o555); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(base.Path(), 5, 6); err != nil {
		t.Fatal(err)
	}
	top, err := s.Layer(t.Context(), id("top", "top"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(top.Release)
	if err := top.Commit(t.Context(), LayerStats{Size: 4096, Inodes: 1, RootImplied: true}); err != nil {
		t.Fatal(err)
	}
	mustChain(t, s, "", Link{Name: "base", Layer: base}, Link{Name: "top", Layer: top})
	view, err := s.View(t.Context(), "view", "top")
	if err != nil {
		t.Fatal(err)
	}
	for what, mounts := range map[string][]mount.Mount{"active": mustPrepare(t, s, "active", "top"), "view": view} {
		path, _ := mounted(t, mounts)
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil || st.Mode&0o7777 != 0o555 || st.Uid != 5 || st.Gid != 6 {
			t.Errorf("%s: the root is %o %d:%d, %v, want 0555 5:6", what, st.Mode, st.Uid, st.Gid, err)
		}
	}
}

// TestLayerIsWrittenOnce lets many callers want one layer at once.
func TestLayerIsWrittenOnce(t *testing.T) {
	s := open(t, t.TempDir())
	var writers, failed atomic.Int32
	var callers sync.WaitGroup
	for i := range 20 {
		callers.Go(func() {
			l, err := s.Layer(context.Background(), id("one", "one"))
			if err != nil {
				t.Error(err)
				return
			}
			defer l.Release()
			if l.Committed() {
				return
			}
			if failed.Add(1) <= 3 {
				return // this writer gives up; the next one has its turn
			}
			writers.Add(1)
			writeFiles(t, l.Path(), "f")
			time.Sleep(time.Duration(i%3) * time.Millisecond)
			if err := l.Commit(context.Background(), LayerStats{}); err != nil {
				t.Error(err)
			}
		})
	}
	callers.Wait()
	if writers.Load() != 1 {
		t.Errorf("%d wrote the layer, want one", writers.Load())
	}
	wantEntries(t, s, layersDir, "4")
}

func TestLayerWaitHonoursContext(t *testing.T) {
	s := open(t, t.TempDir())
	writer, err := s.Layer(t.Context(), id("a", "a"))
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Release()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := s.Layer(ctx, id("a", "b")); !errdefs.IsDeadlineExceeded(err) && ctx.Err() == nil {
		t.Errorf("%v, want the context's error", err)
	}
}

// TestKeyByChain has a layer whose content depends on what is below: one directory a chain, and nobody waits for the other.
func TestKeyByChain(t *testing.T) {
	s := open(t, t.TempDir())
	first, err := s.Layer(t.Context(), id("x", "a+x"))
	if err != nil {
		t.Fatal(err)
	}
	defer first.Release()
	second := make(chan *Layer)
	go func() {
		l, err := s.Layer(context.Background(), id("x", "b+x"))
		if err != nil {
			t.Error(err)
		}
		second <- l
	}()
	select {
	case <-second:
		t.Fatal("a second writer of the diffID did not wait")
	case <-time.After(20 * time.Millisecond):
	}
	first.KeyByChain()
	other := <-second
	defer other.Release()
	if other.Committed() || other.Path() == first.Path() {
		t.Fatal("the second writer got the first one's directory")
	}
	other.KeyByChain()
	for _, l := range []*Layer{first, other} {
		if err := l.Commit(t.Context(), LayerStats{}); err != nil {
			t.Fatal(err)
		}
	}
	s = reopen(t, s)
	if l := addLayer(t, s, id("x", "a+x")); l.Path() != first.Path() {
		t.Errorf("chain a+x is %s, want %s", l.Path(), first.Path())
	}
	third, err := s.Layer(t.Context(), id("x", "c+x"))
	if err != nil {
		t.Fatal(err)
	}
	defer third.Release()
	if third.Committed() {
		t.Error("another chain got a layer that depends on its chain")
	}
}

// TestMissingLayerIsReportedAndWrittenAgain removes a directory behind the snapshotter's back.
func TestMissingLayerIsReportedAndWrittenAgain(t *testing.T) {
	s := open(t, t.TempDir())
	l := addLayer(t, s, id("a", "a"), "f")
	mustChain(t, s, "", Link{Name: "snapshot", Layer: l})
	l.Release()
	if problems := s.Problems(t.Context()); len(problems) != 0 {
		t.Fatalf("problems: %v", problems)
	}
	if err := os.RemoveAll(l.Path()); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, s)
	problems := s.Problems(t.Context())
	if len(problems) != 1 || !errdefs.IsDataLoss(problems[0]) || !strings.Contains(problems[0].Error(), l.Path()) {
		t.Fatalf("problems are %v, want the missing directory", problems)
	}
	if _, err := s.Prepare(t.Context(), "key", "snapshot"); !errdefs.IsDataLoss(err) {
		t.Errorf("prepare: %v, want data loss", err)
	}
	if _, err := s.LayerDirs(t.Context(), "snapshot"); !errdefs.IsDataLoss(err) {
		t.Errorf("layer directories: %v, want data loss", err)
	}
	again := addLayer(t, s, id("a", "a"), "f")
	if again.Path() != l.Path() || !slices.Equal(list(t, again.Path()), []string{"f"}) {
		t.Errorf("it was written to %s with %q", again.Path(), list(t, again.Path()))
	}
	if problems := s.Problems(t.Context()); len(problems) != 0 {
		t.Errorf("problems after the repair: %v", problems)
	}
	mustPrepare(t, s, "key", "snapshot")
	wantEntries(t, s, layersDir, "1")
}

func TestChainErrors(t *testing.T) {
	s := open(t, t.TempDir())
	a, b := addLayer(t, s, id("a", "a"), "a"), addLayer(t, s, id("b", "b"), "b")
	mustChain(t, s, "", Link{Name: "1", Layer: a})
	mustChain(t, s, "", Link{Name: "1", Layer: a}, Link{Name: "2", Layer: b})
	mustPrepare(t, s, "active", "")
	uncommitted, err := s.Layer(t.Context(), id("c", "c"))
	if err != nil {
		t.Fatal(err)
	}
	defer uncommitted.Release()
	for name, c := range map[string]struct {
		parent string
		links  []Link
		is     func(error) bool
	}{
		"unknown parent":      {"none", []Link{{Name: "x", Layer: a}}, errdefs.IsNotFound},
		"active parent":       {"active", []Link{{Name: "x", Layer: a}}, errdefs.IsInvalidArgument},
		"other layer":         {"", []Link{{Name: "x", Layer: a}, {Name: "1", Layer: b}}, errdefs.IsAlreadyExists},
		"other parent":        {"", []Link{{Name: "2", Layer: b}}, errdefs.IsAlreadyExists},
		"taken by an active":  {"", []Link{{Name: "active", Layer: a}}, errdefs.IsAlreadyExists},
		"layer not committed": {"", []Link{{Name: "x", Layer: uncommitted}}, errdefs.IsFailedPrecondition},
		"no name":             {"", []Link{{Name: "", Layer: a}}, errdefs.IsInvalidArgument},
	} {
		if err := s.Chain(t.Context(), c.parent, c.links); !c.is(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := keys(t, s); got != "1 2 active" {
		t.Errorf("snapshots are %q; a chain that fails leaves none", got)
	}
	if err := s.Remove(t.Context(), "1"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("remove a parent: %v", err)
	}
}

// TestConcurrentPullsAndRemovals has images that share layers come and go at once.
func TestConcurrentPullsAndRemovals(t *testing.T) {
	s := open(t, t.TempDir(), WithLayerGrace(0))
	pull := func(image string) error {
		ctx := context.Background()
		var links []Link
		for _, part := range []string{"base", "base2", image} {
			l, err := s.Layer(ctx, id(part, part))
			if err != nil {
				return err
			}
			defer l.Release()
			if !l.Committed() {
				if err := os.WriteFile(filepath.Join(l.Path(), part), nil, 0o644); err != nil {
					return err
				}
				if err := l.Commit(ctx, LayerStats{}); err != nil {
					return err
				}
			}
			links = append(links, Link{Name: part, Layer: l})
		}
		return s.Chain(ctx, "", links)
	}
	var work sync.WaitGroup
	for _, image := range []string{"x", "y", "z"} {
		work.Go(func() {
			for range 10 {
				if err := pull(image); err != nil {
					t.Errorf("pull %s: %v", image, err)
					return
				}
				for _, name := range []string{image, "base2", "base"} {
					// Another image's pull may be using the bases, or have removed them.
					if err := s.Remove(context.Background(), name); err != nil && name == image {
						t.Errorf("remove %s: %v", name, err)
					}
				}
				if err := s.Cleanup(context.Background()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	work.Wait()
	for _, name := range []string{"base2", "base"} {
		_ = s.Remove(t.Context(), name)
	}
	if err := s.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := keys(t, s); got != "" {
		t.Errorf("snapshots %q are left", got)
	}
	for _, dir := range []string{layersDir, activeDir, trashDir} {
		wantEntries(t, s, dir)
	}
	if len(s.index.layers)+len(s.index.keyed)+len(s.index.flights)+len(s.index.busy) != 0 {
		t.Errorf("the index is not empty: %+v", s.index)
	}
}
