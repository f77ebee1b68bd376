package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"github.com/criserver/criserver/engine/spec"
)

// maxSocketPath is what fits in sockaddr_un.sun_path with its terminating zero (unix(7)).
const maxSocketPath = 107

// maxBridgeName leaves room in an interface name (15 bytes) for the number of further bridges.
const maxBridgeName = 11

// problem is a value that cannot be used. key is dotted, as in the file.
type problem struct{ key, text string }

// SocketPath is the path of the CRI socket.
func (c *Config) SocketPath() string {
	if c.Listen == "" {
		return filepath.Join(c.State, "criserver.sock")
	}
	return strings.TrimPrefix(c.Listen, "unix://")
}

// SlogLevel is the level as package slog has it.
func (c *Config) SlogLevel() slog.Level {
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.Log.Level)) // checked by problems
	return level
}

func (c *Config) problems() []problem {
	var all []problem
	add := func(key, format string, args ...any) {
		all = append(all, problem{key, fmt.Sprintf(format, args...)})
	}
	absolute := func(key, path string) {
		if !filepath.IsAbs(path) {
			add(key, "%q is not an absolute path", path)
		}
	}
	oneOf := func(key, value string, allowed ...string) {
		if !slices.Contains(allowed, value) {
			add(key, "%q is none of %s", value, strings.Join(allowed, ", "))
		}
	}

	absolute("root", c.Root)
	absolute("state", c.State)
	if scheme, _, found := strings.Cut(c.Listen, "://"); found && scheme != "unix" {
		add("listen", "%q: only unix:// is served", c.Listen)
	} else {
		absolute("listen", c.SocketPath())
	}
	if n := len(c.SocketPath()); n > maxSocketPath {
		add("listen", "%q has %d bytes; the path of a socket has at most %d", c.SocketPath(), n, maxSocketPath)
	}
	oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	oneOf("log.format", c.Log.Format, "text", "json")
	for key, path := range map[string]string{"shim.keeper": c.Shim.Keeper, "shim.shim": c.Shim.Shim} {
		if path != "" {
			absolute(key, path)
		}
	}
	if slice := strings.HasSuffix(c.Workload.CgroupParent, ".slice"); c.Workload.CgroupDriver != "systemd" {
		absolute("workload.cgroup_parent", c.Workload.CgroupParent)
	} else if !slice && c.Workload.CgroupParent != Default().Workload.CgroupParent {
		add("workload.cgroup_parent", "%q is not a slice such as criserver.slice, and workload.cgroup_driver is systemd", c.Workload.CgroupParent)
	}
	oneOf("workload.cgroup_driver", c.Workload.CgroupDriver, "cgroupfs", "systemd")
	oneOf("workload.selinux", c.Workload.SELinux, "auto", "on", "off")
	oneOf("workload.unset_seccomp", c.Workload.UnsetSeccomp, "unconfined", "runtime/default")
	c.Workload.problems(add, absolute)
	c.Image.problems(add, absolute)
	if c.CDI.Enabled && len(c.CDI.SpecDirs) == 0 {
		add("cdi.spec_dirs", "is empty; turn CDI off with cdi.enabled instead")
	}
	for _, dir := range c.CDI.SpecDirs {
		absolute("cdi.spec_dirs", dir)
	}
	c.NRI.problems(add, absolute)
	c.Network.problems(add, absolute, oneOf)
	c.Streaming.problems(add, absolute)
	for name, runtime := range c.Runtimes {
		runtime.problems(name, add, absolute)
	}
	slices.SortStableFunc(all, func(a, b problem) int { return strings.Compare(a.key, b.key) })
	return all
}

func (i *Image) problems(add func(string, string, ...any), absolute func(string, string)) {
	absolute("image.hosts_dir", i.HostsDir)
	if n := i.Parallel; n < 1 || n > 256 {
		add("image.parallel", "%d is not between 1 and 256", n)
	}
	if n := i.Ranges; n < 1 || n > 6 {
		add("image.ranges", "%d is not between 1 and 6", n)
	}
	for _, host := range i.PlainHTTP {
		if !isHost(host) {
			add("image.plain_http", "%q is not a host or host:port", host)
		}
	}
	for key, path := range map[string]string{"image.docker_config": i.DockerConfig, "image.verifier.bin_dir": i.Verifier.BinDir} {
		if path != "" {
			absolute(key, path)
		}
	}
	if i.Verifier.Timeout == 0 {
		add("image.verifier.timeout", "is 0s: a verifier needs some time")
	}
	if i.MaxLayerSize < 1<<20 {
		add("image.max_layer_size", "%d is less than a MiB", i.MaxLayerSize)
	}
	if i.MaxInflateRatio < 1 {
		add("image.max_inflate_ratio", "%d is less than 1", i.MaxInflateRatio)
	}
}

