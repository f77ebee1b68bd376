package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/image/registry"
)

// TestPullRefuses pulls what is broken in all ways: the error says what, names the reference, and nothing is left.
func TestPullRefuses(t *testing.T) {
	good := makeLayer(t, "gzip", map[string]string{"a": strings.Repeat("a", 50_000)})
	second := makeLayer(t, "zstd", map[string]string{"b": "b"})
	spoiled := func(change func(*testLayer)) []testLayer {
		l := good
		l.blob = bytes.Clone(l.blob)
		change(&l)
		return []testLayer{second, l}
	}
	escape := packLayer(t, "", tarOf(t, tar.Header{Typeflag: tar.TypeReg, Name: "../../escaped", Mode: 0o644}))
	for name, test := range map[string]struct {
		layers []testLayer
		edit   func(*ocispec.Image, *ocispec.Manifest)
		kind   func(error) bool
		text   string
	}{
		"bad digest":      {spoiled(func(l *testLayer) { l.blob[len(l.blob)/2] ^= 1 }), nil, errdefs.IsDataLoss, "has the digest"},
		"truncated":       {spoiled(func(l *testLayer) { l.blob = l.blob[:len(l.blob)-9] }), nil, errdefs.IsDataLoss, "its descriptor says"},
		"longer":          {spoiled(func(l *testLayer) { l.blob = append(l.blob, 0) }), nil, errdefs.IsDataLoss, "its descriptor says"},
		"bad diffID":      {spoiled(func(l *testLayer) { l.diffID = digest.FromString("other") }), nil, errdefs.IsDataLoss, "the configuration says"},
		"not a tar":       {[]testLayer{packLayer(t, "gzip", bytes.Repeat([]byte("no tar "), 500))}, nil, errdefs.IsInvalidArgument, "layer 1 of 1"},
		"not gzip":        {spoiled(func(l *testLayer) { *l = packLayer(t, "", append([]byte{0x1f, 0x8b, 9, 9}, make([]byte, 2000)...)) }), nil, any1, "gzip"},
		"more diffIDs":    {[]testLayer{good}, func(c *ocispec.Image, _ *ocispec.Manifest) { c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, good.diffID) }, errdefs.IsInvalidArgument, "names 2 layers"},
		"windows":         {[]testLayer{good}, func(c *ocispec.Image, _ *ocispec.Manifest) { c.OS = "windows" }, errdefs.IsInvalidArgument, "windows"},
		"encrypted":       {[]testLayer{good}, func(_ *ocispec.Image, m *ocispec.Manifest) { m.Layers[0].MediaType += "+encrypted" }, errdefs.IsNotImplemented, "encrypted"},
		"artifact":        {[]testLayer{good}, func(_ *ocispec.Image, m *ocispec.Manifest) { m.Config.MediaType = "application/vnd.example+json" }, errdefs.IsInvalidArgument, "artifact"},
		"no digest":       {[]testLayer{good}, func(_ *ocispec.Image, m *ocispec.Manifest) { m.Layers[0].Digest = "sha256:../../x" }, errdefs.IsInvalidArgument, "digest"},
		"missing blob":    {[]testLayer{good}, func(_ *ocispec.Image, m *ocispec.Manifest) { m.Layers[0].Digest = digest.FromString("none") }, errdefs.IsNotFound, "404"},
		"negative size":   {[]testLayer{good}, func(_ *ocispec.Image, m *ocispec.Manifest) { m.Layers[0].Size = -1 }, errdefs.IsInvalidArgument, "size"},
		"name that leads": {[]testLayer{escape}, nil, any1, "escaped"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeRegistry(t)
			var edits []func(*ocispec.Image, *ocispec.Manifest)
			if test.edit != nil {
				edits = append(edits, test.edit)
			}
			pushed := f.push("bad", "1", test.layers, edits...)
			s := openStore(t, Config{})
			_, err := s.Pull(t.Context(), pushed.ref, PullOptions{})
			if err == nil {
				t.Fatal("it was pulled")
			}
			if !test.kind(err) || !strings.Contains(err.Error(), test.text) || !strings.Contains(err.Error(), pushed.ref) {
				t.Errorf("error: %v", err)
			}
			assertEmpty(t, s)
		})
	}
}

func any1(error) bool { return true }

