// Command criserver-cni is the built-in network plugin for whoever runs CNI plugins as programs, installed as
// "criserver" among them. Its configuration:
//
//	{
//	  "type": "criserver",
//	  "bridge": "crix0",                    first bridge; those after it count on
//	  "subnets": ["10.90.0.0/16", "fd90::/64"],  one a family; required unless the runtime gives ipRanges
//	  "mtu": 0,                             0 is that of the default route
//	  "noMasquerade": ["10.0.0.0/8"],       destinations that see the pods' addresses
//	  "stateDir": "/run/criserver/cni-plugin",
//	  "capabilities": {"portMappings": true, "bandwidth": true, "ipRanges": true}
//	}
//
// Networks with one bridge name share its addresses and must give the same subnets. Host ports serve clients from elsewhere and pods, not clients that connect to a loopback address: that takes a process
// that stays, which the daemon is and this is not.
package main

import (
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/version"
)

func main() {
	skel.PluginMainFuncs(skel.CNIFuncs{Add: add, Del: del, Check: check, GC: gc, Status: status},
		version.All, "criserver: bridge, addresses, masquerade and host ports")
}
