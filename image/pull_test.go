package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestPullByTagAndDigest(t *testing.T) {
	f := newFakeRegistry(t)
	pushed := f.push("team/app", "v1", []testLayer{
		makeLayer(t, "gzip", map[string]string{"etc/passwd": "root:x:0:0::/:/bin/sh\n", "etc/motd": "below"}),
		makeLayer(t, "zstd", map[string]string{"etc/motd": "above"}),
		makeLayer(t, "", map[string]string{"opt/plain": "plain"}),
	})
	s := openStore(t, Config{Pinned: []string{pushed.ref}})

	image := mustPull(t, s, pushed.ref)
	if image.ID != pushed.id || !slices.Equal(image.RepoTags, []string{pushed.ref}) || !image.Pinned {
		t.Errorf("got %+v", image)
	}
	byDigest := f.host + "/team/app@" + pushed.manifest.Digest.String()
	if !slices.Equal(image.RepoDigests, []string{byDigest}) || image.Ref != byDigest {
		t.Errorf("digests %v, ref %s, want %s", image.RepoDigests, image.Ref, byDigest)
	}
	if image.UID == nil || *image.UID != 1000 || image.Username != "" || image.Config.Cmd[0] != "/run" {
		t.Errorf("user %v %q, cmd %v", image.UID, image.Username, image.Config.Cmd)
	}
	for _, ref := range []string{pushed.id, pushed.ref, byDigest, strings.TrimPrefix(pushed.id, "sha256:"), pushed.id[:20], pushed.id[7:19]} {
		if got, err := s.Status(t.Context(), ref); err != nil || got.ID != pushed.id {
			t.Errorf("status of %s: %s, %v", ref, got.ID, err)
		}
	}
	if again := mustPull(t, s, byDigest); again.ID != pushed.id {
		t.Errorf("by digest: %s", again.ID)
	}
	for _, l := range pushed.layers {
		if n := f.blobGets(l.Digest); n != 1 {
			t.Errorf("layer %s was fetched %d times", l.MediaType, n)
		}
	}
	before := writes(s)
	mustPull(t, s, pushed.ref)
	if after := writes(s); after != before {
		t.Errorf("a pull of what is here wrote %d pages of the database", after-before)
	}
	assertNothingHalfMade(t, s)
	checkRootfs(t, s, pushed.id)

	if err := s.Remove(t.Context(), pushed.ref); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("remove a pinned image: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, Config{Root: s.Root()})
	if err := s.Remove(t.Context(), pushed.ref); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), pushed.ref); err != nil {
		t.Error("removing it again:", err)
	}
	if _, err := s.Status(t.Context(), pushed.id); !errdefs.IsNotFound(err) {
		t.Error("status after removal:", err)
	}
	assertEmpty(t, s)
}

// writes counts the pages that the database has written.
func writes(s *Store) int64 {
	stats := s.bolt.Stats()
	return stats.TxStats.GetWrite()
}

// checkRootfs proves that the layers are stacked right, by our reading and by the kernel's overlay.
func checkRootfs(t *testing.T, s *Store, id string) {
	t.Helper()
	for range 2 { // the second time from the cache
		if data, err := s.ReadFile(t.Context(), id, "/etc/passwd", 1<<20); err != nil || !strings.HasPrefix(string(data), "root:") {
			t.Errorf("passwd: %q, %v", data, err)
		}
		if _, err := s.ReadFile(t.Context(), id, "/etc/group", 1<<20); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("group: %v", err)
		}
	}
	if _, err := s.ReadFile(t.Context(), id, "/etc/passwd", 3); err == nil {
		t.Error("a file longer than the limit was read")
	}
	if data, err := s.ReadFile(t.Context(), id, "etc/motd", 100); err != nil || string(data) != "above" {
		t.Errorf("motd: %q, %v", data, err)
	}
	mounts, err := s.Prepare(t.Context(), "c1", id)
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.Prepare(t.Context(), "c1", id)
	if err != nil || fmt.Sprint(again) != fmt.Sprint(mounts) {
		t.Errorf("prepared again: %v, %v", again, err)
	}
	if got := readMounted(t, mounts, "etc/motd", "opt/plain"); got != "aboveplain" {
		t.Errorf("mounted: %q", got)
	}
	if keys, err := s.Keys(t.Context()); err != nil || !slices.Equal(keys, []string{"c1"}) {
		t.Errorf("keys %v, %v", keys, err)
	}
	for range 2 {
		if err := s.Release(t.Context(), "c1"); err != nil {
			t.Error(err)
		}
	}
	if keys, err := s.Keys(t.Context()); err != nil || len(keys) > 0 {
		t.Errorf("keys %v, %v", keys, err)
	}
}

