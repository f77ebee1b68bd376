package e2e

import (
	"bytes"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	gcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// checkpointAnnotation says in a manifest that the image is a checkpoint.
const checkpointAnnotation = "io.kubernetes.cri-o.annotations.checkpoint.name"

// pushCheckpoint makes an image of an archive, as tools that push checkpoints do, in a registry of the test's own, and pulls it.
func (n *node) pushCheckpoint(t *testing.T, archive string) string {
	t.Helper()
	layer, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(gcr.New(gcr.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	put := func(method, path, mediaType string, content []byte) ocispec.Descriptor {
		t.Helper()
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(content), Size: int64(len(content))}
		request, err := http.NewRequestWithContext(t.Context(), method, server.URL+"/v2/checkpoints/counter/"+strings.ReplaceAll(path, "DIGEST", d.Digest.String()), bytes.NewReader(content))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", mediaType)
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusCreated {
			text, _ := io.ReadAll(answer.Body)
			t.Fatalf("push %s: %s %s", path, answer.Status, text)
		}
		return d
	}
	encode := func(v any) []byte {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	const blob = "blobs/uploads/?digest=DIGEST"
	config := ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer)}},
	}
	manifest := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Annotations: map[string]string{checkpointAnnotation: "counter"},
		Config: put(http.MethodPost, blob, ocispec.MediaTypeImageConfig, encode(config)),
		Layers: []ocispec.Descriptor{put(http.MethodPost, blob, ocispec.MediaTypeImageLayer, layer)},
	}
	put(http.MethodPut, "manifests/latest", ocispec.MediaTypeImageManifest, encode(manifest))
	full := strings.TrimPrefix(server.URL, "http://") + "/checkpoints/counter:latest"
	ctx, cancel := callContext()
	defer cancel()
	if _, err := n.d.Images.PullImage(ctx, &runtimev1.PullImageRequest{Image: &runtimev1.ImageSpec{Image: full}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.forget(t, full) })
	return full
}

// TestCheckpointImageIsOff refuses an image that is a checkpoint, by default.
func TestCheckpointImageIsOff(t *testing.T) {
	n := sharedNode(t)
	archive := filepath.Join(t.TempDir(), "empty.tar")
	if err := os.WriteFile(archive, make([]byte, 1024), 0o600); err != nil {
		t.Fatal(err)
	}
	full := n.pushCheckpoint(t, archive)
	_, err := n.runPod(t).tryCreate(func(c *runtimev1.ContainerConfig) { c.Image.Image = full })
	wantCode(t, err, codes.FailedPrecondition, "checkpoint.restore_images")
}

// TestCheckpointImage makes a container from an image that is another's checkpoint.
func TestCheckpointImage(t *testing.T) {
	n := ownNode(t, "[checkpoint]\nrestore_images = true\n")
	c := n.runPod(t).run(t, shell(counter))
	c.counts(t, 3)
	archive := filepath.Join(t.TempDir(), "checkpoint.tar")
	if criuMissing(t, c.checkpoint(archive)) {
		t.Skip("criu does not work on this kernel; in the virtual machine it does")
	}
	before := c.counts(t, 1)
	full := n.pushCheckpoint(t, archive)
	d := n.runPod(t).create(t, shell(counter), func(c *runtimev1.ContainerConfig) { c.Image.Image = full })
	if got := d.status(t).Image.GetImage(); got != full {
		t.Errorf("the container's image is %q, want %q", got, full)
	}
	d.start(t)
	if after := d.counts(t, 3); after[0] <= 1 || after[0] > before[len(before)-1]+1 {
		t.Errorf("the restored counter goes on with %d, the old one was at %d", after[0], before[len(before)-1])
	}
}
