// Package config reads the daemon's configuration file. The embedded default.toml is the one place in which keys are
// documented and defaults stand: Default decodes it, and `criserver config default` prints it.
package config

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	validator "github.com/containerd/nri/plugins/default-validator"
	"github.com/pelletier/go-toml/v2"
)

// DefaultPath is the file that is read when none is named; it may be missing.
const DefaultPath = "/etc/criserver/config.toml"

//go:embed default.toml
var defaultText []byte

// DefaultText is the documented default configuration, as TOML.
func DefaultText() []byte { return bytes.Clone(defaultText) }

// Config is the daemon's configuration. default.toml documents every key.
type Config struct {
	Root        string `toml:"root"`
	State       string `toml:"state"`
	Listen      string `toml:"listen"`
	SocketGroup string `toml:"socket_group"`

	Checkpoint Checkpoint `toml:"checkpoint"`

	Log      Log      `toml:"log"`
	Shim     Shim     `toml:"shim"`
	Workload Workload `toml:"workload"`
	Image    Image    `toml:"image"`
	Network  Network  `toml:"network"`

	Streaming Streaming `toml:"streaming"`
	CDI       CDI       `toml:"cdi"`
	NRI       NRI       `toml:"nri"`

	// Runtimes are the settings of each handler that a pod's RuntimeClass may name. NativeRuntime is always there.
	Runtimes map[string]Runtime `toml:"runtimes"`
}

// NativeRuntime is the handler of our own runtime, which pods get that name none.
const NativeRuntime = "native"

// Runtime is what a handler does with its pods and containers.
type Runtime struct {
	Path                         string   `toml:"path"`
	Root                         string   `toml:"root"`
	Args                         []string `toml:"args"`
	BaseSpec                     string   `toml:"base_spec"`
	PodAnnotations               []string `toml:"pod_annotations"`
	ContainerAnnotations         []string `toml:"container_annotations"`
	PrivilegedWithoutHostDevices bool     `toml:"privileged_without_host_devices"`
	CgroupWritable               bool     `toml:"cgroup_writable"`
}

// Checkpoint configures checkpoint and restore.
type Checkpoint struct {
	Criu          string `toml:"criu"`
	RestoreImages bool   `toml:"restore_images"`
}

// Log says what is logged and how.
type Log struct {
	Level  string `toml:"level"`
	Format string `toml:"format"`
}

// Shim names the programs that run workloads. Empty means beside the daemon's own program.
type Shim struct {
	Keeper string `toml:"keeper"`
	Shim   string `toml:"shim"`
}

// Workload is what all containers have in common.
type Workload struct {
	DefaultUlimits    []string `toml:"default_ulimits"`
	UnprivilegedPorts bool     `toml:"unprivileged_ports"`
	UnprivilegedICMP  bool     `toml:"unprivileged_icmp"`
	DefaultSysctls    []string `toml:"default_sysctls"`
	BlockIOConfig     string   `toml:"blockio_config"`
	RDTConfig         string   `toml:"rdt_config"`

	CgroupParent string `toml:"cgroup_parent"`
	CgroupDriver string `toml:"cgroup_driver"`
	UnsetSeccomp string `toml:"unset_seccomp"`
	AppArmor     string `toml:"apparmor_profile"`
	SELinux      string `toml:"selinux"`

	StrictMounts    bool `toml:"strict_mounts"`
	DeviceOwnership bool `toml:"device_ownership_from_security_context"`
}

// Image configures the image store.
type Image struct {
	HostsDir          string   `toml:"hosts_dir"`
	PlainHTTP         []string `toml:"plain_http"`
	DockerConfig      string   `toml:"docker_config"`
	NoProgressTimeout Duration `toml:"no_progress_timeout"`
	Parallel          int      `toml:"parallel"`
	Ranges            int      `toml:"ranges"`
	MaxLayerSize      int64    `toml:"max_layer_size"`
	MaxInflateRatio   int64    `toml:"max_inflate_ratio"`
	DiscardUnpacked   bool     `toml:"discard_unpacked_layers"`
	Pinned            []string `toml:"pinned"`

	Verifier Verifier `toml:"verifier"`
}

// Verifier says which programs are asked about each image that is pulled.
type Verifier struct {
	BinDir  string   `toml:"bin_dir"`
	Timeout Duration `toml:"timeout"`
}

// CDI says where vendors describe devices.
type CDI struct {
	Enabled  bool     `toml:"enabled"`
	SpecDirs []string `toml:"spec_dirs"`
}

// NRI says which plugins may take part in what becomes of pods and containers.
type NRI struct {
	Enabled             bool     `toml:"enabled"`
	SocketPath          string   `toml:"socket_path"`
	PluginPath          string   `toml:"plugin_path"`
	PluginConfigPath    string   `toml:"plugin_config_path"`
	RegistrationTimeout Duration `toml:"plugin_registration_timeout"`
	RequestTimeout      Duration `toml:"plugin_request_timeout"`
	DisableConnections  bool     `toml:"disable_connections"`

	DefaultValidator validator.DefaultValidatorConfig `toml:"default_validator"`
}

// Network configures how pods are attached.
type Network struct {
	Mode      string   `toml:"mode"`
	NetnsDir  string   `toml:"netns_dir"`
	NetnsPool int      `toml:"netns_pool"`
	PodCIDRs  []string `toml:"pod_cidrs"`
	Bridge    string   `toml:"bridge"`
	MTU       int      `toml:"mtu"`
	ConfDir   string   `toml:"conf_dir"`
	BinDirs   []string `toml:"bin_dirs"`
}

// Duration is a time.Duration that is written as text ("1m30s").
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a duration such as \"90s\"", text)
	}
	if v < 0 {
		return fmt.Errorf("%q is negative", text)
	}
	*d = Duration(v)
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Default is the configuration without any file.
func Default() Config {
	var c Config
	if err := decode(defaultText, &c); err != nil {
		panic("the embedded default configuration is wrong: " + err.Error()) // a test decodes it
	}
	return c
}

// Load reads a file over the defaults and checks it. With path "" it reads DefaultPath, which may be missing. Errors
// name the file and the line, all of them at once.
func Load(path string) (Config, error) {
	optional := path == ""
	if optional {
		path = DefaultPath
	}
	text, err := os.ReadFile(path)
	if optional && errors.Is(err, fs.ErrNotExist) {
		return Default(), nil
	}
	if err != nil {
		return Config{}, fmt.Errorf("read the configuration: %w", err)
	}
	return Parse(path, text)
}

// Parse decodes text, the content of the file called name, over the defaults and checks it.
func Parse(name string, text []byte) (Config, error) {
	c := Default()
	if err := decode(text, &c); err != nil {
		return Config{}, located(name, err)
	}
	if problems := c.problems(); len(problems) > 0 {
		return Config{}, placed(name, text, problems)
	}
	return c, nil
}

func decode(text []byte, c *Config) error {
	return toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(c)
}

// Check says what is wrong with the values, for a configuration that was changed by flags.
func (c *Config) Check() error { return placed("", nil, c.problems()) }
