//go:build tools

// Package cniplugins pins the network plugins that tests and hack/bench run. ./build makes all, or build one by
// go build -C hack/tools/cniplugins -o DIR/ github.com/containernetworking/plugins/plugins/main/bridge
package cniplugins

import (
	_ "github.com/containernetworking/plugins/plugins/ipam/host-local"
	_ "github.com/containernetworking/plugins/plugins/main/bridge"
	_ "github.com/containernetworking/plugins/plugins/main/loopback"
	_ "github.com/containernetworking/plugins/plugins/meta/firewall"
	_ "github.com/containernetworking/plugins/plugins/meta/portmap"
)
