package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// serve serves the layout in dir until the context ends, and says where in its first line of output.
func serve(ctx context.Context, dir, listen string, out io.Writer) error {
	handler, err := newRegistry(dir)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: handler, ErrorLog: log.New(os.Stderr, "", 0)}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	fmt.Fprintf(out, "listening on %s\n", listener.Addr())
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// newRegistry is a registry with the images of the layout in dir. What is pushed to it goes into the layout's blobs.
func newRegistry(dir string) (http.Handler, error) {
	blobs := blobDir(filepath.Join(dir, "blobs"))
	handler := registry.New(registry.WithBlobHandler(blobs), registry.Logger(log.New(io.Discard, "", 0)))
	content, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		return nil, fmt.Errorf("no image layout (run testimages build): %w", err)
	}
	var index ocispec.Index
	if err := json.Unmarshal(content, &index); err != nil {
		return nil, fmt.Errorf("%s/index.json: %w", dir, err)
	}
	for _, d := range index.Manifests {
		repository, tag, ok := strings.Cut(d.Annotations[ocispec.AnnotationRefName], ":")
		if !ok {
			continue
		}
		if err := publish(handler, blobs, repository, tag, d); err != nil {
			return nil, err
		}
	}
	return ranges{handler, blobs}, nil
}

// ranges answers for blobs by the file, with ranges of every kind; the registry knows only one.
type ranges struct {
	http.Handler
	blobs blobDir
}

// ServeHTTP implements http.Handler.
func (h ranges) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, name, ok := strings.Cut(r.URL.Path, "/blobs/")
	d, err := digest.Parse(name)
	if r.Method != http.MethodGet || !ok || err != nil {
		h.Handler.ServeHTTP(w, r)
		return
	}
	file, err := os.Open(h.blobs.path(d))
	if err != nil {
		h.Handler.ServeHTTP(w, r) // says so as a registry does
		return
	}
	defer file.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Docker-Content-Digest", d.String())
	w.Header().Set("ETag", `"`+d.String()+`"`)
	http.ServeContent(w, r, "", time.Time{}, file)
}

// publish puts a manifest, and those below it, into the registry under repository and target.
func publish(handler http.Handler, blobs blobDir, repository, target string, d ocispec.Descriptor) error {
	content, err := os.ReadFile(blobs.path(d.Digest))
	if err != nil {
		return err
	}
	if d.MediaType == ocispec.MediaTypeImageIndex {
		var index ocispec.Index
		if err := json.Unmarshal(content, &index); err != nil {
			return err
		}
		for _, child := range index.Manifests {
			if err := publish(handler, blobs, repository, child.Digest.String(), child); err != nil {
				return err
			}
		}
	}
	request := httptest.NewRequest(http.MethodPut, "/v2/"+repository+"/manifests/"+target, bytes.NewReader(content))
	request.Header.Set("Content-Type", d.MediaType)
	response := httptest.NewRecorder()
	handler.ServeHTTP(response, request)
	if response.Code != http.StatusCreated {
		return fmt.Errorf("put %s:%s: %d %s", repository, target, response.Code, response.Body)
	}
	return nil
}

// blobDir serves the blobs directory of a layout. Unlike the disk handler that comes with the registry it does not hash a
// blob again each time that it is asked for.
type blobDir string

func (b blobDir) path(d digest.Digest) string {
	return filepath.Join(string(b), d.Algorithm().String(), d.Encoded())
}

func (b blobDir) hash(h v1.Hash) string { return filepath.Join(string(b), h.Algorithm, h.Hex) }

func (b blobDir) Get(_ context.Context, _ string, h v1.Hash) (io.ReadCloser, error) {
	file, err := os.Open(b.hash(h))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, registry.ErrNotFound
	}
	return file, err
}

func (b blobDir) Stat(_ context.Context, _ string, h v1.Hash) (int64, error) {
	info, err := os.Stat(b.hash(h))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, registry.ErrNotFound
	}
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// Put stores a blob; the registry has a reader that verifies the digest.
func (b blobDir) Put(_ context.Context, _ string, h v1.Hash, body io.ReadCloser) error {
	defer body.Close()
	file, err := os.CreateTemp(filepath.Join(string(b), h.Algorithm), ".put-*")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	_, err = io.Copy(file, body)
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	return os.Rename(file.Name(), b.hash(h))
}
