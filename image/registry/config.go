package registry

import (
	"context"
	"time"
)

const defaultBackoff = 250 * time.Millisecond

// Config says how registries are reached. The zero value reaches every registry by HTTPS and those on loopback by
// either, without credentials of its own. HTTP_PROXY, HTTPS_PROXY and NO_PROXY of the environment count.
type Config struct {
	// HostsDirs are directories with <host>/hosts.toml, as containerd reads them; the first that has the host counts.
	HostsDirs []string
	// PlainHTTP are the hosts ("name" or "name:port") that are reached by plain HTTP though no hosts.toml says so.
	PlainHTTP []string
	// Credentials gives the node's own credential for a repository at an endpoint, or the zero value; a credential of the pull
	// wins over it. Nil is none.
	Credentials func(ctx context.Context, host, repository string) (Auth, error)
	// Backoff is how long to wait before a registry is asked again that could not answer, the first time, then three times as long
	// each; 0 is a quarter of a second.
	Backoff time.Duration
	// Cache keeps connections and tokens between pulls. Nil keeps none.
	Cache *Cache
	// Ranges has large blobs fetched by several requests at once. Nil has none.
	Ranges *Ranges
}
