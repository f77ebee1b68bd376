package daemon

import (
	"fmt"
	"strings"

	"github.com/criserver/criserver/cmd/criserver/config"
	"github.com/criserver/criserver/engine"
	"github.com/criserver/criserver/engine/spec"
)

// settings turns the configuration of handlers, and what all containers have in common, into the engine's.
func settings(cfg config.Config) (map[string]spec.Settings, error) {
	var rlimits []spec.Rlimit
	for _, text := range cfg.Workload.DefaultUlimits {
		limit, err := spec.ParseRlimit(text)
		if err != nil {
			return nil, fmt.Errorf("workload.default_ulimits: %w", err)
		}
		rlimits = append(rlimits, limit)
	}
	all := map[string]spec.Settings{}
	for name, r := range cfg.Runtimes {
		s := spec.Settings{
			PodAnnotations: r.PodAnnotations, ContainerAnnotations: r.ContainerAnnotations,
			PrivilegedWithoutHostDevices: r.PrivilegedWithoutHostDevices, CgroupWritable: r.CgroupWritable,
			Rlimits: rlimits,
		}
		if r.BaseSpec != "" {
			var err error
			if s.Base, err = engine.LoadBaseSpec(r.BaseSpec); err != nil {
				return nil, fmt.Errorf("runtimes.%s.base_spec: %w", name, err)
			}
		}
		all[name] = s
	}
	return all, nil
}

// sysctls are those that pods get without asking.
func sysctls(cfg config.Workload) map[string]string {
	all := map[string]string{}
	if cfg.UnprivilegedPorts {
		all["net.ipv4.ip_unprivileged_port_start"] = engine.DefaultSysctls["net.ipv4.ip_unprivileged_port_start"]
	}
	if cfg.UnprivilegedICMP {
		all["net.ipv4.ping_group_range"] = engine.DefaultSysctls["net.ipv4.ping_group_range"]
	}
	for _, text := range cfg.DefaultSysctls {
		name, value, _ := strings.Cut(text, "=") // checked with the configuration
		all[name] = value
	}
	return all
}
