package snapshotter

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

func open(t testing.TB, root string, opts ...Option) *Snapshotter {
	t.Helper()
	s, err := New(root, append([]Option{WithLog(slog.New(slog.DiscardHandler))}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// reopen is a restart of the process.
func reopen(t testing.TB, s *Snapshotter, opts ...Option) *Snapshotter {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return open(t, s.root, opts...)
}

func id(diff, chain string) LayerID {
	return LayerID{DiffID: digest.FromString(diff), ChainID: digest.FromString(chain)}
}

// addLayer commits a layer with the given files, or finds it.
func addLayer(t testing.TB, s *Snapshotter, id LayerID, files ...string) *Layer {
	t.Helper()
	l, err := s.Layer(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Release)
	if l.Committed() {
		return l
	}
	writeFiles(t, l.Path(), files...)
	if err := l.Commit(context.Background(), LayerStats{}); err != nil {
		t.Fatal(err)
	}
	return l
}

// writeFiles makes files whose content is their name.
func writeFiles(t testing.TB, dir string, files ...string) {
	t.Helper()
	for _, name := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func mustChain(t testing.TB, s *Snapshotter, parent string, links ...Link) {
	t.Helper()
	if err := s.Chain(context.Background(), parent, links); err != nil {
		t.Fatal(err)
	}
}

func mustPrepare(t testing.TB, s *Snapshotter, key, parent string, opts ...snapshots.Opt) []mount.Mount {
	t.Helper()
	mounts, err := s.Prepare(context.Background(), key, parent, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return mounts
}

// mounted mounts at a new directory until the test ends, or unmount is called.
func mounted(t testing.TB, mounts []mount.Mount) (path string, unmount func()) {
	t.Helper()
	requireRoot(t)
	path = t.TempDir()
	if err := mount.All(mounts, path); err != nil {
		t.Fatalf("mount %v: %v", mounts, err)
	}
	done := false
	unmount = func() {
		if done {
			return
		}
		done = true
		if err := unix.Unmount(path, 0); err != nil {
			t.Errorf("unmount %s: %v", path, err)
		}
	}
	t.Cleanup(unmount)
	return path, unmount
}

// list names the files beneath a directory.
func list(t testing.TB, dir string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(dir, path)
			names = append(names, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// entries names what is in a directory of the snapshotter.
func entries(t testing.TB, s *Snapshotter, dir string) []string {
	t.Helper()
	found, err := os.ReadDir(s.path(dir))
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, entry := range found {
		names = append(names, entry.Name())
	}
	return names
}

func wantEntries(t testing.TB, s *Snapshotter, dir string, want ...string) {
	t.Helper()
	if got := entries(t, s, dir); !slices.Equal(got, want) {
		t.Errorf("%s holds %q, want %q", dir, got, want)
	}
}

func keys(t testing.TB, s *Snapshotter) string {
	t.Helper()
	var names []string
	err := s.Walk(context.Background(), func(_ context.Context, info snapshots.Info) error {
		names = append(names, info.Name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(names, " ")
}
