package image

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// get reads a path of a fake registry as any client would.
func (f *fakeRegistry) get(path string) []byte {
	f.t.Helper()
	request, _ := http.NewRequestWithContext(f.t.Context(), http.MethodGet, f.server.URL+path, nil)
	request.Header.Set("Accept", "*/*")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		f.t.Fatal(err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		f.t.Fatalf("get %s: %s, %v", path, response.Status, err)
	}
	return data
}

// assertSame proves that what one registry has under a repository and tag is, byte for byte, what another has.
func assertSame(t *testing.T, a *fakeRegistry, atPath string, b *fakeRegistry, bPath string) {
	t.Helper()
	atRepo, atTag, _ := strings.Cut(atPath, ":")
	bRepo, bTag, _ := strings.Cut(bPath, ":")
	var compare func(kind, refA, refB string)
	compare = func(kind, refA, refB string) {
		one, other := a.get("/v2/"+atRepo+"/"+kind+"/"+refA), b.get("/v2/"+bRepo+"/"+kind+"/"+refB)
		if string(one) != string(other) {
			t.Errorf("%s %s differs", kind, refA)
		}
		if kind == "blobs" {
			return
		}
		var document struct {
			Manifests, Layers []ocispec.Descriptor
			Config            *ocispec.Descriptor
		}
		if err := json.Unmarshal(one, &document); err != nil {
			t.Fatal(err)
		}
		for _, d := range document.Manifests {
			compare("manifests", d.Digest.String(), d.Digest.String())
		}
		for _, d := range document.Layers {
			compare("blobs", d.Digest.String(), d.Digest.String())
		}
		if document.Config != nil {
			compare("blobs", document.Config.Digest.String(), document.Config.Digest.String())
		}
	}
	compare("manifests", atTag, bTag)
}

// pushIndex stores an index of images for this machine's platform and another one, with an artifact that belongs to them.
func (f *fakeRegistry) pushIndex(repository, tag string) (index ocispec.Descriptor, other testImage) {
	f.t.Helper()
	arch := map[bool]string{true: "arm64", false: "amd64"}[runtime.GOARCH == "amd64"]
	own := f.push(repository, "own", []testLayer{makeLayer(f.t, "gzip", map[string]string{"bin/run": "own"}), makeLayer(f.t, "zstd", map[string]string{"etc/os": "own"})})
	other = f.push(repository, "other", []testLayer{makeLayer(f.t, "gzip", map[string]string{"bin/run": "other"})}, func(c *ocispec.Image, _ *ocispec.Manifest) {
		c.Architecture = arch
	})
	statement := packLayer(f.t, "", []byte(`{"predicateType":"https://example.com/"}`))
	statement.MediaType = "application/vnd.in-toto+json"
	artifact := f.push(repository, "artifact", []testLayer{statement})
	platform := func(d ocispec.Descriptor, os, arch string) ocispec.Descriptor {
		d.Platform = &ocispec.Platform{OS: os, Architecture: arch}
		return d
	}
	index = f.manifest(repository, tag, ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{
			platform(own.manifest, "linux", runtime.GOARCH), platform(other.manifest, "linux", arch),
			platform(artifact.manifest, "unknown", "unknown"),
		},
		Annotations: map[string]string{"of": "both"},
	})
	return index, other
}

