// Package registry is the client side of the distribution specification: which endpoints a registry has (hosts.toml,
// plain HTTP), the credentials they get, and errors that name every endpoint tried.
package registry

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/url"
	"strings"

	"github.com/containerd/errdefs"
)

// Auth is a credential for a registry, in one of the forms that CRI and docker's config.json know. The zero value is
// anonymous. A RegistryToken wins over an IdentityToken, that over Username and Password, those over Auth.
type Auth struct {
	Username, Password string
	// Auth is base64 of "username:password".
	Auth string
	// ServerAddress limits the credential to one host; "" means the registry that is asked and its mirrors.
	ServerAddress string
	// IdentityToken is a refresh token, exchanged for an access token at the registry's token server.
	IdentityToken string
	// RegistryToken is a bearer token, sent to the registry as it is.
	RegistryToken string
}

// IsZero says that there is no credential.
func (a Auth) IsZero() bool { return a == Auth{} }

// Key identifies the credential without telling it: equal credentials have equal keys.
func (a Auth) Key() string {
	if a.IsZero() {
		return ""
	}
	h := sha256.New()
	for _, field := range []string{a.Username, a.Password, a.Auth, a.ServerAddress, a.IdentityToken, a.RegistryToken} {
		fmt.Fprintf(h, "%d:%s", len(field), field)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// secret gives the credential as user and secret; with an empty user the secret is a refresh token.
// errdefs.ErrInvalidArgument when Auth is not base64 of "user:password".
func (a Auth) secret() (user, secret string, err error) {
	switch {
	case a.IdentityToken != "":
		return "", a.IdentityToken, nil
	case a.Username != "":
		return a.Username, a.Password, nil
	case a.Auth == "":
		return "", "", nil
	}
	// The padding is optional, and some writers pad the decoded text with NULs.
	decoded, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(a.Auth, "="))
	if err != nil {
		return "", "", fmt.Errorf("the credential's auth field is not base64: %w", errdefs.ErrInvalidArgument)
	}
	user, secret, ok := strings.Cut(string(decoded), ":")
	if !ok {
		return "", "", fmt.Errorf("the credential's auth field is not base64 of user:password: %w", errdefs.ErrInvalidArgument)
	}
	return user, strings.Trim(secret, "\x00"), nil
}

// appliesTo says whether the credential may be sent to host ("name" or "name:port").
func (a Auth) appliesTo(host string) bool {
	if a.ServerAddress == "" {
		return true
	}
	return serverHost(a.ServerAddress) == canonicalHost(host)
}

// serverHost is the host of a ServerAddress, which may be a host or, as docker writes it, a URL with a path.
func serverHost(address string) string {
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	parsed, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return canonicalHost(parsed.Host)
}

// canonicalHost gives the several names of Docker Hub one.
func canonicalHost(host string) string {
	host = strings.ToLower(host)
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return host
}