func tarOf(t *testing.T, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestPullResumes breaks the connection of a layer again and again: the rest is asked for by range.
func TestPullResumes(t *testing.T) {
	f := newFakeRegistry(t)
	l := makeLayer(t, "", map[string]string{"a": strings.Repeat("0123456789", 60_000)})
	pushed := f.push("app", "1", []testLayer{l})
	var ranges atomic.Int32
	f.setSpoil(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, l.Digest.String()) {
			return false
		}
		var from int
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from); err == nil {
			ranges.Add(1)
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(l.blob)-1, len(l.blob)))
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(l.blob)-from))
		if from > 0 {
			w.WriteHeader(http.StatusPartialContent)
		}
		_, _ = w.Write(l.blob[from:min(from+100_000, len(l.blob))])
		return true
	})
	s := openStore(t, Config{})
	mustPull(t, s, pushed.ref)
	if n := ranges.Load(); n < 5 {
		t.Errorf("%d requests by range", n)
	}
	assertNothingHalfMade(t, s)
}

// hang makes the registry send the first half of a layer and then nothing, and tells when it does.
func (f *fakeRegistry) hang(l testLayer) (hanging <-chan struct{}) {
	reached := make(chan struct{}, 100)
	f.setSpoil(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, l.Digest.String()) {
			return false
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(l.blob)))
		_, _ = w.Write(l.blob[:len(l.blob)/2])
		w.(http.Flusher).Flush()
		reached <- struct{}{}
		<-r.Context().Done()
		return true
	})
	return reached
}

func TestPullWithoutProgressEnds(t *testing.T) {
	f := newFakeRegistry(t)
	l := makeLayer(t, "", map[string]string{"a": strings.Repeat("a", 500_000)})
	pushed := f.push("app", "1", []testLayer{l})
	f.hang(l)
	s := openStore(t, Config{NoProgress: 300 * time.Millisecond})
	_, err := s.Pull(t.Context(), pushed.ref, PullOptions{})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no byte moved for 300ms") || !strings.Contains(err.Error(), pushed.ref) {
		t.Errorf("error: %v", err)
	}
	assertEmpty(t, s)
}

// TestCancelLeavesNothing cancels a pull in the middle of a layer, with another caller waiting for it and without.
func TestCancelLeavesNothing(t *testing.T) {
	f := newFakeRegistry(t)
	l := makeLayer(t, "", map[string]string{"a": strings.Repeat("a", 500_000)})
	pushed := f.push("app", "1", []testLayer{makeLayer(t, "gzip", map[string]string{"b": "b"}), l})
	hanging := f.hang(l)
	s := openStore(t, Config{})

	firstCtx, cancelFirst := context.WithCancel(t.Context())
	secondCtx, cancelSecond := context.WithCancel(t.Context())
	results := make(chan error, 2)
	pull := func(ctx context.Context) {
		_, err := s.Pull(ctx, pushed.ref, PullOptions{})
		results <- err
	}
	go pull(firstCtx)
	<-hanging
	go pull(secondCtx)
	waitFor(t, func() bool { return s.pulls.waiters() == 2 })
	cancelFirst()
	if err := <-results; !errors.Is(err, context.Canceled) {
		t.Errorf("first: %v", err)
	}
	if n := s.pulls.waiters(); n != 1 {
		t.Errorf("the pull has %d waiters after one of two left", n)
	}
	cancelSecond()
	if err := <-results; !errors.Is(err, context.Canceled) {
		t.Errorf("second: %v", err)
	}
	assertNothingHalfMade(t, s)
	assertEmpty(t, s)

	f.setSpoil(nil)
	mustPull(t, s, pushed.ref)
}

// waiters counts the callers of all pulls.
func (f *flights) waiters() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		n += c.waiters
	}
	return n
}

func waitFor(t *testing.T, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited for too long")
		}
	}
}

