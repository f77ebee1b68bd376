package image

import (
	"archive/tar"
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// check runs a check and answers its findings, too.
func check(t *testing.T, s *Store, o CheckOptions) (Checked, []Finding) {
	t.Helper()
	var found []Finding
	o.Report = func(f Finding) { found = append(found, f) }
	sum, err := s.Check(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if sum.Broken != len(found) {
		t.Errorf("%d broken, %d reported", sum.Broken, len(found))
	}
	assertNothingHalfMade(t, s)
	return sum, found
}

func assertSound(t *testing.T, s *Store, images, layers int) {
	t.Helper()
	if sum, found := check(t, s, CheckOptions{}); len(found) > 0 || sum.Images != images || sum.Layers != layers {
		t.Errorf("%+v, %+v", sum, found)
	}
}

// implyingLayer leaves out the directories that its file lies in, and links to a file of a layer below.
func implyingLayer(t *testing.T) testLayer {
	t.Helper()
	return packLayer(t, "gzip", makeArchive(t, member{name: "dir/sub/new", body: []byte("new")}, member{name: "dir/linked", kind: tar.TypeLink, link: "dir/file"}))
}

func layerDirs(t *testing.T, s *Store, ref string) []string {
	t.Helper()
	dirs, err := s.Directories(s.storeContext(t.Context()), ref)
	if err != nil {
		t.Fatal(err)
	}
	return dirs
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestCheckLayers(t *testing.T) {
	f := newFakeRegistry(t)
	image := f.push("app", "1", []testLayer{
		makeLayer(t, "gzip", map[string]string{"dir/file": "content", "dir/other": "other", "gone/a": "a"}),
		packLayer(t, "zstd", makeArchive(t, member{name: "./", kind: tar.TypeDir}, member{name: "gone/", kind: tar.TypeDir}, member{name: "gone/.wh.a"})),
		implyingLayer(t),
	})
	f.push("derived", "1", append([]testLayer{image.layers[0]}, makeLayer(t, "", map[string]string{"more": "more"})))
	s := openStore(t, Config{})
	mustPull(t, s, image.ref)
	mustPull(t, s, f.host+"/derived:1")
	assertSound(t, s, 2, 4)
	dirs := layerDirs(t, s, image.id)
	low, middle, top := dirs[2], dirs[1], dirs[0]
	for name, tt := range map[string]struct {
		spoil func() error
		says  string
	}{
		"content":       {func() error { return os.WriteFile(low+"/dir/file", []byte("CONTENT"), 0) }, "/dir/file: its"},
		"length":        {func() error { return os.Truncate(low+"/dir/file", 3) }, "it has 3 bytes, not 7"},
		"mode":          {func() error { return os.Chmod(low+"/dir", 0o700) }, "/dir: its type and mode are"},
		"owner":         {func() error { return os.Chown(low+"/dir/other", 5, 5) }, "its owner is 5:5, not 0:0"},
		"time":          {func() error { return os.Chtimes(low+"/dir/other", time.Time{}, time.Unix(5, 0)) }, "its time of change"},
		"a new file":    {func() error { return os.WriteFile(low+"/dir/more", nil, 0o600) }, "/dir/more: it does not belong there"},
		"a lost file":   {func() error { return os.Remove(low + "/dir/other") }, "/dir/other: it is missing"},
		"a lost mark":   {func() error { return os.Remove(middle + "/gone/a") }, "/gone/a: it is missing"},
		"an attribute":  {func() error { return unix.Setxattr(low+"/dir", "trusted.overlay.opaque", []byte("y"), 0) }, "attribute trusted.overlay.opaque"},
		"of the root":   {func() error { return os.Chmod(middle, 0o700) }, "/: its type and mode"},
		"another type":  {func() error { _ = os.Remove(low + "/dir/other"); return os.Mkdir(low+"/dir/other", 0o755) }, "/dir/other: its type"},
		"an adopted":    {func() error { return os.WriteFile(top+"/dir/linked", []byte("x"), 0) }, "/dir/linked: it has 1 bytes"},
		"the directory": {func() error { return os.RemoveAll(low) }, "its directory is gone"},
	} {
		t.Run(name, func(t *testing.T) {
			must(t, tt.spoil())
			sum, found := check(t, s, CheckOptions{})
			if len(found) != 1 || !strings.Contains(found[0].Problem, tt.says) || found[0].Repaired || !strings.HasPrefix(found[0].What, "layer sha256:") {
				t.Fatalf("%+v, %+v", sum, found)
			}
			if _, again := check(t, s, CheckOptions{Ref: image.ref}); len(again) != 1 {
				t.Errorf("a check without repair changed something: %+v", again)
			}
			sum, found = check(t, s, CheckOptions{Repair: true})
			if len(found) != 1 || !found[0].Repaired || sum.Repaired != 1 {
				t.Fatalf("%+v, %+v", sum, found)
			}
			assertSound(t, s, 2, 4)
		})
	}
	if got := f.blobGets(image.layers[0].Digest); got != 1 {
		t.Errorf("the layer was fetched %d times", got)
	}
	for _, id := range []string{image.id, f.host + "/derived:1"} {
		must(t, s.Remove(t.Context(), id))
	}
	assertEmpty(t, s)
}

// TestRepairUnderContainers repairs a layer that a container has mounted.
func TestRepairUnderContainers(t *testing.T) {
	f := newFakeRegistry(t)
	image := f.push("app", "1", []testLayer{makeLayer(t, "gzip", map[string]string{"a": "good", "b": "good", "etc/passwd": "root"})})
	root := t.TempDir()
	s := openStore(t, Config{Root: root})
	mustPull(t, s, image.ref)
	low := layerDirs(t, s, image.id)[0]
	old := low
	must(t, os.WriteFile(low+"/a", []byte("evil"), 0o644))
	must(t, os.WriteFile(low+"/etc/passwd", []byte("evil"), 0o644))
	if data, err := s.ReadFile(t.Context(), image.id, "/etc/passwd", 100); err != nil || string(data) != "evil" {
		t.Fatalf("%q, %v", data, err)
	}
	mounts, err := s.Prepare(t.Context(), "running", image.id)
	must(t, err)
	target := t.TempDir()
	must(t, mount.All(mounts, target))
	mounted := true
	unmount := func() {
		if mounted {
			mounted = false
			if err := mount.UnmountAll(target, 0); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(unmount)
	if sum, found := check(t, s, CheckOptions{Repair: true}); sum.Repaired != 1 {
		t.Fatalf("%+v, %+v", sum, found)
	}
	must(t, s.gc.run(s.storeContext(t.Context())))
	for name, want := range map[string]string{"a": "evil", "b": "good"} { // b is looked up only now
		if data, err := os.ReadFile(filepath.Join(target, name)); err != nil || string(data) != want {
			t.Errorf("the running container sees %s as %q, %v", name, data, err)
		}
	}
	must(t, os.WriteFile(filepath.Join(target, "b"), []byte("changed"), 0o644))
	next, err := s.Prepare(t.Context(), "next", image.id)
	must(t, err)
	if got := readMounted(t, next, "a", "b", "etc/passwd"); got != "goodgoodroot" {
		t.Errorf("the next container sees %q", got)
	}
	if data, err := s.ReadFile(t.Context(), image.id, "/etc/passwd", 100); err != nil || string(data) != "root" {
		t.Errorf("the image has %q, %v", data, err)
	}
	must(t, s.Close())
	s = openStore(t, Config{Root: root})
	must(t, s.gc.run(s.storeContext(t.Context())))
	if data, err := os.ReadFile(filepath.Join(target, "a")); err != nil || string(data) != "evil" {
		t.Errorf("after a restart the running container sees %q, %v", data, err)
	}
	assertSound(t, s, 1, 1)
	unmount()
	must(t, s.Release(t.Context(), "running"))
	must(t, s.gc.run(s.storeContext(t.Context())))
	entries, err := os.ReadDir(filepath.Dir(old))
	if err != nil || len(entries) != 1 {
		t.Errorf("layers left: %v, %v", entries, err)
	}
	must(t, s.Release(t.Context(), "next"))
	must(t, s.Remove(t.Context(), image.id))
	assertEmpty(t, s)
}

func TestCheckBlobs(t *testing.T) {
	f := newFakeRegistry(t)
	image := f.push("app", "1", []testLayer{makeLayer(t, "gzip", map[string]string{"a": "1"})})
	s := openStore(t, Config{})
	mustPull(t, s, image.ref)
	ctx := s.storeContext(t.Context())
	path := func(d digest.Digest) string { return s.path("content/blobs/sha256/" + d.Encoded()) }
	blobs := map[string]digest.Digest{"layer": image.layers[0].Digest, "manifest": image.manifest.Digest, "configuration": digest.Digest(image.id)}
	for name, d := range blobs {
		t.Run(name, func(t *testing.T) {
			data, err := os.ReadFile(path(d))
			must(t, err)
			must(t, os.Chmod(path(d), 0o600))
			must(t, os.WriteFile(path(d), bytes.Replace(data, []byte{data[len(data)/2]}, []byte{data[len(data)/2] ^ 1}, 1), 0o600))
			if _, found := check(t, s, CheckOptions{}); len(found) != 1 || found[0].What != "blob "+d.String() || !strings.Contains(found[0].Problem, "has the digest") {
				t.Fatalf("%+v", found)
			}
			f.setSpoil(unavailable)
			sum, found := check(t, s, CheckOptions{Repair: true})
			f.setSpoil(nil)
			if len(found) != 1 || found[0].Repaired || !strings.Contains(found[0].Problem, "it stays") || sum.Repaired > 0 {
				t.Fatalf("%+v", found)
			}
			if _, found := check(t, s, CheckOptions{Repair: true}); len(found) != 1 || !found[0].Repaired {
				t.Fatalf("%+v", found)
			}
			must(t, s.gc.run(ctx))
			assertSound(t, s, 1, 1)
			must(t, os.Remove(path(d)))
			if _, found := check(t, s, CheckOptions{Repair: true}); len(found) != 1 || !found[0].Repaired || !strings.Contains(found[0].Problem, "file is gone") {
				t.Fatalf("%+v", found)
			}
			must(t, s.gc.run(ctx))
			assertSound(t, s, 1, 1)
		})
	}
	if _, err := s.Check(t.Context(), CheckOptions{Ref: "example.com/none:1"}); !errdefs.IsNotFound(err) {
		t.Errorf("check of nothing: %v", err)
	}
}

// TestCheckWithoutBlob checks a layer whose blob is not kept.
func TestCheckWithoutBlob(t *testing.T) {
	f := newFakeRegistry(t)
	image := f.push("app", "1", []testLayer{makeLayer(t, "gzip", map[string]string{"a": "1", "b": "2"})})
	s := openStore(t, Config{})
	mustPull(t, s, image.ref)
	must(t, s.content.Delete(s.storeContext(t.Context()), image.layers[0].Digest))
	must(t, s.gc.run(s.storeContext(t.Context())))
	low := layerDirs(t, s, image.id)[0]
	if sum, found := check(t, s, CheckOptions{}); len(found) > 0 || sum.Unverified != 1 || sum.Absent != 1 {
		t.Errorf("%+v, %+v", sum, found)
	}
	must(t, os.Remove(low+"/b"))
	if sum, found := check(t, s, CheckOptions{}); len(found) != 1 || !strings.Contains(found[0].Problem, "it has 2 files, and had 3") {
		t.Errorf("%+v, %+v", sum, found)
	}
	f.server.CloseClientConnections()
	if sum, found := check(t, s, CheckOptions{Repair: true}); len(found) != 1 || !found[0].Repaired || sum.Unverified != 0 {
		t.Errorf("%+v, %+v", sum, found)
	}
	assertSound(t, s, 1, 1)
	must(t, os.WriteFile(low+"/a", []byte("x"), 0o644))
	f.server.Close()
	must(t, s.content.Delete(s.storeContext(t.Context()), image.layers[0].Digest))
	must(t, s.gc.run(s.storeContext(t.Context())))
	if sum, found := check(t, s, CheckOptions{Repair: true}); len(found) != 1 || found[0].Repaired || !strings.Contains(found[0].Problem, "cannot be verified") || sum.Unverified != 1 {
		t.Errorf("%+v, %+v", sum, found)
	}
}

// unavailable is a registry that has gone away.
func unavailable(w http.ResponseWriter, _ *http.Request, _ http.Handler) bool {
	w.WriteHeader(http.StatusNotFound)
	return true
}