func TestPullChoosesPlatform(t *testing.T) {
	f := newFakeRegistry(t)
	native := f.push("multi", "native", []testLayer{makeLayer(t, "gzip", map[string]string{"is": "native"})})
	foreign := f.push("multi", "foreign", []testLayer{makeLayer(t, "gzip", map[string]string{"is": "foreign"})},
		func(c *ocispec.Image, _ *ocispec.Manifest) { c.Architecture = "s390x" })
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for arch, d := range map[string]ocispec.Descriptor{"unknown": native.manifest, "s390x": foreign.manifest, runtime.GOARCH: native.manifest} {
		d.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
		index.Manifests = append(index.Manifests, d)
	}
	target := f.manifest("multi", "latest", index.MediaType, index)
	index.Manifests = slices.DeleteFunc(index.Manifests, func(d ocispec.Descriptor) bool { return d.Platform.Architecture == runtime.GOARCH })
	f.manifest("multi", "others", index.MediaType, index)

	s := openStore(t, Config{})
	image := mustPull(t, s, f.host+"/multi")
	if image.ID != native.id || !strings.HasSuffix(image.Ref, "@"+target.Digest.String()) {
		t.Errorf("got %s %s, want %s", image.ID, image.Ref, native.id)
	}
	id, err := s.Pull(t.Context(), f.host+"/multi", PullOptions{Platform: &ocispec.Platform{OS: "linux", Architecture: "s390x"}})
	if err != nil || id != foreign.id {
		t.Errorf("s390x: %s, %v", id, err)
	}
	_, err = s.Pull(t.Context(), f.host+"/multi:others", PullOptions{})
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "linux/s390x") || !strings.Contains(err.Error(), f.host+"/multi:others") {
		t.Errorf("wrong platform: %v", err)
	}
	assertNothingHalfMade(t, s)
}

// TestPullSharesLayers pulls images that share a layer at different heights: it is fetched and unpacked once.
func TestPullSharesLayers(t *testing.T) {
	f := newFakeRegistry(t)
	shared := makeLayer(t, "gzip", map[string]string{"shared": strings.Repeat("s", 100_000)})
	own := makeLayer(t, "gzip", map[string]string{"own": "o"})
	first := f.push("a", "1", []testLayer{shared})
	second := f.push("b", "1", []testLayer{own, shared, shared})
	s := openStore(t, Config{})
	mustPull(t, s, first.ref)
	mustPull(t, s, second.ref)
	if n := f.blobGets(shared.Digest); n != 1 {
		t.Errorf("the shared layer was fetched %d times", n)
	}
	entries, err := os.ReadDir(s.path("snapshots/layers"))
	if err != nil || len(entries) != 2 {
		t.Errorf("%d layer directories (%v), want 2", len(entries), err)
	}
	before, err := s.FsInfo(t.Context()) // the databases are counted, too: some 120 KB
	if err != nil || before.Bytes < 100_000 || before.Bytes > 320_000+uint64(shared.Size) {
		t.Errorf("uses %d bytes (%v): the shared layer counts once", before.Bytes, err)
	}
	mounts, err := s.Prepare(t.Context(), "c", second.id)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), first.ref); err != nil {
		t.Fatal(err)
	}
	// An image that is removed while a container uses it leaves what the container needs, until that goes.
	if err := s.Remove(t.Context(), second.ref); err != nil {
		t.Fatal(err)
	}
	if got := readMounted(t, mounts, "own"); got != "o" {
		t.Errorf("read %q", got)
	}
	if _, err := s.Prepare(t.Context(), "d", second.id); !errdefs.IsNotFound(err) {
		t.Errorf("prepared from a removed image: %v", err)
	}
	if err := s.Release(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	assertEmpty(t, s)
}

