package builtin

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"runtime"

	"github.com/vishvananda/netlink"

	"github.com/criserver/criserver/cni/netns"
)

// interfacePrefix starts the names of the host's sides.
const interfacePrefix = "criv"

// newInterfaceName is random, so that a pod that is attached again does not meet its earlier interface, which the
// kernel may still be taking down.
func newInterfaceName() string {
	var b [5]byte
	_, _ = rand.Read(b[:]) // never fails
	return interfacePrefix + hex.EncodeToString(b[:])
}

// connect makes the pair of interfaces, one end on the bridge and the other in the namespace.
func (p *Plugin) connect(a *Attachment, bridge int, ns *netns.NS) error {
	veth := &netlink.Veth{
		LinkAttrs:        netlink.LinkAttrs{Name: a.Interface, MTU: a.MTU, TxQLen: -1, MasterIndex: bridge, Flags: net.FlagUp},
		PeerName:         a.Name,
		PeerTxQLen:       -1,
		PeerHardwareAddr: hardwareAddr(a.Addresses[0].Addr()),
		PeerNamespace:    netlink.NsFd(ns.FD()),
	}
	err := p.host.LinkAdd(veth)
	runtime.KeepAlive(ns)
	if err != nil {
		p.forgetBridges() // perhaps it was taken away
		return fmt.Errorf("add interfaces %s and %s on bridge %s: %w", a.Interface, a.Name, a.Bridge, err)
	}
	// Where bridged packets go through netfilter (br_netfilter, which Kubernetes asks for), one that is sent by a pod to
	// a port or service of its own is rewritten and sent back on the bridge, which only a hairpin port lets through.
	if err := p.host.LinkSetHairpin(veth, true); err != nil {
		return fmt.Errorf("set hairpin mode of %s: %w", a.Interface, err)
	}
	if err := configure(a, ns.Handle()); err != nil {
		return err
	}
	return p.limit(a, ns.Handle())
}

// configure gives the pod's end its addresses and routes, through a socket in its namespace.
func configure(a *Attachment, h *netlink.Handle) error {
	link, err := h.LinkByName(a.Name)
	if err != nil {
		return fmt.Errorf("find %s in the pod's namespace: %w", a.Name, err)
	}
	for _, addr := range a.Addresses {
		if err := h.AddrAdd(link, address(addr)); err != nil {
			return fmt.Errorf("add address %s to %s: %w", addr, a.Name, err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", a.Name, err)
	}
	for _, g := range a.Gateways {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: g.AsSlice(), Dst: defaultRoute(g)}
		if err := h.RouteAdd(route); err != nil {
			return fmt.Errorf("add default route via %s: %w", g, err)
		}
	}
	return nil
}

func defaultRoute(gateway netip.Addr) *net.IPNet {
	bits := gateway.BitLen()
	return &net.IPNet{IP: make(net.IP, bits/8), Mask: net.CIDRMask(0, bits)}
}

// HardwareAddr is that of the pod's interface.
func (a *Attachment) HardwareAddr() net.HardwareAddr { return hardwareAddr(a.Addresses[0].Addr()) }
