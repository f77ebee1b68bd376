package cni

import (
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"
)

// The modes of a network. Neither falls back to the other.
const (
	ModeBuiltin = "builtin" // the plugin of package builtin, run in this process
	ModeCNI     = "cni"     // the configuration list of ConfDir, its plugins run as programs
)

// Config says how pods are attached. Only StateDir has no default.
type Config struct {
	// Mode is ModeBuiltin (also "") or ModeCNI.
	Mode string
	// StateDir keeps a record for each attachment. It should be on a tmpfs: what is in it is worth nothing after a reboot.
	StateDir string
	// NetnsDir is where namespaces are pinned, each as "criserver-<pod>". Default /var/run/netns.
	NetnsDir string
	// PoolSize is how many namespaces are kept ready. 0 is 4, a negative number is none.
	PoolSize int
	// Logger receives what happens behind a call. Default slog.Default().
	Logger *slog.Logger

	// PodCIDRs are the pools of addresses of ModeBuiltin, one for each family at most. Default 10.88.0.0/16 and
	// fd88:1e5a:c0de:88::/64. In ModeCNI they are what plugins with the ipRanges capability are given; default none.
	PodCIDRs []netip.Prefix
	// NoMasquerade are destinations that see the pods' own addresses, such as the pod networks of other nodes.
	NoMasquerade []netip.Prefix
	// Bridge is the name of the first bridge; those after it count on from its number. It also names the nftables table,
	// so two daemons in one network namespace need two names (and two pools). Default "cri0".
	Bridge string
	// MTU of the pods' interfaces; 0 is that of the interface of the default route, or 1500.
	MTU int

	// ConfDir holds the configuration lists of ModeCNI; the first in lexical order counts. Default /etc/cni/net.d.
	ConfDir string
	// BinDirs are searched for plugins. Default /opt/cni/bin.
	BinDirs []string
	// CacheDir is where results of plugins are cached, as the CNI specification asks. Default <StateDir>/cache.
	CacheDir string
	// PluginTimeout bounds one run of a configuration list. Default 60 s for ADD; the first DEL of a Detach gets a tenth.
	PluginTimeout time.Duration
	// KeepNetns is how long the namespace of a pod is kept for plugins whose DEL fails. Default 60 s.
	KeepNetns time.Duration
}

var (
	defaultCIDRs = []netip.Prefix{netip.MustParsePrefix("10.88.0.0/16"), netip.MustParsePrefix("fd88:1e5a:c0de:88::/64")}
	modes        = []string{ModeBuiltin, ModeCNI}
)

func (c *Config) complete() error {
	if c.StateDir == "" {
		return fmt.Errorf("network configuration: StateDir is empty: %w", errdefs.ErrInvalidArgument)
	}
	if c.Mode == "" {
		c.Mode = ModeBuiltin
	}
	if !slices.Contains(modes, c.Mode) {
		return fmt.Errorf("network mode %q is not one of %q: %w", c.Mode, modes, errdefs.ErrInvalidArgument)
	}
	if len(c.PodCIDRs) == 0 && c.Mode == ModeBuiltin {
		c.PodCIDRs = defaultCIDRs
	}
	if c.PoolSize == 0 {
		c.PoolSize = 4
	}
	if c.PluginTimeout <= 0 {
		c.PluginTimeout = time.Minute
	}
	if c.KeepNetns <= 0 {
		c.KeepNetns = time.Minute
	}
	if len(c.BinDirs) == 0 {
		c.BinDirs = []string{"/opt/cni/bin"}
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	setDefault(&c.NetnsDir, "/var/run/netns")
	setDefault(&c.Bridge, "cri0")
	setDefault(&c.ConfDir, "/etc/cni/net.d")
	setDefault(&c.CacheDir, filepath.Join(c.StateDir, "cache"))
	return nil
}

func setDefault(s *string, value string) {
	if *s == "" {
		*s = value
	}
}