// TestTagMoves pulls a tag that means another image by then: the old one stays under its digest.
func TestTagMoves(t *testing.T) {
	f := newFakeRegistry(t)
	old := f.push("app", "latest", []testLayer{makeLayer(t, "gzip", map[string]string{"v": "1"})})
	s := openStore(t, Config{})
	mustPull(t, s, old.ref)
	moved := f.push("app", "latest", []testLayer{makeLayer(t, "gzip", map[string]string{"v": "2"})})
	if image := mustPull(t, s, old.ref); image.ID != moved.id {
		t.Errorf("got %s, want %s", image.ID, moved.id)
	}
	was, err := s.Status(t.Context(), old.id)
	if err != nil || len(was.RepoTags) != 0 || len(was.RepoDigests) != 1 {
		t.Errorf("the old image: %+v, %v", was, err)
	}
	if images, _ := s.List(t.Context()); len(images) != 2 {
		t.Errorf("%d images", len(images))
	}
	for _, id := range []string{old.id, moved.id} {
		if err := s.Remove(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	assertEmpty(t, s)
}

// TestReopen finds images again after a restart, and throws away what is not whole.
func TestReopen(t *testing.T) {
	f := newFakeRegistry(t)
	whole := f.push("whole", "1", []testLayer{makeLayer(t, "gzip", map[string]string{"etc/passwd": "p"})})
	broken := f.push("broken", "1", []testLayer{makeLayer(t, "gzip", map[string]string{"b": "b"})})
	root := t.TempDir()
	s := openStore(t, Config{Root: root})
	want := mustPull(t, s, whole.ref)
	mustPull(t, s, broken.ref)
	if _, err := s.Prepare(t.Context(), "c", whole.id); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(root + "/content/blobs/sha256/" + strings.TrimPrefix(broken.id, "sha256:")); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, Config{Root: root})
	if got, err := s.Status(t.Context(), whole.ref); err != nil || fmt.Sprint(got.RepoTags, got.Ref, got.Size) != fmt.Sprint(want.RepoTags, want.Ref, want.Size) {
		t.Errorf("after reopening: %+v, %v", got, err)
	}
	if keys, err := s.Keys(t.Context()); err != nil || !slices.Equal(keys, []string{"c"}) {
		t.Errorf("keys %v, %v", keys, err)
	}
	if _, err := s.Status(t.Context(), broken.ref); !errdefs.IsNotFound(err) {
		t.Errorf("the broken image: %v", err)
	}
	mustPull(t, s, broken.ref)
	mustPull(t, s, whole.ref)
	if n := f.blobGets(whole.layers[0].Digest); n != 1 {
		t.Errorf("a layer that was here was fetched %d times", n)
	}
}

// TestImpliedParents pulls layers whose tar omits the directories that its files lie in: those keep the attributes that the
// layers below give them, and the layers are not shared with images where those are others.
func TestImpliedParents(t *testing.T) {
	f := newFakeRegistry(t)
	file := tar.Header{Typeflag: tar.TypeReg, Name: "etc/app/conf", Mode: 0o600}
	bare := packLayer(t, "gzip", tarOf(t, file))
	link := packLayer(t, "zstd", tarOf(t, tar.Header{Typeflag: tar.TypeLink, Name: "etc/app/alias", Linkname: "etc/app/conf"}))
	below := func(mode int64) testLayer {
		return packLayer(t, "", tarOf(t, tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755},
			tar.Header{Typeflag: tar.TypeDir, Name: "etc/", Mode: 0o755}, tar.Header{Typeflag: tar.TypeDir, Name: "etc/app/", Mode: mode, Uid: 7}))
	}
	s := openStore(t, Config{})
	for i, mode := range []int64{0o711, 0o750} {
		pushed := f.push("app", strconv.Itoa(i), []testLayer{below(mode), bare, link})
		mustPull(t, s, pushed.ref)
		mounts, err := s.Prepare(t.Context(), pushed.id, pushed.id)
		if err != nil {
			t.Fatal(err)
		}
		target := t.TempDir()
		if err := mount.All(mounts, target); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(filepath.Join(target, "etc/app"))
		if err != nil || info.Mode().Perm() != os.FileMode(mode) || info.Sys().(*syscall.Stat_t).Uid != 7 {
			t.Errorf("etc/app is %v, %v, want %o and uid 7", info.Mode(), err, mode)
		}
		if _, err := os.Stat(filepath.Join(target, "etc/app/alias")); err != nil {
			t.Error(err)
		}
		if err := mount.UnmountAll(target, 0); err != nil {
			t.Error(err)
		}
		if err := s.Release(t.Context(), pushed.id); err != nil {
			t.Error(err)
		}
	}
	if n := f.blobGets(bare.Digest); n != 1 {
		t.Errorf("the layer that has to be unpacked twice was fetched %d times", n)
	}
	assertNothingHalfMade(t, s)
}

