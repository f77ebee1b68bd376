package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/criserver/criserver/cmd/criserver/config"
	"github.com/criserver/criserver/cni"
	"github.com/criserver/criserver/engine"
	"github.com/criserver/criserver/image"
	"github.com/criserver/criserver/image/registry"
)

// rootfs makes the image store what the engine takes root filesystems from.
type rootfs struct{ *image.Store }

// Image implements engine.Rootfs.
func (r rootfs) Image(ctx context.Context, ref string) (engine.Image, error) {
	found, err := r.Status(ctx, ref)
	return engine.Image{ID: found.ID, Ref: found.Ref, Config: found.Config, Checkpoint: found.Checkpoint}, err
}

func openImages(ctx context.Context, cfg config.Config, log *slog.Logger) (*image.Store, error) {
	noProgress := time.Duration(cfg.Image.NoProgressTimeout)
	if noProgress == 0 {
		noProgress = -1 // never, to the store
	}
	registries := registry.Config{HostsDirs: []string{cfg.Image.HostsDir}, PlainHTTP: cfg.Image.PlainHTTP}
	if path := cfg.Image.DockerConfig; path != "" {
		registries.Credentials = registry.DockerConfigFile(path)
	}
	store, err := image.Open(ctx, image.Config{
		Root:       cfg.Root,
		Registry:   registries,
		NoProgress: noProgress, Parallel: cfg.Image.Parallel, Ranges: cfg.Image.Ranges, Pinned: cfg.Image.Pinned,
		Verifiers:       image.Verifiers{Dir: cfg.Image.Verifier.BinDir, Timeout: time.Duration(cfg.Image.Verifier.Timeout)},
		Limits:          image.Limits{LayerSize: cfg.Image.MaxLayerSize, InflateRatio: cfg.Image.MaxInflateRatio},
		DiscardUnpacked: cfg.Image.DiscardUnpacked,
		Log:             log,
	})
	if err != nil {
		return nil, fmt.Errorf("open the image store: %w", err)
	}
	return store, nil
}

func openNetwork(ctx context.Context, cfg config.Config, log *slog.Logger) (*cni.Network, error) {
	pool := cfg.Network.NetnsPool
	if pool == 0 {
		pool = -1 // none, to the network
	}
	var cidrs []netip.Prefix
	for _, text := range cfg.Network.PodCIDRs {
		if cfg.Network.Mode != cni.ModeBuiltin {
			break // the ranges are the plugins' own
		}
		cidr, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("network.pod_cidrs: %w", err)
		}
		cidrs = append(cidrs, cidr)
	}
	network, err := cni.New(ctx, cni.Config{
		Mode: cfg.Network.Mode, StateDir: filepath.Join(cfg.State, "cni"),
		NetnsDir: cfg.Network.NetnsDir, PoolSize: pool,
		PodCIDRs: cidrs, Bridge: cfg.Network.Bridge, MTU: cfg.Network.MTU,
		ConfDir: cfg.Network.ConfDir, BinDirs: cfg.Network.BinDirs,
		Logger: log,
	})
	if err != nil {
		return nil, fmt.Errorf("open the network: %w", err)
	}
	return network, nil
}
