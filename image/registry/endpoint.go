package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
)

// cacheTime is how long the endpoints of a registry, with their connections and tokens, are kept without being used.
const cacheTime = 5 * time.Minute

// Cache keeps connections and tokens from one pull to the next. They belong to one registry and one credential, and to what
// the files below HostsDirs said: when those change they are made anew. A nil Cache keeps nothing.
type Cache struct {
	mu    sync.Mutex
	known map[string]*cached
}

type cached struct {
	hosts []docker.RegistryHost
	used  time.Time
}

// get answers a copy of what is kept under key, or of what make makes.
func (c *Cache) get(key string, make func() ([]docker.RegistryHost, error)) ([]docker.RegistryHost, error) {
	if c == nil {
		return make()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	for k, entry := range c.known {
		if now.Sub(entry.used) > cacheTime {
			entry.close()
			delete(c.known, k)
		}
	}
	entry := c.known[key]
	if entry == nil {
		hosts, err := make() // reads a few files
		if err != nil {
			return nil, err
		}
		entry = &cached{hosts: hosts}
		if c.known == nil {
			c.known = map[string]*cached{}
		}
		c.known[key] = entry
	}
	entry.used = now
	return slices.Clone(entry.hosts), nil
}

// Close lets go of the connections that are not in use. The cache may be used on.
func (c *Cache) Close() {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, entry := range c.known {
		entry.close()
		delete(c.known, key)
	}
}

func (c *cached) close() {
	for _, host := range c.hosts {
		host.Client.CloseIdleConnections()
	}
}

// endpoints are those of a registry in the order in which they are asked: the mirrors, then the registry itself.
func (c Config) endpoints(ctx context.Context, auth Auth, registry, repository string) ([]docker.RegistryHost, error) {
	dir, err := c.hostDir(registry)
	if err != nil && !errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("endpoints of %s: %w", registry, err)
	}
	key := strings.Join([]string{registry, auth.Key(), dir, fingerprint(dir)}, "\x00")
	if c.Credentials != nil && auth.IsZero() {
		key += "\x00" + repository // the node's credential may be one for this repository
	}
	hosts, err := c.Cache.get(key, func() ([]docker.RegistryHost, error) { return c.makeEndpoints(ctx, auth, registry, repository, dir) })
	if err != nil {
		return nil, fmt.Errorf("endpoints of %s: %w", registry, err)
	}
	return hosts, nil
}

func (c Config) makeEndpoints(ctx context.Context, auth Auth, registry, repository, dir string) ([]docker.RegistryHost, error) {
	var found []docker.RegistryHost
	// A credential is for these endpoints, never for where one of them redirects to.
	credentials := func(ctx context.Context, host string) (Auth, error) {
		if !slices.ContainsFunc(found, func(h docker.RegistryHost) bool { return h.Host == host }) {
			return Auth{}, nil
		}
		return c.credential(ctx, auth, host, repository)
	}
	configure := config.ConfigureHosts(context.WithoutCancel(ctx), config.HostOptions{
		HostDir: func(string) (string, error) { return dir, nil },
		UpdateClient: func(client *http.Client) error {
			client.Transport = &transport{next: client.Transport}
			return nil
		},
	})
	found, err := configure(registry)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errdefs.ErrFailedPrecondition, err)
	}
	if dir == "" {
		c.plain(found)
	}
	for i := range found {
		found[i].Authorizer = newTokens(&found[i], credentials)
	}
	return found, nil
}

// credential is the one for an endpoint: that of the pull, else the node's own.
func (c Config) credential(ctx context.Context, auth Auth, host, repository string) (Auth, error) {
	if !auth.IsZero() && auth.appliesTo(host) {
		return auth, nil
	}
	if c.Credentials == nil {
		return Auth{}, nil
	}
	return c.Credentials(ctx, host, repository)
}

// plain switches the endpoints that are configured so to HTTP.
func (c Config) plain(hosts []docker.RegistryHost) {
	for i := range hosts {
		name, _, _ := strings.Cut(hosts[i].Host, ":")
		if slices.Contains(c.PlainHTTP, hosts[i].Host) || slices.Contains(c.PlainHTTP, name) {
			hosts[i].Scheme = "http"
		}
	}
}

// hostDir finds the configuration directory of a registry, and refuses a hosts.toml that is wrong: read as if it were
// empty, it would send pulls that were meant for a mirror elsewhere. errdefs.ErrNotFound when there is none.
func (c Config) hostDir(host string) (string, error) {
	for _, root := range c.HostsDirs {
		if root == "" {
			continue
		}
		dir, err := config.HostDirFromRoot(root)(host)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return "", err
		}
		file := filepath.Join(dir, "hosts.toml")
		content, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if _, err := parseHosts(content); err != nil {
			return "", fmt.Errorf("%s: %w: %w", file, errdefs.ErrFailedPrecondition, err)
		}
		return dir, nil
	}
	return "", errdefs.ErrNotFound
}

// fingerprint changes when hosts.toml, the files beside it, or the certificates that it names do.
func fingerprint(dir string) string {
	if dir == "" {
		return ""
	}
	content, err := os.ReadFile(filepath.Join(dir, "hosts.toml"))
	h := sha256.New()
	fmt.Fprintf(h, "%d %v\n", len(content), err)
	h.Write(content)
	files, _ := parseHosts(content) // an error has been told before
	if entries, err := os.ReadDir(dir); err == nil {
		for _, entry := range entries {
			files = append(files, entry.Name())
		}
	}
	for _, name := range files {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		if info, err := os.Stat(name); err == nil {
			fmt.Fprintf(h, "%q %d %d\n", name, info.Size(), info.ModTime().UnixNano())
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}