// TestBrokenBlobs spoils what is stored on disk while the store runs: a pull mends it.
func TestBrokenBlobs(t *testing.T) {
	f := newFakeRegistry(t)
	l := makeLayer(t, "gzip", map[string]string{"a": strings.Repeat("a", 5000)})
	pushed := f.push("app", "1", []testLayer{l})
	s := openStore(t, Config{})
	mustPull(t, s, pushed.ref)
	file := func(d string) string { return s.path("content/blobs/sha256/" + strings.TrimPrefix(d, "sha256:")) }
	spoil := func(d string) {
		data, err := os.ReadFile(file(d))
		if err != nil {
			t.Fatal(err)
		}
		data[len(data)/2] ^= 1
		if err := os.Remove(file(d)); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file(d), data, 0o444); err != nil {
			t.Fatal(err)
		}
	}
	manifest := pushed.manifest.Digest.String()
	blobs := []string{l.Digest.String(), pushed.id, manifest}
	for _, harm := range []func(){
		func() { spoil(l.Digest.String()); spoil(pushed.id) },
		func() { spoil(manifest); _ = os.Remove(file(l.Digest.String())) },
		func() { _ = os.Remove(file(manifest)); _ = os.Remove(file(pushed.id)) },
		func() {},
	} {
		// A pull looks at the blobs when it needs them: when the directory of a layer is lost, too.
		dirs, err := s.snapshots.LayerDirs(s.storeContext(t.Context()), l.diffID.String())
		if err != nil || len(dirs) != 1 {
			t.Fatal(dirs, err)
		}
		if err := os.RemoveAll(dirs[0]); err != nil {
			t.Fatal(err)
		}
		harm()
		mustPull(t, s, pushed.ref)
		for _, d := range blobs {
			data, err := os.ReadFile(file(d))
			if err != nil || digest.FromBytes(data).String() != d {
				t.Errorf("blob %s was not mended: %v", d, err)
			}
		}
		if data, err := s.ReadFile(t.Context(), pushed.id, "a", 1<<20); err != nil || len(data) != 5000 {
			t.Errorf("read %d bytes, %v", len(data), err)
		}
	}
	assertNothingHalfMade(t, s)
	if err := s.Remove(t.Context(), pushed.ref); err != nil {
		t.Fatal(err)
	}
	assertEmpty(t, s)
}
