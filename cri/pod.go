package cri

import (
	"net/netip"
	"path/filepath"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/engine/spec"
)

// owner marks the engine's records that this front made.
const owner = "cri"

// podOf checks and translates a sandbox's configuration.
func podOf(config *runtime.PodSandboxConfig, handler string) (spec.Pod, error) {
	if config == nil {
		return spec.Pod{}, required("config")
	}
	meta := config.GetMetadata()
	if meta.GetName() == "" {
		return spec.Pod{}, required("config.metadata.name")
	}
	if meta.GetNamespace() == "" {
		return spec.Pod{}, required("config.metadata.namespace")
	}
	if config.GetWindows() != nil {
		return spec.Pod{}, invalid("config.windows", "this node runs Linux containers")
	}
	for field, s := range map[string]string{
		"config.metadata.name": meta.GetName(), "config.metadata.namespace": meta.GetNamespace(), "config.metadata.uid": meta.GetUid(),
	} {
		if err := text(field, s); err != nil {
			return spec.Pod{}, err
		}
	}
	pod := spec.Pod{
		Name:        meta.GetName(),
		Namespace:   meta.GetNamespace(),
		UID:         meta.GetUid(),
		Attempt:     meta.GetAttempt(),
		Hostname:    config.GetHostname(),
		Labels:      config.GetLabels(),
		Annotations: config.GetAnnotations(),
		Handler:     handler,
		Owner:       owner,
	}
	if err := hostname("config.hostname", pod.Hostname); err != nil {
		return spec.Pod{}, err
	}
	return pod, podParts(&pod, config)
}

func podParts(pod *spec.Pod, config *runtime.PodSandboxConfig) error {
	var err error
	if dir := config.GetLogDirectory(); dir != "" {
		if pod.LogDirectory, err = absolute("config.log_directory", dir); err != nil {
			return err
		}
	}
	if pod.DNS, err = dnsOf(config.GetDnsConfig()); err != nil {
		return err
	}
	linux := config.GetLinux()
	if pod.CgroupParent, err = cgroupParentOf(linux.GetCgroupParent()); err != nil {
		return err
	}
	if pod.Resources, err = resourcesOf("config.linux.resources", linux.GetResources()); err != nil {
		return err
	}
	if pod.Overhead, err = resourcesOf("config.linux.overhead", linux.GetOverhead()); err != nil {
		return err
	}
	if pod.Sysctls, err = sysctlsOf(linux.GetSysctls()); err != nil {
		return err
	}
	if pod.Security, err = podSecurity(linux.GetSecurityContext()); err != nil {
		return err
	}
	// A client that knows nothing of host networking still passes the ports of such a pod: they are the host's.
	if pod.Security.Namespaces.Network != spec.ModeNode {
		pod.PortMappings, err = portsOf(config.GetPortMappings())
	}
	return err
}

// dnsOf is nil, a copy of the host's resolv.conf, when nothing is asked for.
func dnsOf(config *runtime.DNSConfig) (*spec.DNS, error) {
	dns := &spec.DNS{Servers: config.GetServers(), Searches: config.GetSearches(), Options: config.GetOptions()}
	if len(dns.Servers)+len(dns.Searches)+len(dns.Options) == 0 {
		return nil, nil
	}
	for _, server := range dns.Servers {
		if _, err := netip.ParseAddr(server); err != nil {
			return nil, invalid("config.dns_config.servers", "%q is not an address", server)
		}
	}
	for _, search := range dns.Searches {
		if err := word("config.dns_config.searches", search); err != nil {
			return nil, err
		}
	}
	for _, option := range dns.Options {
		if err := word("config.dns_config.options", option); err != nil {
			return nil, err
		}
	}
	return dns, nil
}

func cgroupParentOf(parent string) (string, error) {
	const field = "config.linux.cgroup_parent"
	if parent == "" {
		return "", nil
	}
	if err := text(field, parent); err != nil {
		return "", err
	}
	if !filepath.IsAbs(parent) {
		if strings.HasSuffix(parent, ".slice") && !strings.Contains(parent, "/") {
			return parent, nil // the engine knows whether that is a cgroup here
		}
		parent = "/" + parent
	}
	for part := range strings.SplitSeq(parent, "/") {
		if part == ".." {
			return "", invalid(field, "%q leaves its hierarchy", parent)
		}
	}
	return filepath.Clean(parent), nil
}

func sysctlsOf(sysctls map[string]string) (map[string]string, error) {
	for key, value := range sysctls {
		if key == "" || strings.ContainsAny(key, " \x00") || strings.Contains(key, "..") {
			return nil, invalid("config.linux.sysctls", "%q is not the name of a sysctl", key)
		}
		if err := text("config.linux.sysctls["+key+"]", value); err != nil {
			return nil, err
		}
	}
	return sysctls, nil
}

var protocols = map[runtime.Protocol]string{
	runtime.Protocol_TCP: "tcp", runtime.Protocol_UDP: "udp", runtime.Protocol_SCTP: "sctp",
}

// portsOf leaves out mappings without a host port: they publish nothing.
func portsOf(mappings []*runtime.PortMapping) ([]spec.PortMapping, error) {
	var ports []spec.PortMapping
	for _, m := range mappings {
		protocol, known := protocols[m.GetProtocol()]
		if !known {
			return nil, invalid("config.port_mappings.protocol", "%d is not a protocol", m.GetProtocol())
		}
		if m.GetHostPort() == 0 {
			continue
		}
		host, err := port("config.port_mappings.host_port", m.GetHostPort())
		if err != nil {
			return nil, err
		}
		container, err := port("config.port_mappings.container_port", m.GetContainerPort())
		if err != nil {
			return nil, err
		}
		if ip := m.GetHostIp(); ip != "" {
			if _, err := netip.ParseAddr(ip); err != nil {
				return nil, invalid("config.port_mappings.host_ip", "%q is not an address", ip)
			}
		}
		ports = append(ports, spec.PortMapping{
			Protocol: protocol, ContainerPort: container, HostPort: host, HostIP: m.GetHostIp(),
		})
	}
	return ports, nil
}

func port(field string, n int32) (uint16, error) {
	if n < 1 || n > 65535 {
		return 0, invalid(field, "%d is not between 1 and 65535", n)
	}
	return uint16(n), nil
}