func TestPushRoundTrip(t *testing.T) {
	from, to := newFakeRegistry(t), newFakeRegistry(t)
	image := from.push("team/app", "1", []testLayer{
		makeLayer(t, "gzip", map[string]string{"a": "1"}), makeLayer(t, "zstd", map[string]string{"b": "2"}), makeLayer(t, "", map[string]string{"c": "3"}),
	})
	s := openStore(t, Config{})
	mustPull(t, s, image.ref)
	dest := to.host + "/copy/app:2"
	if err := s.Tag(t.Context(), image.ref, dest); err != nil {
		t.Fatal(err)
	}
	pushed, err := s.Push(t.Context(), dest, PushOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if pushed.Digest != image.manifest.Digest || pushed.Uploaded != 5 || pushed.Existed+pushed.Mounted != 0 || pushed.Bytes == 0 || pushed.Name != dest {
		t.Errorf("pushed %+v", pushed)
	}
	assertSame(t, from, "team/app:1", to, "copy/app:2")
	again, err := s.Push(t.Context(), image.id, PushOptions{To: dest})
	if err != nil || again.Uploaded != 0 || again.Existed != 5 || again.Bytes != 0 {
		t.Errorf("pushed again: %+v, %v", again, err)
	}
	here, err := s.Status(t.Context(), dest)
	if want := to.host + "/copy/app@" + image.manifest.Digest.String(); err != nil || !slices.Contains(here.RepoDigests, want) {
		t.Errorf("%s is not among %v, %v", want, here.RepoDigests, err)
	}
	back := openStore(t, Config{})
	if got := mustPull(t, back, dest); got.ID != image.id {
		t.Errorf("pulled %s, want %s", got.ID, image.id)
	}
	assertNothingHalfMade(t, s)
}

func TestPushIndex(t *testing.T) {
	from, to := newFakeRegistry(t), newFakeRegistry(t)
	index, other := from.pushIndex("team/multi", "1")
	ref := from.host + "/team/multi:1"
	s := openStore(t, Config{})
	own := mustPull(t, s, ref)

	t.Run("only what is here", func(t *testing.T) {
		pushed, err := s.Push(t.Context(), ref, PushOptions{To: to.host + "/one:1"})
		if err != nil {
			t.Fatal(err)
		}
		missing := strings.Join(pushed.Missing, " ")
		if pushed.Digest == index.Digest || len(pushed.Missing) != 2 || !strings.Contains(missing, other.manifest.Digest.String()) || !strings.Contains(missing, "linux/") {
			t.Errorf("pushed %+v", pushed)
		}
		assertSame(t, from, "team/multi:own", to, "one:1")
	})
	t.Run("a platform that is not here", func(t *testing.T) {
		platform := ocispec.Platform{OS: "linux", Architecture: "s390x"}
		_, err := s.Push(t.Context(), ref, PushOptions{To: to.host + "/none:1", SendOptions: SendOptions{Platform: &platform}})
		if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "no image for this platform") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("all, fetched", func(t *testing.T) {
		pushed, err := s.Push(t.Context(), own.ID, PushOptions{To: to.host + "/all:1", SendOptions: SendOptions{All: true}})
		if err != nil || pushed.Digest != index.Digest || len(pushed.Missing) > 0 {
			t.Fatalf("pushed %+v, %v", pushed, err)
		}
		assertSame(t, from, "team/multi:1", to, "all:1")
	})
	t.Run("all, and the origin has it no more", func(t *testing.T) {
		from.setSpoil(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			gone := strings.HasSuffix(r.URL.Path, other.manifest.Digest.String())
			if gone {
				w.WriteHeader(http.StatusNotFound)
			}
			return gone
		})
		defer from.setSpoil(nil)
		_, err := s.Push(t.Context(), own.ID, PushOptions{To: to.host + "/gone:1", SendOptions: SendOptions{All: true}})
		if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), other.manifest.Digest.String()) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("whole, when all of it is here", func(t *testing.T) {
		platform := ocispec.Platform{OS: "linux", Architecture: other.platformArch()}
		if _, err := s.Pull(t.Context(), ref, PullOptions{Platform: &platform}); err != nil {
			t.Fatal(err)
		}
		pushed, err := s.Push(t.Context(), ref, PushOptions{To: to.host + "/some:1"})
		if err != nil || len(pushed.Missing) != 1 {
			t.Fatalf("pushed %+v, %v", pushed, err) // the artifact is not here
		}
		one, err := s.Push(t.Context(), ref, PushOptions{To: to.host + "/arch:1", SendOptions: SendOptions{Platform: &platform}})
		if err != nil || one.Digest != other.manifest.Digest {
			t.Errorf("pushed %+v, %v", one, err)
		}
	})
	assertNothingHalfMade(t, s)
}

func (i testImage) platformArch() string {
	return map[bool]string{true: "arm64", false: "amd64"}[runtime.GOARCH == "amd64"]
}

func TestPushMounts(t *testing.T) {
	f := newFakeRegistry(t)
	image := f.push("team/base", "1", []testLayer{makeLayer(t, "gzip", map[string]string{"a": "1"})})
	s := openStore(t, Config{})
	mustPull(t, s, image.ref)
	var mounts, uploads atomic.Int32
	refuse := false
	f.setSpoil(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		switch {
		case r.Method == http.MethodHead && strings.Contains(r.URL.Path, "/team/derived/blobs/"): // the fake has one set of blobs for all
			w.WriteHeader(http.StatusNotFound)
		case r.Method == http.MethodPost && r.URL.Query().Get("from") == "team/base" && !refuse:
			mounts.Add(1)
			w.Header().Set("Location", "/v2/team/derived/blobs/"+r.URL.Query().Get("mount"))
			w.WriteHeader(http.StatusCreated)
		default:
			if r.Method == http.MethodPost {
				uploads.Add(1)
				r.URL.RawQuery = ""
			}
			return false
		}
		return true
	})
	pushed, err := s.Push(t.Context(), image.ref, PushOptions{To: f.host + "/team/derived:1"})
	if err != nil || pushed.Mounted != 2 || pushed.Uploaded != 1 || mounts.Load() != 2 || uploads.Load() != 0 {
		t.Errorf("pushed %+v, %v; %d mounts, %d uploads", pushed, err, mounts.Load(), uploads.Load())
	}
	refuse = true
	pushed, err = s.Push(t.Context(), image.ref, PushOptions{To: f.host + "/team/derived:2"})
	if err != nil || pushed.Mounted != 0 || uploads.Load() != 2 {
		t.Errorf("when the registry does not mount: %+v, %v; %d uploads", pushed, err, uploads.Load())
	}
}