// TestConcurrentPulls pulls one image by many callers, and others that share its layers, at once: each layer is fetched once.
func TestConcurrentPulls(t *testing.T) {
	f := newFakeRegistry(t)
	var layers []testLayer
	for i := range 6 {
		layers = append(layers, makeLayer(t, []string{"gzip", "zstd", ""}[i%3], map[string]string{fmt.Sprintf("f%d", i): strings.Repeat(strconv.Itoa(i), 80_000)}))
	}
	var refs []string
	for i := range 5 {
		refs = append(refs, f.push("app", strconv.Itoa(i), append(layers[i:], layers[:i]...)[:5]).ref)
	}
	s := openStore(t, Config{Parallel: 3})
	var group sync.WaitGroup
	for i := range 40 {
		group.Go(func() {
			if _, err := s.Pull(t.Context(), refs[i%len(refs)], PullOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	for _, l := range layers {
		if n := f.blobGets(l.Digest); n > 1 {
			t.Errorf("a layer was fetched %d times", n)
		}
	}
	if images, _ := s.List(t.Context()); len(images) != len(refs) {
		t.Errorf("%d images, want %d", len(images), len(refs))
	}
	assertNothingHalfMade(t, s)
	for _, ref := range refs {
		group.Go(func() {
			if err := s.Remove(t.Context(), ref); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	assertEmpty(t, s)
}

// TestPullAndRemoveRace removes an image while it is pulled, again and again: a pull that succeeded can be used.
func TestPullAndRemoveRace(t *testing.T) {
	f := newFakeRegistry(t)
	pushed := f.push("app", "1", []testLayer{
		makeLayer(t, "gzip", map[string]string{"a": "a"}), makeLayer(t, "gzip", map[string]string{"b": "b"}),
	})
	s := openStore(t, Config{})
	stop := make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if err := s.Remove(t.Context(), pushed.ref); err != nil {
					t.Error(err)
				}
			}
		}
	})
	for i := range 6 {
		if _, err := s.Pull(t.Context(), pushed.ref, PullOptions{}); err != nil {
			t.Error(err)
			break
		}
		key := strconv.Itoa(i)
		if _, err := s.Prepare(t.Context(), key, pushed.id); err == nil {
			if data, err := s.ReadFile(t.Context(), pushed.id, "a", 10); err != nil && !errdefs.IsNotFound(err) {
				t.Errorf("%q, %v", data, err)
			}
		} else if !errdefs.IsNotFound(err) {
			t.Error(err)
		}
		if err := s.Release(t.Context(), key); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	group.Wait()
	if err := s.Remove(t.Context(), pushed.ref); err != nil {
		t.Error(err)
	}
	assertEmpty(t, s)
}

// TestAuthentication pulls with each form of credential from a registry with a token server.
func TestAuthentication(t *testing.T) {
	f := newFakeRegistry(t)
	pushed := f.push("private", "1", []testLayer{makeLayer(t, "gzip", map[string]string{"a": "a"})})
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		user, password, _ := r.BasicAuth()
		if user == "u" && password == "p" || r.PostForm.Get("refresh_token") == "identity" {
			fmt.Fprint(w, `{"token":"good","access_token":"good"}`)
			return
		}
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"errors":[{"code":"UNAUTHORIZED","message":"who are you"}]}`)
	}))
	defer tokens.Close()
	f.setSpoil(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if r.Header.Get("Authorization") == "Bearer good" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+tokens.URL+`/token",service="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
		return true
	})
	for name, test := range map[string]struct {
		auth Auth
		ok   bool
	}{
		"none":           {Auth{}, false},
		"password":       {Auth{Username: "u", Password: "p"}, true},
		"wrong password": {Auth{Username: "u", Password: "x"}, false},
		"auth":           {Auth{Auth: "dTpw"}, true},
		"identity token": {Auth{IdentityToken: "identity"}, true},
		"registry token": {Auth{RegistryToken: "good"}, true},
		"wrong token":    {Auth{RegistryToken: "bad"}, false},
		"for this host":  {Auth{Username: "u", Password: "p", ServerAddress: f.server.URL + "/v2/"}, true},
		"for another":    {Auth{Username: "u", Password: "p", ServerAddress: "registry.example"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, Config{})
			_, err := s.Pull(t.Context(), pushed.ref, PullOptions{Auth: test.auth})
			if test.ok && err != nil {
				t.Fatal(err)
			}
			if !test.ok && (!errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "401") || strings.Contains(err.Error(), "bad")) {
				t.Fatalf("error: %v", err)
			}
		})
	}
	s := openStore(t, Config{Registry: registry.Config{Credentials: func(_ context.Context, host, repository string) (Auth, error) {
		if host != f.host || repository != "private" {
			return Auth{}, nil
		}
		return Auth{Username: "u", Password: "p"}, nil
	}}})
	mustPull(t, s, pushed.ref)
}

