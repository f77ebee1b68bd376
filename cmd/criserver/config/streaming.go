package config

import (
	"net/netip"
	"time"
)

// Streaming configures the server of exec, attach and port-forward sessions.
type Streaming struct {
	Address       string   `toml:"address"`
	Port          int      `toml:"port"`
	TLSCert       string   `toml:"tls_cert"`
	TLSKey        string   `toml:"tls_key"`
	IdleTimeout   Duration `toml:"idle_timeout"`
	TokenLifetime Duration `toml:"token_lifetime"`
}

// maxTokenLifetime keeps URLs that were never used from being worth stealing for long.
const maxTokenLifetime = time.Hour

func (s *Streaming) problems(add func(string, string, ...any), absolute func(string, string)) {
	if _, err := netip.ParseAddr(s.Address); err != nil {
		add("streaming.address", "%q is not an IP address", s.Address)
	}
	if s.Port < 0 || s.Port > 65535 {
		add("streaming.port", "%d is not between 0 and 65535", s.Port)
	}
	if (s.TLSCert == "") != (s.TLSKey == "") {
		add("streaming.tls_cert", "is set together with tls_key, or neither is")
	}
	for key, path := range map[string]string{"streaming.tls_cert": s.TLSCert, "streaming.tls_key": s.TLSKey} {
		if path != "" {
			absolute(key, path)
		}
	}
	if d := time.Duration(s.TokenLifetime); d < time.Second || d > maxTokenLifetime {
		add("streaming.token_lifetime", "%s is not between 1s and %s", d, maxTokenLifetime)
	}
}

// Loopback reports whether only processes of this node reach the streaming server.
func (s *Streaming) Loopback() bool {
	address, err := netip.ParseAddr(s.Address)
	return err == nil && address.Unmap().IsLoopback()
}