func TestPushFaults(t *testing.T) {
	f := newFakeRegistry(t)
	image := f.push("from", "1", []testLayer{makeLayer(t, "gzip", map[string]string{"a": strings.Repeat("1", 1000)})})
	s := openStore(t, Config{NoProgress: 2 * time.Second})
	mustPull(t, s, image.ref)
	target := newFakeRegistry(t)
	var calls atomic.Int32
	for name, tt := range map[string]struct {
		spoil func(w http.ResponseWriter, r *http.Request) bool
		kind  func(error) bool
		says  string
	}{
		"refused": {func(w http.ResponseWriter, r *http.Request) bool {
			w.WriteHeader(http.StatusForbidden)
			return true
		}, errdefs.IsPermissionDenied, "403 Forbidden"},
		"a manifest that is not liked": {func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPut || !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			w.WriteHeader(http.StatusBadRequest)
			return true
		}, errdefs.IsFailedPrecondition, "400 Bad Request"},
		"busy for a while": {func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPut || calls.Add(1) > 1 {
				return false
			}
			w.WriteHeader(http.StatusBadGateway)
			return true
		}, nil, ""},
		"cut": {func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPut || calls.Add(1) > 1 {
				return false
			}
			panic(http.ErrAbortHandler)
		}, nil, ""},
		"stalled": {func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPut {
				return false
			}
			_, _ = io.Copy(io.Discard, r.Body) // the server sees that the client is gone only after that
			<-r.Context().Done()
			return true
		}, func(err error) bool { return err != nil }, "no byte moved"},
	} {
		t.Run(name, func(t *testing.T) {
			calls.Store(0)
			target.setSpoil(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool { return tt.spoil(w, r) })
			dest := target.host + "/" + strings.ReplaceAll(name, " ", "-") + ":1"
			_, err := s.Push(t.Context(), image.ref, PushOptions{To: dest})
			if tt.kind == nil && err != nil || tt.kind != nil && (!tt.kind(err) || !strings.Contains(err.Error(), tt.says)) {
				t.Errorf("got %v", err)
			}
			assertNothingHalfMade(t, s)
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	target.setSpoil(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		_, _ = io.Copy(io.Discard, r.Body)
		cancel()
		<-r.Context().Done()
		return true
	})
	if _, err := s.Push(ctx, image.ref, PushOptions{To: target.host + "/cancelled:1"}); err == nil || !strings.Contains(err.Error(), "canceled") {
		t.Errorf("cancelled: %v", err)
	}
	for ref, kind := range map[string]func(error) bool{
		"nothing.example/x:1": errdefs.IsNotFound, "a b": errdefs.IsInvalidArgument,
	} {
		if _, err := s.Push(t.Context(), ref, PushOptions{}); !kind(err) {
			t.Errorf("push %s: %v", ref, err)
		}
	}
	byDigest := f.host + "/from@" + image.manifest.Digest.String()
	if _, err := s.Push(t.Context(), byDigest, PushOptions{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("push to a digest: %v", err)
	}
}

// TestPushRefetches pushes an image whose layers are not kept.
func TestPushRefetches(t *testing.T) {
	from, to := newFakeRegistry(t), newFakeRegistry(t)
	image := from.push("app", "1", []testLayer{makeLayer(t, "gzip", map[string]string{"a": "1"})})
	s := openStore(t, Config{})
	mustPull(t, s, image.ref)
	ctx := s.storeContext(t.Context())
	layer := image.layers[0].Digest
	if err := s.content.Delete(ctx, layer); err != nil {
		t.Fatal(err)
	}
	pushed, err := s.Push(t.Context(), image.ref, PushOptions{To: to.host + "/copy:1"})
	if err != nil || pushed.Uploaded != 3 {
		t.Fatalf("pushed %+v, %v", pushed, err)
	}
	assertSame(t, from, "app:1", to, "copy:1")
	if _, err := s.content.Info(ctx, layer); !errdefs.IsNotFound(err) {
		t.Errorf("the layer is kept now: %v", err)
	}
	from.blob(layer, []byte("something else"))
	third := newFakeRegistry(t)
	_, err = s.Push(t.Context(), image.ref, PushOptions{To: third.host + "/copy:1"})
	if !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), digest.Digest(layer).String()) {
		t.Errorf("the origin has something else: %v", err)
	}
	from.server.Close()
	if _, err = s.Push(t.Context(), image.ref, PushOptions{To: third.host + "/copy:1"}); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "where the image came from") {
		t.Errorf("the origin is gone: %v", err)
	}
}

