package registry

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// manifests answers every manifest with the same document.
func manifests(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
	w.Header().Set("Docker-Content-Digest", digest.FromString("{}").String())
	w.Header().Set("Content-Length", "2")
	if r.Method == http.MethodGet {
		_, _ = io.WriteString(w, "{}")
	}
}

func resolve(t *testing.T, c Config, ref string, o Options) error {
	t.Helper()
	r, err := Open(t.Context(), c, ref, o)
	if err != nil {
		return err
	}
	defer r.Close()
	d, err := r.Resolve(t.Context())
	if err != nil {
		return err
	}
	stream, err := r.Fetch(t.Context(), d)
	if err != nil {
		return err
	}
	defer stream.Close()
	if data, err := io.ReadAll(stream); err != nil || string(data) != "{}" {
		return fmt.Errorf("%q, %w", data, err)
	}
	return nil
}

// TestSchemes reaches registries on loopback by HTTP and by HTTPS, and others by HTTPS unless configured.
func TestSchemes(t *testing.T) {
	plain := httptest.NewServer(http.HandlerFunc(manifests))
	defer plain.Close()
	secure := httptest.NewTLSServer(http.HandlerFunc(manifests))
	defer secure.Close()
	host := strings.TrimPrefix(plain.URL, "http://")
	if err := resolve(t, Config{}, host+"/a:1", Options{}); err != nil {
		t.Error("plain on loopback:", err)
	}
	if err := resolve(t, Config{}, strings.TrimPrefix(secure.URL, "https://")+"/a:1", Options{}); err != nil {
		t.Error("HTTPS on loopback:", err)
	}
	for _, test := range []struct {
		plain  []string
		scheme string
	}{
		{nil, "https"}, {[]string{"other.example"}, "https"}, {[]string{"registry.example"}, "http"}, {[]string{"registry.example:5000"}, "http"},
	} {
		hosts := []docker.RegistryHost{{Host: "registry.example:5000", Scheme: "https"}}
		Config{PlainHTTP: test.plain}.plain(hosts)
		if hosts[0].Scheme != test.scheme {
			t.Errorf("with plain %v: %s", test.plain, hosts[0].Scheme)
		}
	}
}

// TestHostsTOML sends the pulls of a registry that does not exist to a mirror with its own CA.
func TestHostsTOML(t *testing.T) {
	var namespace atomic.Value
	mirror := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		namespace.Store(r.URL.Query().Get("ns"))
		manifests(w, r)
	}))
	defer mirror.Close()
	root := t.TempDir()
	dir := filepath.Join(root, "registry.invalid")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: mirror.Certificate().Raw})
	write := func(name, content string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("ca.pem", string(ca))
	write("hosts.toml", fmt.Sprintf("server = \"https://registry.invalid\"\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n  ca = \"ca.pem\"\n", mirror.URL))
	c := Config{HostsDirs: []string{t.TempDir(), root}}
	if err := resolve(t, c, "registry.invalid/a:1", Options{}); err != nil {
		t.Fatal(err)
	}
	if namespace.Load() != "registry.invalid" {
		t.Errorf("the mirror was asked for namespace %q", namespace.Load())
	}
	write("hosts.toml", fmt.Sprintf("server = %q\n", mirror.URL))
	err := resolve(t, c, "registry.invalid/a:1", Options{})
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), mirror.URL) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("without the CA: %v", err)
	}
}

// TestRetryAfter waits as long as a busy registry asks, tells of the wait, and gives up when it asks for too much.
func TestRetryAfter(t *testing.T) {
	var requests, waits atomic.Int32
	after := "0"
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n := requests.Add(1); n <= 2 || after != "0" {
			w.Header().Set("Retry-After", after)
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		manifests(w, r)
	}))
	defer server.Close()
	ref := strings.TrimPrefix(server.URL, "http://") + "/a:1"
	wait := func() func() { waits.Add(1); return func() {} }
	if err := resolve(t, Config{}, ref, Options{Wait: wait}); err != nil || waits.Load() != 2 {
		t.Errorf("%v after %d waits", err, waits.Load())
	}
	after = "100000"
	if err := resolve(t, Config{}, ref, Options{}); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "429") {
		t.Errorf("asked to wait for a day: %v", err)
	}
	after = "60"
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	r, err := Open(ctx, Config{}, ref, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Resolve(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("cancelled while waiting: %v", err)
	}
}

