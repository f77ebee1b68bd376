package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"regexp"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/criserver/criserver/cni/builtin"
)

type config struct {
	types.NetConf
	Bridge       string         `json:"bridge"`
	Subnets      []netip.Prefix `json:"subnets"`
	MTU          int            `json:"mtu"`
	NoMasquerade []netip.Prefix `json:"noMasquerade"`
	StateDir     string         `json:"stateDir"`
	Runtime      struct {
		PortMappings []portMapping `json:"portMappings"`
		IPRanges     [][]struct {
			Subnet netip.Prefix `json:"subnet"`
		} `json:"ipRanges"`
		Bandwidth struct {
			IngressRate uint64 `json:"ingressRate"`
			EgressRate  uint64 `json:"egressRate"`
		} `json:"bandwidth"`
	} `json:"runtimeConfig"`
}

type portMapping struct {
	HostPort      uint16 `json:"hostPort"`
	ContainerPort uint16 `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP"`
}

// bridgeNames is stricter than the kernel: the name is a directory here.
var bridgeNames = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_-]*$`)

func parse(data []byte) (*config, error) {
	c := &config{Bridge: "crix0", StateDir: "/run/criserver/cni-plugin"}
	if err := json.Unmarshal(data, c); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "configuration of plugin criserver", err.Error())
	}
	if !bridgeNames.MatchString(c.Bridge) {
		return nil, invalid("bridge %q: want letters, digits, '_' and '-'", c.Bridge)
	}
	if ranges := c.Runtime.IPRanges; len(ranges) > 0 {
		c.Subnets = nil
		for _, r := range ranges {
			if len(r) != 1 {
				return nil, invalid("ipRanges: want one subnet in each range, got %d", len(r))
			}
			c.Subnets = append(c.Subnets, r[0].Subnet)
		}
	}
	if len(c.Subnets) == 0 {
		return nil, invalid(`no "subnets" are given, and no ipRanges by the runtime`)
	}
	return c, nil
}

func invalid(format string, args ...any) error {
	return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf(format, args...), "")
}

func (c *config) ports() ([]builtin.Port, error) {
	var out []builtin.Port
	for _, m := range c.Runtime.PortMappings {
		if m.HostPort == 0 {
			continue
		}
		p := builtin.Port{Protocol: m.Protocol, HostPort: m.HostPort, ContainerPort: m.ContainerPort}
		if m.HostIP != "" {
			ip, err := netip.ParseAddr(m.HostIP)
			if err != nil {
				return nil, invalid("portMappings: hostIP %q: %v", m.HostIP, err)
			}
			p.HostIP = ip
		}
		out = append(out, p)
	}
	return out, nil
}

func (c *config) rates() builtin.Rates {
	return builtin.Rates{Ingress: c.Runtime.Bandwidth.IngressRate, Egress: c.Runtime.Bandwidth.EgressRate}
}

func (c *config) plugin() (*builtin.Plugin, error) {
	return builtin.New(builtin.Config{CIDRs: c.Subnets, NoMasquerade: c.NoMasquerade, Bridge: c.Bridge, MTU: c.MTU,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))})
}
