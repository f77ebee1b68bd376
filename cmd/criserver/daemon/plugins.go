package daemon

import (
	"time"

	"github.com/criserver/criserver/engine"
	"github.com/criserver/criserver/nri"
)

// plugins are those of NRI; without any when it is turned off.
type plugins struct{ *nri.Plugins }

func (d *Daemon) openPlugins(version string) (plugins, error) {
	cfg := d.cfg.NRI
	if !cfg.Enabled {
		return plugins{}, nil
	}
	made, err := nri.New(nri.Config{
		Name: "criserver", Version: version, SocketPath: cfg.SocketPath, PluginPath: cfg.PluginPath, PluginConfigPath: cfg.PluginConfigPath,
		DisableConnections: cfg.DisableConnections, RegistrationTimeout: time.Duration(cfg.RegistrationTimeout),
		RequestTimeout: time.Duration(cfg.RequestTimeout), Validator: cfg.DefaultValidator, Log: d.log,
	})
	if err != nil {
		return plugins{}, err
	}
	d.opened("plugins", made.Close)
	return plugins{made}, nil
}

// engine is nil, and not an interface that holds a nil, when there are none.
func (p plugins) engine() engine.Plugins {
	if p.Plugins == nil {
		return nil
	}
	return p.Plugins
}

func (p plugins) start(e *engine.Engine) error {
	if p.Plugins == nil {
		return nil
	}
	return p.Start(e)
}
