package builtin

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

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

// connect makes the pair of interfaces, one end on the bridge and the other in the namespace. Each request waits for the
// kernel's RTNL lock, so their number is what this costs.
func (p *Plugin) connect(a *Attachment, bridge int, ns *netns.NS) error {
	err := p.addPair(a, bridge, ns.FD())
	runtime.KeepAlive(ns)
	if err != nil {
		p.forgetBridges() // perhaps it was taken away
		return fmt.Errorf("add interfaces %s and %s on bridge %s: %w", a.Interface, a.Name, a.Bridge, err)
	}
	link, err := p.host.LinkByName(a.Interface)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", a.Interface, err)
	}
	// Where bridged packets go through netfilter (br_netfilter, which Kubernetes asks for), one that is sent by a pod to
	// a port or service of its own is rewritten and sent back on the bridge, which only a hairpin port lets through.
	if err := p.host.LinkSetHairpin(link, true); err != nil {
		return fmt.Errorf("set hairpin mode of %s: %w", a.Interface, err)
	}
	peer := link.Attrs().ParentIndex // IFLA_LINK of one end is the index of the other
	if err := configure(a, ns.Handle(), peer); err != nil {
		return err
	}
	return p.limit(a, link.Attrs().Index, ns.Handle(), peer)
}

// addPair makes both ends, the host's up and a port of the bridge, in one request.
func (p *Plugin) addPair(a *Attachment, bridge, netnsFD int) error {
	mtu := nl.Uint32Attr(uint32(a.MTU))
	request := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	up := nl.NewIfInfomsg(unix.AF_UNSPEC)
	up.Flags, up.Change = unix.IFF_UP, unix.IFF_UP
	request.AddData(up)
	request.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: p.socket}
	request.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(a.Interface)))
	request.AddData(nl.NewRtAttr(unix.IFLA_MTU, mtu))
	request.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(bridge))))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC) // not up: the kernel sets it up before it has a peer, and fails
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(a.Name))
	peer.AddRtAttr(unix.IFLA_MTU, mtu)
	peer.AddRtAttr(unix.IFLA_ADDRESS, a.HardwareAddr())
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(netnsFD)))
	request.AddData(info)
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// configure gives the pod's end its addresses and routes, through a socket in its namespace.
func configure(a *Attachment, h *netlink.Handle, index int) error {
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: a.Name, Index: index}}
	for _, addr := range a.Addresses {
		if err := h.AddrAdd(link, address(addr)); err != nil {
			return fmt.Errorf("add address %s to %s: %w", addr, a.Name, err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", a.Name, err)
	}
	for _, g := range a.Gateways {
		route := &netlink.Route{LinkIndex: index, Gw: g.AsSlice(), Dst: defaultRoute(g)}
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
