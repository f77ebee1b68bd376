package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// fakeRegistry is a registry on loopback whose answers a test may spoil.
type fakeRegistry struct {
	t       *testing.T
	host    string // "127.0.0.1:port"
	server  *httptest.Server
	handler http.Handler
	blobs   registry.BlobHandler

	mu    sync.Mutex
	gets  map[string]int // blob or manifest path -> GETs
	spoil func(w http.ResponseWriter, r *http.Request, next http.Handler) bool
}

func newFakeRegistry(t *testing.T) *fakeRegistry {
	t.Helper()
	f := &fakeRegistry{t: t, gets: map[string]int{}, blobs: registry.NewInMemoryBlobHandler()}
	f.handler = registry.New(registry.WithBlobHandler(f.blobs), registry.Logger(log.New(io.Discard, "", 0)))
	f.server = httptest.NewServer(f)
	t.Cleanup(f.server.Close)
	f.host = strings.TrimPrefix(f.server.URL, "http://")
	return f
}

func (f *fakeRegistry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	if r.Method == http.MethodGet {
		f.gets[r.URL.Path]++
	}
	spoil := f.spoil
	f.mu.Unlock()
	if spoil != nil && spoil(w, r, f.handler) {
		return
	}
	f.handler.ServeHTTP(w, r)
}

func (f *fakeRegistry) setSpoil(spoil func(w http.ResponseWriter, r *http.Request, next http.Handler) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.spoil = spoil
}

// blobGets is how often a blob was asked for.
func (f *fakeRegistry) blobGets(d digest.Digest) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for path, count := range f.gets {
		if strings.HasSuffix(path, "/blobs/"+d.String()) {
			n += count
		}
	}
	return n
}

// blob stores content, under digest as if it were the content's.
func (f *fakeRegistry) blob(d digest.Digest, data []byte) {
	f.t.Helper()
	put := f.blobs.(registry.BlobPutHandler)
	hash, err := v1.NewHash(d.String())
	if err != nil {
		f.t.Fatal(err)
	}
	if err := put.Put(context.Background(), "", hash, io.NopCloser(bytes.NewReader(data))); err != nil {
		f.t.Fatal(err)
	}
}

// manifest stores a document under repository and target (tag or digest).
func (f *fakeRegistry) manifest(repository, target, mediaType string, document any) ocispec.Descriptor {
	f.t.Helper()
	data, err := json.Marshal(document)
	if err != nil {
		f.t.Fatal(err)
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	if target == "" {
		target = d.Digest.String()
	}
	request := httptest.NewRequest(http.MethodPut, "/v2/"+repository+"/manifests/"+target, bytes.NewReader(data))
	request.Header.Set("Content-Type", mediaType)
	response := httptest.NewRecorder()
	f.handler.ServeHTTP(response, request)
	if response.Code != http.StatusCreated {
		f.t.Fatalf("put manifest: %d %s", response.Code, response.Body)
	}
	return d
}

// testLayer is a layer for an image.
type testLayer struct {
	ocispec.Descriptor
	diffID digest.Digest
	blob   []byte
}

// makeLayer makes a layer of files by name, with their parents. Names that end in "/" are directories.
func makeLayer(t *testing.T, compression string, files map[string]string) testLayer {
	t.Helper()
	var plain bytes.Buffer
	w := tar.NewWriter(&plain)
	write := func(h *tar.Header, body string) {
		h.ModTime = time.Unix(1_700_000_000, 0)
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	write(&tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755}, "")
	made := map[string]bool{".": true}
	var parents func(string)
	parents = func(dir string) {
		if made[dir] {
			return
		}
		made[dir] = true
		parents(filepath.Dir(dir))
		write(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}, "")
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		parents(filepath.Dir(strings.TrimSuffix(name, "/")))
		write(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(files[name]))}, files[name])
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return packLayer(t, compression, plain.Bytes())
}

// packLayer makes a layer of a tar.
func packLayer(t *testing.T, compression string, plain []byte) testLayer {
	t.Helper()
	var packed bytes.Buffer
	var w io.WriteCloser
	mediaType := ocispec.MediaTypeImageLayer
	switch compression {
	case "gzip":
		w, mediaType = gzip.NewWriter(&packed), ocispec.MediaTypeImageLayerGzip
	case "zstd":
		w, _ = zstd.NewWriter(&packed)
		mediaType = ocispec.MediaTypeImageLayerZstd
	default:
		packed.Write(plain)
	}
	if w != nil {
		if _, err := w.Write(plain); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(packed.Bytes()), Size: int64(packed.Len())}
	return testLayer{d, digest.FromBytes(plain), packed.Bytes()}
}

