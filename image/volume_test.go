package image

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
)

// TestVolumes mounts parts of an image, and keeps it while they are.
func TestVolumes(t *testing.T) {
	f := newFakeRegistry(t)
	pushed := f.push("v", "1", []testLayer{
		makeLayer(t, "gzip", map[string]string{"data/a": "below", "data/b": "b", "only/here": "o"}), makeLayer(t, "gzip", map[string]string{"data/a": "above"}),
	})
	s := openStore(t, Config{})
	mustPull(t, s, pushed.ref)
	for number, c := range []struct {
		path, kind, read, want string
	}{{"", "overlay", "data/a", "above"}, {"data", "overlay", "b", "b"}, {"only", "bind", "here", "o"}} {
		for range 2 {
			m, err := s.Volume(t.Context(), "c1", number, pushed.id, c.path)
			if err != nil || m.Type != c.kind || !slices.Contains(m.Options, "ro") {
				t.Fatalf("%q: %+v, %v", c.path, m, err)
			}
			if got := readMounted(t, []mount.Mount{m}, c.read); got != c.want {
				t.Errorf("%q reads %q", c.path, got)
			}
		}
	}
	if m, err := s.Volume(t.Context(), "c1", 3, pushed.id, "data/b"); err != nil || m.Type != "bind" || filepath.Base(m.Source) != "b" {
		t.Errorf("a file: %+v, %v", m, err)
	}
	if _, err := s.Volume(t.Context(), "c1", 4, pushed.id, "data/c"); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "data/c") {
		t.Errorf("a path that is not there: %v", err)
	}
	if err := s.Remove(t.Context(), pushed.ref); err != nil {
		t.Fatal(err)
	}
	if keys, err := s.Keys(t.Context()); err != nil || !slices.Equal(keys, []string{"c1"}) {
		t.Errorf("keys %v, %v", keys, err)
	}
	for range 2 {
		if err := s.Release(t.Context(), "c1"); err != nil {
			t.Fatal(err)
		}
	}
	assertEmpty(t, s)
}

// TestScratch writes to volumes that an image asks for.
func TestScratch(t *testing.T) {
	f := newFakeRegistry(t)
	pushed := f.push("v", "1", []testLayer{makeLayer(t, "gzip", map[string]string{"data/a": "below", "file": "f"}), makeLayer(t, "gzip", map[string]string{"data/b": "b"})})
	s := openStore(t, Config{})
	mustPull(t, s, pushed.ref)
	for number, path := range []string{"/data", "/new"} {
		var first mount.Mount
		for i := range 2 {
			m, err := s.Scratch(t.Context(), "c1", number, pushed.id, path)
			if err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				first = m
			} else if m.Source != first.Source || option(m.Options, "upperdir=") != option(first.Options, "upperdir=") {
				t.Errorf("%s again: %+v, at first %+v", path, m, first)
			}
			at := t.TempDir()
			if err := mount.All([]mount.Mount{m}, at); err != nil {
				t.Fatal(err)
			}
			got, _ := os.ReadFile(at + "/a")
			left, _ := os.ReadFile(at + "/left")
			if err := os.WriteFile(at+"/left", []byte("left"), 0o644); err != nil {
				t.Error(err)
			}
			if err := mount.UnmountAll(at, 0); err != nil {
				t.Fatal(err)
			}
			if (string(got) == "below") != (path == "/data") || (string(left) == "left") != (i == 1) {
				t.Errorf("%s holds %q and %q", path, got, left)
			}
		}
	}
	if _, err := s.Scratch(t.Context(), "c1", 2, pushed.id, "/file"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a file as a volume: %v", err)
	}
	if err := s.Release(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), pushed.ref); err != nil {
		t.Fatal(err)
	}
	assertEmpty(t, s)
}
