package registry

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// mirror is a registry with TLS that a hosts.toml leads to, and what it was asked.
type mirror struct {
	*httptest.Server
	ca string // PEM

	mu    sync.Mutex
	asked []string
	seen  http.Header // of the last request
}

func newMirror(t *testing.T, answer http.HandlerFunc) *mirror {
	t.Helper()
	m := &mirror{}
	m.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.mu.Lock()
		m.asked = append(m.asked, r.Method+" "+r.URL.RequestURI())
		m.seen = r.Header.Clone()
		m.mu.Unlock()
		answer(w, r)
	}))
	m.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	m.StartTLS()
	t.Cleanup(m.Close)
	m.ca = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.Certificate().Raw}))
	return m
}

func (m *mirror) count() int { m.mu.Lock(); defer m.mu.Unlock(); return len(m.asked) }

// hostsDir writes a directory of a registry.
func hostsDir(t *testing.T, registry string, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, registry, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// clientPair is a certificate for a client and its key, in one PEM.
func clientPair(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "node"}, NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})) +
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
}

// TestMirrors applies each key of hosts.toml to registries with TLS.
func TestMirrors(t *testing.T) {
	m := newMirror(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Secret") == "needed" && len(r.TLS.PeerCertificates) == 0 {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		manifests(w, r)
	})
	other := newMirror(t, manifests)
	for name, test := range map[string]struct {
		dir, hosts string
		fail       string
		path       string // that m is asked for
	}{
		"ca":            {hosts: "[host.%q]\nca = 'ca.pem'\n", path: "/v2/a/manifests/1?ns=registry.invalid"},
		"no ca":         {hosts: "[host.%q]\n", fail: "certificate"},
		"skip_verify":   {hosts: "[host.%q]\nskip_verify = true\n", path: "/v2/a/manifests/1"},
		"_default":      {dir: "_default", hosts: "[host.%q]\nca = 'ca.pem'\n", path: "/v2/a/manifests/1?ns=registry.invalid"},
		"override_path": {hosts: "[host.'%s/proxy']\nca = 'ca.pem'\noverride_path = true\n", path: "/proxy/a/manifests/1?"},
		"path":          {hosts: "[host.'%s/proxy']\nca = 'ca.pem'\n", path: "/proxy/v2/a/manifests/1?"},
		"client":        {hosts: "[host.%q]\nca = 'ca.pem'\nclient = 'client.pem'\n[host.%[1]q.header]\nx-secret = 'needed'\n", path: "/v2/a/"},
		"no client":     {hosts: "[host.%q]\nca = 'ca.pem'\n[host.%[1]q.header]\nx-secret = 'needed'\n", fail: "403"},
		"push only":     {hosts: "[host.%q]\nca = 'ca.pem'\ncapabilities = ['push']\n[host.'" + other.URL + "']\nskip_verify = true\n", path: ""},
	} {
		t.Run(name, func(t *testing.T) {
			before := m.count()
			dir := test.dir
			if dir == "" {
				dir = "registry.invalid"
			}
			root := hostsDir(t, dir, map[string]string{"hosts.toml": "server = 'https://127.0.0.1:1'\n" + fmt.Sprintf(test.hosts, m.URL), "ca.pem": m.ca, "client.pem": clientPair(t)})
			err := resolve(t, Config{HostsDirs: []string{root}}, "registry.invalid/a:1", Options{})
			if test.fail != "" {
				if err == nil || !strings.Contains(err.Error(), test.fail) || !strings.Contains(err.Error(), m.URL) || !strings.Contains(err.Error(), "127.0.0.1:1/v2/") {
					t.Errorf("error: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if test.path == "" {
				if m.count() != before {
					t.Errorf("a mirror for pushes was asked %d times", m.count()-before)
				}
				return
			}
			m.mu.Lock()
			defer m.mu.Unlock()
			if len(m.asked) <= before || !strings.Contains(m.asked[before], test.path) {
				t.Errorf("it was asked %v", m.asked[before:])
			}
		})
	}
}

// tokenServer gives tokens and counts how they were asked for.
type tokenServer struct {
	mu    sync.Mutex
	asked []string // "anonymous", "get:user", "post:password", "post:refresh_token", each with the scope
	token string
}

func (s *tokenServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	s.mu.Lock()
	defer s.mu.Unlock()
	user, password, _ := r.BasicAuth()
	how := "anonymous"
	switch {
	case r.Method == http.MethodPost:
		how = "post:" + r.PostForm.Get("grant_type")
		user, password = r.PostForm.Get("username"), r.PostForm.Get("password")
	case user != "":
		how = "get:" + user
	}
	s.asked = append(s.asked, how+" "+r.Form.Get("scope"))
	if user != "" && password != "p" || r.Method == http.MethodPost && user == "" && r.PostForm.Get("refresh_token") != "identity" {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	fmt.Fprintf(w, `{"token":%q,"access_token":%[1]q}`, s.token)
}

// TestTokens goes through the bearer-token flow with TLS: each form of credential, one token for several pulls, and another one
// when the registry does not take it any more.
func TestTokens(t *testing.T) {
	tokens := &tokenServer{token: "one"}
	var issuer *mirror
	good := "one"
	var mu sync.Mutex
	m := newMirror(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if r.Header.Get("Authorization") != "Bearer "+good {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="s",scope="repository:a:pull"`, issuer.URL))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		manifests(w, r)
	})
	issuer = newMirror(t, tokens.ServeHTTP)
	host := strings.TrimPrefix(m.URL, "https://")
	for name, test := range map[string]struct {
		auth Auth
		how  string // of the last question for a token; "" when there is none
		bad  bool
	}{
		"anonymous":      {Auth{}, "anonymous repository:a:pull", false},
		"password":       {Auth{Username: "u", Password: "p"}, "post:password repository:a:pull", false},
		"auth":           {Auth{Auth: "dTpw"}, "post:password repository:a:pull", false},
		"wrong password": {Auth{Username: "u", Password: "x"}, "get:u repository:a:pull", true},
		"identity token": {Auth{IdentityToken: "identity"}, "post:refresh_token repository:a:pull", false},
		"registry token": {Auth{RegistryToken: "one"}, "", false},
		"wrong token":    {Auth{RegistryToken: "two"}, "", true},
	} {
		tokens.asked = nil
		err := resolve(t, Config{}, host+"/a:1", Options{Auth: test.auth})
		if test.bad != errdefs.IsPermissionDenied(err) || !test.bad && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		last := ""
		if n := len(tokens.asked); n > 0 {
			last = tokens.asked[n-1]
		}
		if last != test.how {
			t.Errorf("%s: tokens were asked for by %q", name, tokens.asked)
		}
	}

	c := Config{Cache: &Cache{}}
	defer c.Cache.Close()
	tokens.asked = nil
	for range 3 {
		if err := resolve(t, c, host+"/a:1", Options{}); err != nil {
			t.Fatal(err)
		}
	}
	if len(tokens.asked) != 1 {
		t.Errorf("three pulls asked for tokens by %q", tokens.asked)
	}
	mu.Lock()
	good, tokens.token = "two", "two"
	mu.Unlock()
	if err := resolve(t, c, host+"/a:1", Options{}); err != nil || len(tokens.asked) != 2 {
		t.Errorf("with an outdated token: %v, asked by %q", err, tokens.asked)
	}
	if err := resolve(t, c, host+"/a:1", Options{Auth: Auth{Username: "u", Password: "x"}}); !errdefs.IsPermissionDenied(err) {
		t.Errorf("another credential used the token of the first: %v", err)
	}
}

// TestCredentialsStay has a registry that redirects to a host that asks for a password, and one with TLS that sends to a token
// server without: neither gets it.
func TestCredentialsStay(t *testing.T) {
	thief := newMirror(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
	})
	m := newMirror(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, thief.URL+r.URL.Path, http.StatusTemporaryRedirect)
	})
	root := hostsDir(t, "registry.invalid", map[string]string{"hosts.toml": fmt.Sprintf("server = %q\nskip_verify = true\n[header]\nx-secret = 'needed'\n", m.URL)})
	auth := Options{Auth: Auth{Username: "u", Password: "p"}}
	err := resolve(t, Config{HostsDirs: []string{root}}, "registry.invalid/a:1", auth)
	if !errdefs.IsPermissionDenied(err) || thief.count() == 0 || thief.seen.Get("Authorization") != "" || thief.seen.Get("X-Secret") != "" {
		t.Errorf("%v; it got %v", err, thief.seen)
	}
	plain := newMirror(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://tokens.example/token",service="s"`)
		w.WriteHeader(http.StatusUnauthorized)
	})
	err = resolve(t, Config{}, strings.TrimPrefix(plain.URL, "https://")+"/a:1", auth)
	if !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "without TLS") {
		t.Errorf("a token server without TLS: %v", err)
	}
}