func (n *NRI) problems(add func(string, string, ...any), absolute func(string, string)) {
	absolute("nri.socket_path", n.SocketPath)
	if length := len(n.SocketPath); length > maxSocketPath {
		add("nri.socket_path", "%q has %d bytes; the path of a socket has at most %d", n.SocketPath, length, maxSocketPath)
	}
	absolute("nri.plugin_path", n.PluginPath)
	absolute("nri.plugin_config_path", n.PluginConfigPath)
	for key, limit := range map[string]Duration{
		"nri.plugin_registration_timeout": n.RegistrationTimeout, "nri.plugin_request_timeout": n.RequestTimeout,
	} {
		if limit == 0 {
			add(key, "is 0s: a plugin needs some time")
		}
	}
}

func (n *Network) problems(add func(string, string, ...any), absolute func(string, string), oneOf func(string, string, ...string)) {
	oneOf("network.mode", n.Mode, "builtin", "cni")
	absolute("network.netns_dir", n.NetnsDir)
	if n.NetnsPool < 0 || n.NetnsPool > 256 {
		add("network.netns_pool", "%d is not between 0 and 256", n.NetnsPool)
	}
	if n.MTU != 0 && (n.MTU < 576 || n.MTU > 65535) {
		add("network.mtu", "%d is neither 0 nor between 576 and 65535", n.MTU)
	}
	if n.Bridge == "" || len(n.Bridge) > maxBridgeName || strings.ContainsAny(n.Bridge, "/: \t") {
		add("network.bridge", "%q is not an interface name of at most %d bytes", n.Bridge, maxBridgeName)
	}
	seen := map[bool]string{}
	for _, cidr := range n.PodCIDRs {
		prefix, err := netip.ParsePrefix(cidr)
		switch {
		case err != nil:
			add("network.pod_cidrs", "%q is not an address range such as 10.88.0.0/16", cidr)
		case prefix != prefix.Masked():
			add("network.pod_cidrs", "%q has host bits set; %s is meant?", cidr, prefix.Masked())
		case seen[prefix.Addr().Is4()] != "":
			add("network.pod_cidrs", "%q and %q are of the same family", seen[prefix.Addr().Is4()], cidr)
		default:
			seen[prefix.Addr().Is4()] = cidr
		}
	}
	if len(seen) == 0 && n.Mode == "builtin" {
		add("network.pod_cidrs", "is empty; mode builtin needs a range for pods")
	}
	absolute("network.conf_dir", n.ConfDir)
	if len(n.BinDirs) == 0 && n.Mode == "cni" {
		add("network.bin_dirs", "is empty; mode cni needs the directory of the plugins")
	}
	for _, dir := range n.BinDirs {
		absolute("network.bin_dirs", dir)
	}
}

func (w *Workload) problems(add func(string, string, ...any), absolute func(string, string)) {
	for _, text := range w.DefaultUlimits {
		if _, err := spec.ParseRlimit(text); err != nil {
			add("workload.default_ulimits", "%v", err)
		}
	}
	for _, text := range w.DefaultSysctls {
		name, _, ok := strings.Cut(text, "=")
		if _, err := spec.PodSysctls(&spec.Pod{Sysctls: map[string]string{name: ""}}, nil); !ok || err != nil {
			add("workload.default_sysctls", "%q is not of the form net.core.somaxconn=1024, with a sysctl of a pod's own namespaces", text)
		}
	}
	for key, file := range map[string]string{"workload.blockio_config": w.BlockIOConfig, "workload.rdt_config": w.RDTConfig} {
		if file != "" {
			absolute(key, file)
		}
	}
}