func TestRetryAfterValues(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": -1, "x": -1, "-1": -1, "0": 0, "7": 7 * time.Second,
		"Fri, 02 Jan 2026 03:04:35 GMT": 30 * time.Second, "Fri, 02 Jan 2026 03:00:00 GMT": 0,
	} {
		got, ok := retryAfter(&http.Response{StatusCode: 429, Header: http.Header{"Retry-After": {value}}}, now)
		if ok != (want >= 0) || ok && got != want {
			t.Errorf("%q: %v %v", value, got, ok)
		}
	}
	if _, ok := retryAfter(&http.Response{StatusCode: 500, Header: http.Header{"Retry-After": {"1"}}}, now); ok {
		t.Error("500 is no request for patience")
	}
}

func TestAuthSecret(t *testing.T) {
	for name, test := range map[string]struct {
		auth         Auth
		user, secret string
		bad          bool
	}{
		"none":       {Auth{}, "", "", false},
		"user":       {Auth{Username: "u", Password: "p", Auth: "eDp5"}, "u", "p", false},
		"base64":     {Auth{Auth: "dTpwOnE="}, "u", "p:q", false},
		"no padding": {Auth{Auth: "dTpwOnE"}, "u", "p:q", false},
		"NULs":       {Auth{Auth: "dTpwAAA="}, "u", "p", false},
		"identity":   {Auth{IdentityToken: "t", Username: "u"}, "", "t", false},
		"no base64":  {Auth{Auth: "%%"}, "", "", true},
		"no colon":   {Auth{Auth: "dXA="}, "", "", true},
	} {
		user, secret, err := test.auth.secret()
		if user != test.user || secret != test.secret || errdefs.IsInvalidArgument(err) != test.bad {
			t.Errorf("%s: %q %q %v", name, user, secret, err)
		}
		if err != nil && strings.Contains(err.Error(), test.auth.Auth) {
			t.Errorf("%s: the error tells the credential: %v", name, err)
		}
	}
	if (Auth{Username: "ab", Password: "c"}).Key() == (Auth{Username: "a", Password: "bc"}).Key() {
		t.Error("two credentials have one key")
	}
}

func TestAuthAppliesTo(t *testing.T) {
	for _, test := range []struct {
		address, host string
		want          bool
	}{
		{"", "any", true}, {"r.example", "r.example", true}, {"https://r.example/v2/", "r.example", true},
		{"https://index.docker.io/v1/", "registry-1.docker.io", true}, {"r.example:5000", "r.example", false},
		{"r.example", "evil.example", false}, {"https://r.example@evil.example/", "r.example", false}, {"%zz", "r.example", false},
	} {
		if got := (Auth{ServerAddress: test.address}).appliesTo(test.host); got != test.want {
			t.Errorf("%q to %q: %v", test.address, test.host, got)
		}
	}
}

// TestURLsAreNotFollowed has a descriptor that points elsewhere.
func TestURLsAreNotFollowed(t *testing.T) {
	var asked atomic.Bool
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Store(true) }))
	defer elsewhere.Close()
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	r, err := Open(t.Context(), Config{}, strings.TrimPrefix(server.URL, "http://")+"/a:1", Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	stream, err := r.Fetch(t.Context(), ocispec.Descriptor{Digest: digest.FromString("x"), Size: 1, URLs: []string{elsewhere.URL}})
	if err == nil {
		defer stream.Close()
		_, err = io.ReadAll(stream)
	}
	if !errdefs.IsNotFound(err) || asked.Load() {
		t.Errorf("%v, asked elsewhere: %v", err, asked.Load())
	}
}
