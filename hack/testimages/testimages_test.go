package main

import (
	"archive/tar"
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ociLayout "github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestServeBuiltImages builds from the packages (downloading them when the cache is empty), serves, has another
// implementation of the image specification validate the layout, and serves it.
func TestServeBuiltImages(t *testing.T) {
	if testing.Short() {
		t.Skip("needs Debian's package mirror unless hack/cache/debs is filled")
	}
	out := filepath.Join(t.TempDir(), "layout")
	if err := build(t.Context(), out, "../cache/debs", false); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(filepath.Join(out, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := build(t.Context(), out, "../cache/debs", false); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(filepath.Join(out, "index.json")); err != nil || !after.ModTime().Equal(before.ModTime()) {
		t.Errorf("a second build made the images again (%v)", err)
	}
	twin := filepath.Join(t.TempDir(), "layout")
	if err := build(t.Context(), twin, "../cache/debs", false); err != nil {
		t.Fatal(err)
	}
	first, err := os.ReadFile(filepath.Join(out, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	if second, err := os.ReadFile(filepath.Join(twin, "index.json")); err != nil || !bytes.Equal(first, second) {
		t.Errorf("the same input gives other images (%v)", err)
	}
	index, err := ociLayout.ImageIndexFromPath(out)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index, validate.Fast); err != nil {
		t.Error(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	image, err := index.Image(manifest.Manifests[2].Digest) // one with two layers
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(image); err != nil {
		t.Error(err)
	}
	handler, err := newRegistry(out)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(handler)
	defer server.Close()
	for path, mediaType := range map[string]string{
		"e2e-test-images/busybox/manifests/1.29-2":                          dockerManifest,
		"criserver/web/manifests/latest":                                    ocispec.MediaTypeImageIndex,
		"k8s-staging-cri-tools/test-image-tags/manifests/3":                 ocispec.MediaTypeImageManifest,
		"k8s-staging-cri-tools/test-image-latest/tags/list":                 "",
		"k8s-staging-cri-tools/hostnet-nginx-" + arch + "/manifests/latest": ocispec.MediaTypeImageManifest,
	} {
		response, err := http.Get(server.URL + "/v2/" + path)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if got := response.Header.Get("Content-Type"); response.StatusCode != http.StatusOK || mediaType != "" && got != mediaType {
			t.Errorf("%s: status %d, type %q, want %q", path, response.StatusCode, got, mediaType)
		}
	}
}

func TestReplaceRefusesWhatIsNoLayout(t *testing.T) {
	out := t.TempDir()
	if err := os.WriteFile(filepath.Join(out, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := replace(t.TempDir(), out); err == nil {
		t.Fatal("a directory with other files was replaced")
	}
	if _, err := os.Stat(filepath.Join(out, "precious")); err != nil {
		t.Fatal(err)
	}
}

func TestTreeOrder(t *testing.T) {
	made := newTree()
	made.hardlink("bin/a", "usr/bin/z")
	made.file("usr/bin/z", 0o755, "z")
	var buffer bytes.Buffer
	w := tar.NewWriter(&buffer)
	if err := made.write(w); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var names []string
	for r := tar.NewReader(&buffer); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
	if got, want := strings.Join(names, " "), "bin/ usr/ usr/bin/ usr/bin/z bin/a"; got != want {
		t.Errorf("order %q, want %q", got, want)
	}
}

// TestBigLayersAreReproducible makes one layer of the big images twice.
func TestBigLayersAreReproducible(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		t.Fatal(err)
	}
	l := &layout{dir: dir}
	var made [2]layer
	for i := range made {
		var err error
		if made[i], err = l.layer("zstd", func(w *tar.Writer) error { return writeBig(w, 1) }); err != nil {
			t.Fatal(err)
		}
	}
	if made[0].Digest != made[1].Digest || made[0].diffID != made[1].diffID {
		t.Errorf("digests differ: %v and %v", made[0], made[1])
	}
	if made[0].Size < 10<<20 || made[0].Size > 30<<20 {
		t.Errorf("a compressed layer has %d bytes, which is not like a program's", made[0].Size)
	}
}
