package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	goruntime "runtime"
	"strings"
	"sync"
	"testing"
	"time"

	fake "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// slowRegistry serves images that a test makes, no faster than pause every 16 KiB of a layer, and counts what it sends.
type slowRegistry struct {
	host    string
	handler http.Handler
	blobs   fake.BlobHandler
	server  *httptest.Server

	mu    sync.Mutex
	pause time.Duration
	sent  map[digest.Digest]int64 // bytes of blobs
}

func newSlowRegistry(t *testing.T) *slowRegistry {
	t.Helper()
	r := &slowRegistry{blobs: fake.NewInMemoryBlobHandler(), sent: map[digest.Digest]int64{}}
	r.handler = fake.New(fake.WithBlobHandler(r.blobs), fake.Logger(log.New(io.Discard, "", 0)))
	r.server = httptest.NewServer(r)
	t.Cleanup(r.server.Close)
	r.host = strings.TrimPrefix(r.server.URL, "http://")
	return r
}

// ServeHTTP implements http.Handler.
func (r *slowRegistry) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	_, name, isBlob := strings.Cut(request.URL.Path, "/blobs/")
	if isBlob && request.Method == http.MethodGet {
		w = &countedAnswer{ResponseWriter: w, r: r, digest: digest.Digest(name), gone: request.Context().Done()}
	}
	r.handler.ServeHTTP(w, request)
}

// sentOf is how many bytes of a blob were sent so far.
func (r *slowRegistry) sentOf(d digest.Digest) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sent[d]
}

func (r *slowRegistry) setPause(pause time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pause = pause
}

type countedAnswer struct {
	http.ResponseWriter
	r      *slowRegistry
	digest digest.Digest
	gone   <-chan struct{}
}

func (c *countedAnswer) Write(p []byte) (int, error) {
	const piece = 16 << 10
	written := 0
	for written < len(p) {
		n, err := c.ResponseWriter.Write(p[written:min(written+piece, len(p))])
		written += n
		c.r.mu.Lock()
		c.r.sent[c.digest] += int64(n)
		pause := c.r.pause
		c.r.mu.Unlock()
		if err != nil {
			return written, err
		}
		if pause > 0 {
			c.ResponseWriter.(http.Flusher).Flush()
			select {
			case <-time.After(pause):
			case <-c.gone:
				return written, io.ErrClosedPipe
			}
		}
	}
	return written, nil
}

// madeLayer is a layer that a test made, with the files that it has to become.
type madeLayer struct {
	ocispec.Descriptor
	diffID digest.Digest
	files  map[string]string // by path
}

// makeLayer packs files, with directories for their paths' first components.
func (r *slowRegistry) makeLayer(t *testing.T, compression string, files map[string]string) madeLayer {
	t.Helper()
	var plain, packed bytes.Buffer
	w := tar.NewWriter(&plain)
	write := func(h tar.Header, body string) {
		h.ModTime = time.Unix(1_700_000_000, 0)
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	write(tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755}, "")
	made := map[string]bool{}
	for name, body := range files {
		if dir, _, ok := strings.Cut(name, "/"); ok && !made[dir] {
			made[dir] = true
			write(tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o750}, "")
		}
		write(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o640, Size: int64(len(body))}, body)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var z io.WriteCloser = gzip.NewWriter(&packed)
	mediaType := ocispec.MediaTypeImageLayerGzip
	if compression == "zstd" {
		z, _ = zstd.NewWriter(&packed)
		mediaType = ocispec.MediaTypeImageLayerZstd
	}
	if _, err := z.Write(plain.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return madeLayer{r.put(t, mediaType, packed.Bytes()), digest.FromBytes(plain.Bytes()), files}
}

// put stores a blob.
func (r *slowRegistry) put(t *testing.T, mediaType string, data []byte) ocispec.Descriptor {
	t.Helper()
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	hash, err := v1.NewHash(d.Digest.String())
	if err == nil {
		err = r.blobs.(fake.BlobPutHandler).Put(context.Background(), "", hash, io.NopCloser(bytes.NewReader(data)))
	}
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// push makes an image of layers and answers its name.
func (r *slowRegistry) push(t *testing.T, name string, layers []madeLayer) string {
	t.Helper()
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: goruntime.GOARCH}, RootFS: ocispec.RootFS{Type: "layers"}}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, l := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.diffID)
		manifest.Layers = append(manifest.Layers, l.Descriptor)
	}
	data, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	manifest.Config = r.put(t, ocispec.MediaTypeImageConfig, data)
	if data, err = json.Marshal(manifest); err != nil {
		t.Fatal(err)
	}
	repository, tag, _ := strings.Cut(name, ":")
	request := httptest.NewRequest(http.MethodPut, fmt.Sprintf("/v2/%s/manifests/%s", repository, tag), bytes.NewReader(data))
	request.Header.Set("Content-Type", manifest.MediaType)
	response := httptest.NewRecorder()
	r.handler.ServeHTTP(response, request)
	if response.Code != http.StatusCreated {
		t.Fatalf("push %s: %d %s", name, response.Code, response.Body)
	}
	return r.host + "/" + name
}