func (r *Runtime) problems(name string, add func(string, string, ...any), absolute func(string, string)) {
	at := "runtimes." + name
	const shim = "criserver runs programs with runc's command line (runc, crun, youki), and a shim of containerd speaks a protocol of containerd's own"
	switch program := filepath.Base(r.Path); {
	case strings.HasPrefix(name, "io.containerd."):
		add(at, "%q names a shim of containerd: %s", name, shim)
	case strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-._") != "" || name == "" || name[0] == '.':
		add(at, "a name is made of lower-case letters, digits, '-', '.' and '_'") // and is one of a directory
	case strings.HasPrefix(program, "containerd-shim"), strings.HasPrefix(r.Path, "io.containerd."):
		add(at+".path", "%q is a shim of containerd: %s", r.Path, shim)
	case name == NativeRuntime && r.Path != "":
		add(at+".path", "%q: %s is criserver's own runtime; give the program a name of its own", r.Path, NativeRuntime)
	case name != NativeRuntime && r.Path == "":
		add(at, "names no program: set path")
	case r.Path != "":
		absolute(at+".path", r.Path)
	}
	if r.Root != "" {
		absolute(at+".root", r.Root)
	}
	if r.Path == "" && (r.Root != "" || len(r.Args) > 0) {
		add(at, "root and args are for a program that path names")
	}
	if r.BaseSpec != "" {
		absolute(at+".base_spec", r.BaseSpec)
	}
	for key, globs := range map[string][]string{"pod_annotations": r.PodAnnotations, "container_annotations": r.ContainerAnnotations} {
		for _, glob := range globs {
			if _, err := path.Match(glob, ""); err != nil || glob == "" {
				add(at+"."+key, "%q is not a pattern such as example.com/* or a*", glob)
			}
		}
	}
}

func isHost(s string) bool {
	if host, port, err := net.SplitHostPort(s); err == nil {
		if _, err := strconv.ParseUint(port, 10, 16); err != nil {
			return false
		}
		s = host
	}
	return s != "" && !strings.ContainsAny(s, "/ \t@")
}

// located gives errors of the decoder their file, line and key.
func located(name string, err error) error {
	if missing, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		var all []error
		for i := range missing.Errors {
			all = append(all, locatedOne(name, &missing.Errors[i], "unknown key"))
		}
		return errors.Join(all...)
	}
	if one, ok := errors.AsType[*toml.DecodeError](err); ok {
		return locatedOne(name, one, strings.TrimPrefix(one.Error(), "toml: "))
	}
	return fmt.Errorf("%s: %w", name, err)
}

func locatedOne(name string, err *toml.DecodeError, text string) error {
	line, column := err.Position()
	key := strings.Join(err.Key(), ".")
	if key != "" {
		key += ": "
	}
	return fmt.Errorf("%s:%d:%d: %s%s", name, line, column, key, text)
}

// placed gives problems their file and line. A key that does not stand in text, because another makes it wrong, has
// only the file.
func placed(name string, text []byte, problems []problem) error {
	lines := keyLines(text)
	var all []error
	for _, p := range problems {
		where := name
		if line := lines[p.key]; line > 0 {
			where = fmt.Sprintf("%s:%d", name, line)
		}
		if where != "" {
			where += ": "
		}
		all = append(all, fmt.Errorf("%s%s: %s", where, p.key, p.text))
	}
	return errors.Join(all...)
}

// keyLines finds the line of each dotted key. The text has been decoded before, so it is right TOML.
func keyLines(text []byte) map[string]int {
	lines := map[string]int{}
	var parser unstable.Parser
	parser.Reset(text)
	prefix := ""
	for parser.NextExpression() {
		node := parser.Expression()
		key, line := keyOf(&parser, node)
		switch node.Kind {
		case unstable.Table, unstable.ArrayTable:
			prefix = key + "."
			lines[key] = line
		case unstable.KeyValue:
			lines[prefix+key] = line
		}
	}
	return lines
}

func keyOf(parser *unstable.Parser, node *unstable.Node) (string, int) {
	var parts []string
	line := 0
	for it := node.Key(); it.Next(); {
		if line == 0 {
			line = parser.Shape(it.Node().Raw).Start.Line
		}
		parts = append(parts, string(it.Node().Data))
	}
	return strings.Join(parts, "."), line
}
