package daemon

import (
	"fmt"
	"time"

	"github.com/criserver/criserver/cri/streaming"
)

// openStreams serves the URLs of exec, attach and port-forward sessions. It is closed before the engine, which ends them.
func (d *Daemon) openStreams() (*streaming.Server, error) {
	c := d.cfg.Streaming
	if !c.Loopback() && c.TLSCert == "" {
		d.log.Warn("sessions of exec, attach and port-forward are served without TLS on an address that others may reach: "+
			"set streaming.tls_cert, or streaming.address to a loopback address", "address", c.Address)
	}
	server, err := streaming.New(streaming.Config{
		Address: c.Address, Port: c.Port, CertFile: c.TLSCert, KeyFile: c.TLSKey,
		TokenLifetime: time.Duration(c.TokenLifetime), Log: d.log,
	})
	if err != nil {
		return nil, fmt.Errorf("streaming.address %s, streaming.port %d: %w", c.Address, c.Port, err)
	}
	d.opened("streaming server", server.Close)
	return server, nil
}
