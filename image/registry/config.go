package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
)

// Config says how registries are reached. The zero value reaches every registry by HTTPS and those on loopback by
// either, without credentials of its own.
type Config struct {
	// HostsDirs are directories with <host>/hosts.toml, as containerd reads them; the first that has the host counts.
	HostsDirs []string
	// PlainHTTP are the hosts ("name" or "name:port") that are reached by plain HTTP though no hosts.toml says so.
	PlainHTTP []string
	// Credentials gives the node's own credential for an endpoint; a credential of the pull wins over it. Nil is none.
	Credentials func(host string) (Auth, bool)
}

// hostDir finds the configuration directory of a registry, and refuses a hosts.toml that is not TOML: read as if it were
// empty, it would send pulls that were meant for a mirror elsewhere.
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
		var ignored map[string]any
		if err := toml.Unmarshal(content, &ignored); err != nil {
			return "", fmt.Errorf("%s: %w: %w", file, errdefs.ErrFailedPrecondition, err)
		}
		return dir, nil
	}
	return "", errdefs.ErrNotFound
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

// LoadDockerConfig reads the credentials of a docker config.json, for Config.Credentials. Credential helpers are not
// run: an entry that has nothing but a helper is as if it were missing.
func LoadDockerConfig(path string) (func(host string) (Auth, bool), error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var file struct {
		Auths map[string]struct {
			Username, Password, Auth, IdentityToken, RegistryToken string
		} `json:"auths"`
	}
	if err := json.Unmarshal(content, &file); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", path, errdefs.ErrInvalidArgument, err)
	}
	byHost := map[string]Auth{}
	for address, entry := range file.Auths {
		auth := Auth{
			Username: entry.Username, Password: entry.Password, Auth: entry.Auth,
			IdentityToken: entry.IdentityToken, RegistryToken: entry.RegistryToken,
		}
		if auth.IsZero() {
			continue
		}
		if _, _, err := auth.secret(); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", path, address, err)
		}
		byHost[serverHost(address)] = auth
	}
	return func(host string) (Auth, bool) {
		auth, ok := byHost[canonicalHost(host)]
		return auth, ok
	}, nil
}