// TestErrorNamesEveryEndpoint has a mirror that is down and one that lacks the image.
func TestErrorNamesEveryEndpoint(t *testing.T) {
	down := httptest.NewServer(nil)
	down.Close()
	empty, origin := newFakeRegistry(t), newFakeRegistry(t)
	pushed := origin.push("app", "1", []testLayer{makeLayer(t, "gzip", map[string]string{"a": "a"})})
	dir := t.TempDir()
	writeHosts(t, dir, origin.host, fmt.Sprintf("server = %q\n[host.%q]\n[host.%q]\n", origin.server.URL, down.URL, empty.server.URL))
	s := openStore(t, Config{Registry: registry.Config{HostsDirs: []string{dir}}})
	mustPull(t, s, pushed.ref)
	_, err := s.Pull(t.Context(), origin.host+"/app:none", PullOptions{})
	if !errdefs.IsNotFound(err) {
		t.Errorf("error: %v", err)
	}
	for _, want := range []string{down.URL + "/v2/app/manifests/none: ", "connection refused", empty.server.URL + "/v2/app/manifests/none: 404", origin.server.URL + "/v2/app/manifests/none: 404"} {
		if !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%q is not in the error: %v", want, err)
		}
	}
	writeHosts(t, dir, origin.host, "server = \n")
	if _, err := s.Pull(t.Context(), pushed.ref, PullOptions{}); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "hosts.toml") {
		t.Errorf("with a broken hosts.toml: %v", err)
	}
}

func writeHosts(t *testing.T, dir, host, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, host), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, host, "hosts.toml"), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestCloseEndsPulls closes the store in the middle of a pull.
func TestCloseEndsPulls(t *testing.T) {
	f := newFakeRegistry(t)
	l := makeLayer(t, "", map[string]string{"a": strings.Repeat("a", 500_000)})
	pushed := f.push("app", "1", []testLayer{l})
	hanging := f.hang(l)
	s := openStore(t, Config{})
	result := make(chan error, 1)
	go func() {
		_, err := s.Pull(t.Context(), pushed.ref, PullOptions{})
		result <- err
	}()
	<-hanging
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-result; !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "closing") {
		t.Errorf("error: %v", err)
	}
	if _, err := s.Pull(t.Context(), pushed.ref, PullOptions{}); !errdefs.IsUnavailable(err) {
		t.Errorf("pull after close: %v", err)
	}
}

// The environment by which TestKillMidPull's child knows what to pull where.
const (
	envKillRoot = "CRISERVER_TEST_KILL_ROOT"
	envKillRef  = "CRISERVER_TEST_KILL_REF"
)

// startPulling has the calling test pull in a process of its own, until that hangs. What it returns kills the process.
func startPulling(t *testing.T, root, ref string, hanging <-chan struct{}) (kill func()) {
	t.Helper()
	test, _, _ := strings.Cut(t.Name(), "/")
	child := exec.Command("/proc/self/exe", "-test.run=^"+test+"$")
	child.Env = append(os.Environ(), envKillRoot+"="+root, envKillRef+"="+ref)
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-hanging:
	case <-time.After(30 * time.Second):
		t.Error("the child did not get as far as the layer")
	}
	return func() {
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = child.Wait()
	}
}

// TestKillMidPull kills a process with SIGKILL in the middle of a layer: the next start finds nothing half-made, and the
// image can be pulled.
func TestKillMidPull(t *testing.T) {
	if root := os.Getenv(envKillRoot); root != "" {
		s := openStore(t, Config{Root: root})
		_, err := s.Pull(t.Context(), os.Getenv(envKillRef), PullOptions{})
		t.Fatal("the pull ended: ", err)
	}
	f := newFakeRegistry(t)
	l := makeLayer(t, "", map[string]string{"a": strings.Repeat("a", 500_000)})
	pushed := f.push("app", "1", []testLayer{makeLayer(t, "gzip", map[string]string{"b": "b"}), l})
	hanging := f.hang(l)
	root := t.TempDir()
	startPulling(t, root, pushed.ref, hanging)()
	if entries, err := os.ReadDir(filepath.Join(root, "content/ingest")); err != nil || len(entries) == 0 {
		t.Errorf("the child had nothing half-made: %v, %v", entries, err)
	}
	s := openStore(t, Config{Root: root})
	assertEmpty(t, s)
	f.setSpoil(nil)
	mustPull(t, s, pushed.ref)
}
