package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/auth"
	"github.com/containerd/errdefs"
)

// tokens authorizes requests to one endpoint. It keeps what a token server gave until that ends or the endpoint refuses
// it, whatever the reason that it tells: then everything is asked for anew, the credential included.
type tokens struct {
	host        string
	scheme      string
	make        func(credentials func(string) (string, string, error)) docker.Authorizer
	credentials func(ctx context.Context, host string) (Auth, error)

	mu     sync.Mutex
	inner  docker.Authorizer
	issued map[string]bool // values of the header that inner gave
	given  string          // a bearer token that is the credential itself
}

func newTokens(h *docker.RegistryHost, credentials func(context.Context, string) (Auth, error)) *tokens {
	client, header := h.Client, h.Header
	return &tokens{host: h.Host, scheme: h.Scheme, credentials: credentials, make: func(c func(string) (string, string, error)) docker.Authorizer {
		return docker.NewDockerAuthorizer(docker.WithAuthClient(client), docker.WithAuthHeader(header), docker.WithAuthCreds(c))
	}}
}

// Authorize implements docker.Authorizer. Before the endpoint has asked for it no credential is sent.
func (t *tokens) Authorize(ctx context.Context, r *http.Request) error {
	r.Header.Del("Authorization")
	if r.URL.Host != t.host {
		return nil
	}
	t.mu.Lock()
	inner, given := t.inner, t.given
	t.mu.Unlock()
	if given != "" {
		r.Header.Set("Authorization", "Bearer "+given)
		return nil
	}
	if inner == nil {
		return nil
	}
	if err := inner.Authorize(ctx, r); err != nil {
		t.mu.Lock()
		if t.inner == inner { // it would answer the same error for ever
			t.inner = nil
		}
		t.mu.Unlock()
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if value := r.Header.Get("Authorization"); value != "" && t.inner == inner {
		t.issued[value] = true
	}
	return nil
}

// AddResponses implements docker.Authorizer. errdefs.ErrNotImplemented means that there is nothing else to try.
func (t *tokens) AddResponses(ctx context.Context, responses []*http.Response) error {
	last := responses[len(responses)-1]
	if last.Request.URL.Host != t.host {
		return errdefs.ErrNotImplemented // it was redirected, and no credential is for there
	}
	if err := t.checkRealm(last); err != nil {
		return err
	}
	credential, err := t.credentials(ctx, t.host) // may run a helper
	if err != nil {
		return err
	}
	user, secret, err := credential.secret()
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	sent := last.Request.Header.Get("Authorization")
	if token := credential.RegistryToken; token != "" {
		t.given, t.inner = token, nil
		if sent == "Bearer "+token {
			return errdefs.ErrNotImplemented
		}
		return nil
	}
	if t.given = ""; t.inner == nil || t.issued[sent] {
		t.inner = t.make(func(string) (string, string, error) { return user, secret, nil })
		t.issued = map[string]bool{}
	} else if sent != "" {
		return nil // somebody has got another one meanwhile
	}
	return t.inner.AddResponses(ctx, []*http.Response{last})
}

// checkRealm refuses to send credentials unencrypted because a registry that is reached encrypted says so.
func (t *tokens) checkRealm(r *http.Response) error {
	for _, challenge := range auth.ParseAuthHeader(r.Header) {
		realm, err := url.Parse(challenge.Parameters["realm"])
		if challenge.Scheme != auth.BearerAuth || err != nil {
			continue
		}
		if loopback, _ := docker.MatchLocalhost(realm.Host); realm.Scheme == "http" && t.scheme == "https" && !loopback {
			return fmt.Errorf("%s sends to a token server without TLS, %s: %w", t.host, realm.Redacted(), docker.ErrInvalidAuthorization)
		}
	}
	return nil
}

// noCredential says that the endpoint wants a credential and there is none.
func noCredential(err error) bool { return errors.Is(err, docker.ErrInvalidAuthorization) }
