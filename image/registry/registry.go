package registry

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Repository is the remote side of one pull: a reference, a credential, and the connections to the endpoints that the
// configuration gives the registry. Its methods may be called concurrently; Close it when done.
type Repository struct {
	ref      string
	resolver remotes.Resolver

	mu      sync.Mutex
	clients []*http.Client
}

// Options are what a Repository may be told.
type Options struct {
	// Auth is the credential of the pull.
	Auth Auth
	// Wait, when set, is called when a registry asks for patience, and what it returns when that ends.
	Wait func() func()
}

// Open prepares to pull ref, a full reference ("host/path:tag" or "host/path@digest"). It makes no connection.
func Open(ctx context.Context, c Config, ref string, o Options) (*Repository, error) {
	if _, _, err := o.Auth.secret(); err != nil {
		return nil, err
	}
	r := &Repository{ref: ref}
	hosts := config.ConfigureHosts(ctx, config.HostOptions{
		HostDir:     c.hostDir,
		Credentials: func(host string) (string, string, error) { return credential(c, o.Auth, host).secret() },
		UpdateClient: func(client *http.Client) error {
			client.Transport = &transport{next: client.Transport, wait: o.Wait}
			r.mu.Lock()
			defer r.mu.Unlock()
			r.clients = append(r.clients, client)
			return nil
		},
	})
	r.resolver = docker.NewResolver(docker.ResolverOptions{
		Hosts:   once(func(host string) ([]docker.RegistryHost, error) { return endpoints(c, o.Auth, hosts, host) }),
		Headers: http.Header{"User-Agent": []string{"criserver"}},
	})
	return r, nil
}

// endpoints are those of a registry, the mirrors first, with what the configuration and the credential add.
func endpoints(c Config, auth Auth, hosts docker.RegistryHosts, registry string) ([]docker.RegistryHost, error) {
	found, err := hosts(registry)
	if err != nil {
		return nil, fmt.Errorf("endpoints of %s: %w", registry, err)
	}
	if _, err := c.hostDir(registry); errdefs.IsNotFound(err) {
		c.plain(found)
	}
	for i := range found {
		if token := credential(c, auth, found[i].Host).RegistryToken; token != "" {
			found[i].Authorizer = bearer{host: found[i].Host, token: token}
		}
	}
	return found, nil
}

// credential is the one for an endpoint: that of the pull, else the node's own.
func credential(c Config, auth Auth, host string) Auth {
	if !auth.IsZero() && auth.appliesTo(host) {
		return auth
	}
	if c.Credentials != nil {
		if own, ok := c.Credentials(host); ok {
			return own
		}
	}
	return Auth{}
}

// once remembers the endpoints, so that one pull uses one set of connections and tokens.
func once(hosts docker.RegistryHosts) docker.RegistryHosts {
	var mu sync.Mutex
	known := map[string]func() ([]docker.RegistryHost, error){}
	return func(host string) ([]docker.RegistryHost, error) {
		mu.Lock()
		get, ok := known[host]
		if !ok {
			get = sync.OnceValues(func() ([]docker.RegistryHost, error) { return hosts(host) })
			known[host] = get
		}
		mu.Unlock()
		return get()
	}
}

// bearer authorizes by a token that was given, to one host only.
type bearer struct{ host, token string }

// Authorize implements docker.Authorizer.
func (b bearer) Authorize(_ context.Context, r *http.Request) error {
	if r.URL.Host == b.host {
		r.Header.Set("Authorization", "Bearer "+b.token)
	}
	return nil
}

// AddResponses implements docker.Authorizer. There is no other token to try.
func (b bearer) AddResponses(context.Context, []*http.Response) error {
	return errdefs.ErrNotImplemented
}

// Resolve asks for the digest and media type of what the reference names.
func (r *Repository) Resolve(ctx context.Context) (ocispec.Descriptor, error) {
	ctx, tried := withTrail(ctx)
	_, d, err := r.resolver.Resolve(ctx, r.ref)
	return d, explain(ctx, "manifest of "+r.ref, tried, err)
}

// Fetch opens a manifest or blob. A connection that breaks is opened again where it broke off. Nothing is verified.
// URLs of the descriptor are not followed: they are the image's to choose, not the administrator's.
func (r *Repository) Fetch(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	d.URLs = nil
	ctx, tried := withTrail(ctx)
	what := fmt.Sprintf("%s of %s", d.Digest, r.ref)
	fetcher, err := r.resolver.Fetcher(ctx, r.ref)
	if err != nil {
		return nil, explain(ctx, what, tried, err)
	}
	stream, err := fetcher.Fetch(ctx, d)
	if err != nil {
		return nil, explain(ctx, what, tried, err)
	}
	return &body{stream: stream, ctx: ctx, what: what, tried: tried}, nil
}

// Close lets go of the connections.
func (r *Repository) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, client := range r.clients {
		client.CloseIdleConnections()
	}
	r.clients = nil
}

// body explains the errors of a stream, which is not opened before it is read.
type body struct {
	stream io.ReadCloser
	ctx    context.Context // of the request: it lives as long as the body
	what   string
	tried  *trail
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.stream.Read(p)
	if err != nil && err != io.EOF {
		if errdefs.IsFailedPrecondition(err) {
			err = fmt.Errorf("%w: %w", errdefs.ErrDataLoss, err) // more bytes than the descriptor says
		}
		err = explain(b.ctx, b.what, b.tried, err)
	}
	return n, err
}

func (b *body) Close() error { return b.stream.Close() }
