package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"
)

// DockerConfig is a docker config.json: the credentials that it has, and the helper programs that it names.
type DockerConfig struct {
	auths   map[string]Auth   // by "host" or "host/path"
	helpers map[string]string // by host
	store   string            // the helper of all hosts that have none
}

// dockerHub is how docker calls its registry in config.json and to helpers.
const dockerHub = "https://index.docker.io/v1/"

// ParseDockerConfig reads the content of a config.json. What is no credential in it is passed over: docker keeps other
// settings there, too. errdefs.ErrInvalidArgument names the entry that is wrong, never what is in it.
func ParseDockerConfig(content []byte) (*DockerConfig, error) {
	var file struct {
		Auths map[string]struct {
			Username, Password, Auth, IdentityToken, RegistryToken string
		} `json:"auths"`
		CredHelpers map[string]string `json:"credHelpers"`
		CredsStore  string            `json:"credsStore"`
	}
	if err := json.Unmarshal(content, &file); err != nil {
		return nil, fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
	}
	c := &DockerConfig{auths: map[string]Auth{}, helpers: map[string]string{}, store: file.CredsStore}
	for address, entry := range file.Auths {
		auth := Auth{
			Username: entry.Username, Password: entry.Password, Auth: entry.Auth,
			IdentityToken: entry.IdentityToken, RegistryToken: entry.RegistryToken,
		}
		if auth.IsZero() {
			continue // docker leaves such behind where a helper has the credential
		}
		if _, _, err := auth.secret(); err != nil {
			return nil, fmt.Errorf("auths: %q: %w", address, err)
		}
		key, err := authKey(address)
		if err != nil {
			return nil, fmt.Errorf("auths: %w", err)
		}
		c.auths[key] = auth
	}
	for address, helper := range file.CredHelpers {
		if err := checkHelper(helper); err != nil {
			return nil, fmt.Errorf("credHelpers: %q: %w", address, err)
		}
		c.helpers[serverHost(address)] = helper
	}
	if c.store != "" {
		if err := checkHelper(c.store); err != nil {
			return nil, fmt.Errorf("credsStore: %w", err)
		}
	}
	return c, nil
}

// authKey makes "host" or "host/path" of an address in auths.
func authKey(address string) (string, error) {
	host := serverHost(address)
	if host == "" {
		return "", fmt.Errorf("%q is no address of a registry: %w", address, errdefs.ErrInvalidArgument)
	}
	_, path, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(address, "https://"), "http://"), "/")
	path = strings.Trim(path, "/")
	if path == "v1" || path == "v2" { // of the protocol, and no repository
		path = ""
	}
	return strings.TrimSuffix(host+"/"+path, "/"), nil
}

// Lookup gives the credential for a repository at a host, or the zero value. A helper of the host wins over the store, that
// over the file's own entries, of which the one with the longest path that leads to the repository counts.
func (c *DockerConfig) Lookup(ctx context.Context, host, repository string) (Auth, error) {
	host = canonicalHost(host)
	helper := c.helpers[host]
	if helper == "" {
		helper = c.store
	}
	if helper != "" {
		auth, err := runHelper(ctx, helper, host)
		if err != nil || !auth.IsZero() {
			return auth, err
		}
	}
	for path := host + "/" + repository; ; {
		if auth, ok := c.auths[path]; ok {
			return auth, nil
		}
		cut := strings.LastIndexByte(path, '/')
		if cut < 0 {
			return Auth{}, nil
		}
		path = path[:cut]
	}
}

// DockerConfigFile gives the credentials of a config.json, for Config.Credentials. The file is read each time that one is
// wanted, which is when a registry asks for it: a change counts at once. A missing file has none.
func DockerConfigFile(path string) func(ctx context.Context, host, repository string) (Auth, error) {
	return func(ctx context.Context, host, repository string) (Auth, error) {
		content, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			return Auth{}, nil
		}
		if err != nil {
			return Auth{}, fmt.Errorf("credentials: %w: %w", errdefs.ErrFailedPrecondition, err)
		}
		c, err := ParseDockerConfig(content)
		if err != nil {
			return Auth{}, fmt.Errorf("credentials: %s: %w", path, err)
		}
		return c.Lookup(ctx, host, repository)
	}
}