// TestDistrust has a mirror whose content is not what it says: the registry itself is asked.
func TestDistrust(t *testing.T) {
	origin := newMirror(t, manifests)
	bad := newMirror(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			manifests(w, r)
			return
		}
		_, _ = io.WriteString(w, "[]")
	})
	root := hostsDir(t, "registry.invalid", map[string]string{
		"hosts.toml": fmt.Sprintf("server = %q\nskip_verify = true\n[host.%q]\nskip_verify = true\n", origin.URL, bad.URL),
	})
	r, err := Open(t.Context(), Config{HostsDirs: []string{root}}, "registry.invalid/a:1", Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	d, err := r.Resolve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"[]", "{}"} {
		stream, err := r.Fetch(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(stream); string(got) != want || err != nil {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
		stream.Close()
		if more := r.Distrust(d.Digest); more != (i == 0) {
			t.Errorf("after %s another endpoint is left: %v", want, more)
		}
	}
}

const envProxied = "CRISERVER_TEST_PROXIED"

// TestProxy pulls in a process of its own, as the environment is read once: by the proxy, and past it what NO_PROXY says.
func TestProxy(t *testing.T) {
	if host := os.Getenv(envProxied); host != "" {
		if err := resolve(t, Config{PlainHTTP: []string{"registry.invalid", "direct.invalid"}}, host+"/a:1", Options{}); err != nil {
			t.Fatal(err)
		}
		return
	}
	var mu sync.Mutex
	var asked []string
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, r.Method+" "+r.Host)
		mu.Unlock()
		if r.Method == http.MethodConnect {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		manifests(w, r)
	}))
	defer proxy.Close()
	for host, want := range map[string]string{"registry.invalid": "HEAD registry.invalid", "secure.invalid": "CONNECT secure.invalid:443", "direct.invalid": ""} {
		mu.Lock()
		asked = nil
		mu.Unlock()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		child := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^TestProxy$")
		child.Env = append(os.Environ(), envProxied+"="+host, "HTTP_PROXY="+proxy.URL, "HTTPS_PROXY="+proxy.URL, "NO_PROXY=direct.invalid")
		out, err := child.CombinedOutput()
		cancel()
		if (err == nil) != (host == "registry.invalid") {
			t.Errorf("%s: %v\n%s", host, err, out)
		}
		mu.Lock()
		if got := strings.Join(asked, ", "); want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%s: the proxy was asked %q", host, got)
		}
		mu.Unlock()
	}
}