// testImage is an image in a fake registry.
type testImage struct {
	ref      string
	manifest ocispec.Descriptor
	id       string
	layers   []testLayer
}

// push stores an image of layers and answers what it is; edit may spoil its documents.
func (f *fakeRegistry) push(repository, tag string, layers []testLayer, edit ...func(*ocispec.Image, *ocispec.Manifest)) testImage {
	f.t.Helper()
	config := ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Config:   ocispec.ImageConfig{Cmd: []string{"/run"}, User: "1000:50", Labels: map[string]string{"of": repository}},
		RootFS:   ocispec.RootFS{Type: "layers"},
	}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{}}
	for _, l := range layers {
		f.blob(l.Digest, l.blob)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.diffID)
		manifest.Layers = append(manifest.Layers, l.Descriptor)
	}
	configType := ocispec.MediaTypeImageConfig
	for _, e := range edit {
		e(&config, &manifest)
	}
	if manifest.Config.MediaType != "" {
		configType = manifest.Config.MediaType
	}
	data, err := json.Marshal(config)
	if err != nil {
		f.t.Fatal(err)
	}
	manifest.Config = ocispec.Descriptor{MediaType: configType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	f.blob(manifest.Config.Digest, data)
	d := f.manifest(repository, tag, manifest.MediaType, manifest)
	return testImage{f.host + "/" + repository + ":" + tag, d, manifest.Config.Digest.String(), layers}
}

// openStore opens a store on a fresh root, or on the given one, and closes it at the end of the test.
func openStore(t *testing.T, c Config) *Store {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("layers can only be unpacked by root (chown, device nodes, trusted xattrs)")
	}
	if c.Root == "" {
		c.Root = t.TempDir()
	}
	if c.LayerGrace == 0 {
		c.LayerGrace = time.Nanosecond
	}
	if c.Registry.Backoff == 0 {
		c.Registry.Backoff = 5 * time.Millisecond
	}
	c.Log = slog.New(slog.NewTextHandler(testWriter{t}, nil))
	s, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error("close:", err)
		}
	})
	return s
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// mustPull pulls and answers the image.
func mustPull(t *testing.T, s *Store, ref string) Image {
	t.Helper()
	id, err := s.Pull(t.Context(), ref, PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	image, err := s.Status(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// readMounted reads files of a container's root filesystem by way of the kernel's overlay.
func readMounted(t *testing.T, mounts []mount.Mount, names ...string) (all string) {
	t.Helper()
	target := t.TempDir()
	if err := mount.All(mounts, target); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := mount.UnmountAll(target, 0); err != nil {
			t.Error(err)
		}
	}()
	for _, name := range names {
		data, err := os.ReadFile(filepath.Join(target, name))
		if err != nil {
			t.Fatal(err)
		}
		all += string(data)
	}
	return all
}

// assertEmpty proves that nothing is left of images: after a garbage collection no blob, ingest, lease, snapshot or layer.
func assertEmpty(t *testing.T, s *Store) {
	t.Helper()
	ctx := s.storeContext(t.Context())
	if err := s.gc.run(ctx); err != nil {
		t.Fatal(err)
	}
	assertNothingHalfMade(t, s)
	err := s.content.Walk(ctx, func(info content.Info) error {
		t.Errorf("blob %s is left", info.Digest)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir, what := range map[string]string{"content/blobs/sha256": "blob file", "snapshots/layers": "layer", "snapshots/active": "writable layer"} {
		entries, err := os.ReadDir(s.path(dir))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for _, e := range entries {
			t.Errorf("%s %s is left", what, e.Name())
		}
	}
	if images, _ := s.List(ctx); len(images) > 0 {
		t.Errorf("images are left: %v", images)
	}
}

// assertNothingHalfMade proves that no lease, ingest or hold is left.
func assertNothingHalfMade(t *testing.T, s *Store) {
	t.Helper()
	ctx := s.storeContext(t.Context())
	if left, err := s.leases.List(ctx); err != nil || len(left) > 0 {
		t.Errorf("leases are left: %v, %v", left, err)
	}
	if left, err := s.content.ListStatuses(ctx); err != nil || len(left) > 0 {
		t.Errorf("ingests are left: %v, %v", left, err)
	}
	if entries, err := os.ReadDir(s.path("content/ingest")); err != nil && !os.IsNotExist(err) || len(entries) > 0 {
		t.Errorf("ingest files are left: %v, %v", entries, err)
	}
	held := 0
	for _, image := range s.index.list() {
		held += len(image.LayerIDs)
	}
	s.keeper.mu.Lock()
	defer s.keeper.mu.Unlock()
	sum := 0
	for _, n := range s.keeper.held {
		sum += n
	}
	if sum != held {
		t.Errorf("%d snapshots are held, images have %d", sum, held)
	}
}