func TestTag(t *testing.T) {
	f := newFakeRegistry(t)
	one := f.push("one", "1", []testLayer{makeLayer(t, "gzip", map[string]string{"a": "1"})})
	two := f.push("two", "1", []testLayer{makeLayer(t, "gzip", map[string]string{"a": "2"})})
	s := openStore(t, Config{Pinned: []string{"example.com/pinned:1"}})
	mustPull(t, s, one.ref)
	mustPull(t, s, two.ref)
	for _, ref := range []string{one.ref, one.id, one.id[7:20]} {
		if err := s.Tag(t.Context(), ref, "example.com/app:2"); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := s.Status(t.Context(), "example.com/app:2"); err != nil || got.ID != one.id || len(got.RepoTags) != 2 || len(got.RepoDigests) != 1 {
		t.Errorf("tagged: %+v, %v", got, err)
	}
	if err := s.Tag(t.Context(), two.ref, "example.com/app:2"); err != nil {
		t.Fatal(err)
	}
	if got, _ := s.Status(t.Context(), "example.com/app:2"); got.ID != two.id {
		t.Errorf("the tag means %s", got.ID)
	}
	if err := s.Tag(t.Context(), one.ref, "example.com/pinned:1"); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"retag pinned":  s.Tag(t.Context(), two.ref, "example.com/pinned:1"),
		"untag pinned":  s.Untag(t.Context(), "example.com/pinned:1"),
		"remove pinned": s.Remove(t.Context(), one.id),
	} {
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "image.pinned") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := s.Tag(t.Context(), one.ref, "example.com/pinned:1"); err != nil {
		t.Error("the same again:", err)
	}
	for name, err := range map[string]error{
		"by digest": s.Tag(t.Context(), one.ref, "example.com/a@"+one.manifest.Digest.String()),
		"no name":   s.Tag(t.Context(), one.ref, "a b"),
	} {
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, err := range map[string]error{
		"tag nothing":   s.Tag(t.Context(), "example.com/none:1", "example.com/b:1"),
		"untag nothing": s.Untag(t.Context(), "example.com/none:1"),
	} {
		if !errdefs.IsNotFound(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	got, _ := s.Status(t.Context(), two.id)
	for _, name := range append(got.RepoTags, got.RepoDigests...) {
		if err := s.Untag(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Status(t.Context(), two.id); !errdefs.IsNotFound(err) {
		t.Errorf("an image without a name: %v", err)
	}
	if _, err := s.content.Info(s.storeContext(t.Context()), two.manifest.Digest); !errdefs.IsNotFound(err) {
		t.Errorf("its manifest: %v", err)
	}
}
