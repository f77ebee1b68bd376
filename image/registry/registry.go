package registry

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// userAgent is what registries see of us, unless hosts.toml says otherwise.
const userAgent = "criserver"

// Repository is the remote side of one pull: a reference, a credential, and the endpoints that the configuration gives the
// registry. Its methods may be called concurrently; Close it when done.
type Repository struct {
	ref        string
	spec       reference.Spec
	repository string // path within the registry
	hosts      func() ([]docker.RegistryHost, error)
	resolver   remotes.Resolver // for pushes
	backoff    time.Duration
	wait       func() func()
	moved      func(int64)
	ranges     *Ranges
	own        []docker.RegistryHost // that no cache keeps
	mu         sync.Mutex
	served     map[digest.Digest]string   // the endpoint that gave a blob at last
	bad        map[digest.Digest][]string // endpoints that are not asked for a blob again
}

// Options are what a Repository may be told.
type Options struct {
	// Auth is the credential of the pull.
	Auth Auth
	// Wait, when set, is called when a registry asks for patience, and what it returns when that ends.
	Wait func() func()
	// Moved, when set, is told of bytes that come and are not handed out.
	Moved func(int64)
}

// Open prepares to pull ref, a full reference ("host/path:tag" or "host/path@digest"). It makes no connection.
func Open(ctx context.Context, c Config, ref string, o Options) (*Repository, error) {
	if _, _, err := o.Auth.secret(); err != nil {
		return nil, err
	}
	spec, err := reference.Parse(ref)
	if err != nil {
		return nil, fmt.Errorf("image name %q: %w: %w", ref, errdefs.ErrInvalidArgument, err)
	}
	repository := strings.TrimPrefix(strings.TrimPrefix(spec.Locator, spec.Hostname()), "/")
	if repository == "" {
		return nil, fmt.Errorf("image name %q: it has no repository: %w", ref, errdefs.ErrInvalidArgument)
	}
	r := &Repository{ref: ref, spec: spec, repository: repository, backoff: cmp.Or(c.Backoff, defaultBackoff), wait: o.Wait, moved: o.Moved, ranges: c.Ranges}
	get := sync.OnceValues(func() ([]docker.RegistryHost, error) {
		hosts, err := c.endpoints(ctx, o.Auth, spec.Hostname(), r.repository)
		if c.Cache == nil {
			r.mu.Lock()
			r.own = hosts
			r.mu.Unlock()
		}
		return hosts, err
	})
	r.hosts = func() ([]docker.RegistryHost, error) {
		hosts, err := get()
		return slices.Clone(hosts), err
	}
	r.resolver = docker.NewResolver(docker.ResolverOptions{
		Hosts:   func(string) ([]docker.RegistryHost, error) { return r.hosts() },
		Headers: http.Header{"User-Agent": []string{userAgent}},
	})
	return r, nil
}

// record is a context in which requests leave their trace.
func (r *Repository) record(ctx context.Context) (context.Context, *trail) {
	tried := &trail{wait: r.wait}
	return context.WithValue(ctx, trailKey{}, tried), tried
}

// trail is as record, for requests that only read of the repository.
func (r *Repository) trail(ctx context.Context) (context.Context, *trail) {
	ctx, tried := r.record(ctx)
	if scoped, err := docker.ContextWithRepositoryScope(ctx, r.spec, false); err == nil {
		ctx = scoped
	}
	return ctx, tried
}

// Close lets go of the connections that no cache keeps.
func (r *Repository) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, host := range r.own {
		host.Client.CloseIdleConnections()
	}
	r.own = nil
}
