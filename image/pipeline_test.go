package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"testing/iotest"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/image/layer"
)

func packed(t *testing.T, compression string, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	switch compression {
	case "gzip":
		w = gzip.NewWriter(&out)
	case "zstd":
		w, _ = zstd.NewWriter(&out)
	default:
		return data
	}
	_, err := w.Write(data)
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestPipeline has all of a stream arrive, counted and hashed, whatever it is packed in and however it is read.
func TestPipeline(t *testing.T) {
	data := []byte(noise(3<<20) + string(make([]byte, 2<<20)))
	for _, compression := range []string{"gzip", "zstd", ""} {
		for name, wrap := range map[string]func(io.Reader) io.Reader{"whole": func(r io.Reader) io.Reader { return r }, "halves": iotest.HalfReader, "end with data": iotest.DataErrReader} {
			counted := 0
			var got bytes.Buffer
			_, sum, err := pipeline(wrap(bytes.NewReader(packed(t, compression, data))), func(n int) { counted += n }, func(tar io.Reader) (layer.Result, error) {
				_, err := io.Copy(&got, tar)
				return layer.Result{}, err
			})
			if err != nil || counted != len(data) || sum != digest.FromBytes(data) || !bytes.Equal(got.Bytes(), data) {
				t.Errorf("%q, %s: %d bytes counted, %d came, %s, %v", compression, name, counted, got.Len(), sum, err)
			}
		}
	}
}

// TestPipelineEnds ends a stage early: the error comes out, and no stage goes on.
func TestPipelineEnds(t *testing.T) {
	stream := packed(t, "gzip", []byte(noise(4<<20)))
	broken := errors.New("broken")
	readAll := func(tar io.Reader) (layer.Result, error) {
		_, err := io.Copy(io.Discard, tar)
		return layer.Result{}, err
	}
	_, _, err := pipeline(io.MultiReader(bytes.NewReader(stream[:1<<20]), iotest.ErrReader(broken)), func(int) {}, readAll)
	if !errors.Is(err, broken) {
		t.Errorf("the source fails: %v", err)
	}
	if _, _, err = pipeline(bytes.NewReader(stream[:1<<20]), func(int) {}, readAll); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the source is cut: %v", err)
	}
	source := bytes.NewReader(stream)
	_, _, err = pipeline(source, func(int) {}, func(tar io.Reader) (layer.Result, error) {
		_, _ = tar.Read(make([]byte, 10))
		return layer.Result{}, broken
	})
	if !errors.Is(err, broken) || source.Len() == 0 {
		t.Errorf("the writer fails: %v, %d bytes are left", err, source.Len())
	}
}

// TestIngest writes blobs by the writer that trusts its caller.
func TestIngest(t *testing.T) {
	root := t.TempDir()
	files, err := local.NewLabeledStore(root, nil)
	if err != nil {
		t.Fatal(err)
	}
	b := &backend{Store: files, root: root}
	if err := b.compare(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	ctx, data := context.Background(), []byte("the content of a blob")
	d := ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
	for range 2 { // the second time it replaces what is there
		w, err := content.OpenWriter(trusted(ctx), b, content.WithRef("one"), content.WithDescriptor(ocispec.Descriptor{Size: d.Size}))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte("this is not it")); err != nil {
			t.Fatal(err)
		}
		if err := w.Truncate(0); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := w.Commit(ctx, d.Size+1, d.Digest); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("commit with another size: %v", err)
		}
		if err := w.Commit(ctx, d.Size, d.Digest); err != nil {
			t.Fatal(err)
		}
		if got, err := content.ReadBlob(ctx, files, d); err != nil || !bytes.Equal(got, data) || w.Digest() != d.Digest {
			t.Errorf("%q, %v", got, err)
		}
	}
	if _, err := b.Writer(trusted(ctx), content.WithRef("two")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, "ingest", "half-made"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := b.sweep(); err != nil {
		t.Fatal(err)
	}
	statuses, err := files.ListStatuses(ctx)
	if err != nil || len(statuses) != 1 || statuses[0].Ref != "two" {
		t.Errorf("writers: %v, %v", statuses, err)
	}
	if places, _ := os.ReadDir(filepath.Join(root, "ingest")); len(places) != 1 {
		t.Errorf("places: %v", places)
	}
}
