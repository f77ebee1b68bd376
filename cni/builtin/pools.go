package builtin

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"

	"github.com/containerd/errdefs"
)

// The pools are cut into slices of up to 256 addresses, one for each bridge: the gateway is a slice's first address, and
// a pod has the same place in the IPv4 and in the IPv6 slice. Between slices the host routes.
//
// A Linux bridge could take 1,023 ports (BR_MAX_PORTS, net/bridge/br_private.h), but a broadcast, such as any ARP
// request, is then 1,023 packets at once, more than a CPU's backlog takes (net.core.netdev_max_backlog, 1,000): the
// answer is dropped, every time. Seen on 6.18 with 1,021 ports.
const (
	sliceBits  = 8
	maxBridges = 256
	firstHost  = 2 // 0 is the network, 1 the gateway
)

// pools are the ranges that addresses come from. It is a value and never changes.
type pools struct {
	v4, v6       netip.Prefix // not valid when the family is not used
	slice4       int          // length of the prefix of a slice
	slice6       int
	bridges      int // how many slices there are
	hosts        int // places in a slice, the unusable ones included
	reservedLast bool
}

func newPools(cidrs []netip.Prefix) (pools, error) {
	var p pools
	for _, c := range cidrs {
		c = c.Masked()
		family := &p.v6
		if c.Addr().Is4() {
			family = &p.v4
		}
		if !c.IsValid() || c.Addr().Is4In6() || c.Addr().IsMulticast() || c.Addr().IsUnspecified() {
			return pools{}, fmt.Errorf("pod network %s is not a range for hosts: %w", c, errdefs.ErrInvalidArgument)
		}
		if family.IsValid() {
			return pools{}, fmt.Errorf("pod networks %s and %s are of one family; one for IPv4 and one for IPv6 at most: %w", *family, c, errdefs.ErrInvalidArgument)
		}
		if c.Addr().BitLen()-c.Bits() < 2 {
			return pools{}, fmt.Errorf("pod network %s has no room for a pod: %w", c, errdefs.ErrInvalidArgument)
		}
		*family = c
	}
	if !p.v4.IsValid() && !p.v6.IsValid() {
		return pools{}, fmt.Errorf("no pod network is given: %w", errdefs.ErrInvalidArgument)
	}
	p.bridges, p.hosts = maxBridges, 1<<sliceBits
	if p.v4.IsValid() {
		p.slice4 = max(p.v4.Bits(), 32-sliceBits)
		p.bridges = min(p.bridges, 1<<min(p.slice4-p.v4.Bits(), 16))
		p.hosts = min(p.hosts, 1<<(32-p.slice4))
		p.reservedLast = true // broadcast
	}
	if p.v6.IsValid() {
		// A slice ends at a colon where the pool has room for that, because it reads better.
		wanted := p.v6.Bits() + bits.Len(uint(p.bridges-1))
		p.slice6 = max(p.v6.Bits(), min(max(112, wanted), 128-sliceBits))
		p.bridges = min(p.bridges, 1<<min(p.slice6-p.v6.Bits(), 16))
		p.hosts = min(p.hosts, 1<<min(128-p.slice6, sliceBits))
	}
	return p, nil
}

// lastHost is the last place that a pod can have in a slice.
func (p pools) lastHost() int {
	if p.reservedLast {
		return p.hosts - 2
	}
	return p.hosts - 1
}

// capacity is how many pods a bridge can have.
func (p pools) capacity() int { return p.lastHost() - firstHost + 1 }

// at returns the addresses, IPv4 first, of a place in a bridge's slice, with the length of the slice's prefix.
func (p pools) at(bridge, host int) []netip.Prefix {
	var out []netip.Prefix
	if p.v4.IsValid() {
		base := p.v4.Addr().As4()
		n := binary.BigEndian.Uint32(base[:]) + uint32(bridge)<<(32-p.slice4) + uint32(host)
		binary.BigEndian.PutUint32(base[:], n)
		out = append(out, netip.PrefixFrom(netip.AddrFrom4(base), p.slice4))
	}
	if p.v6.IsValid() {
		base := p.v6.Addr().As16()
		hi, lo := binary.BigEndian.Uint64(base[:8]), binary.BigEndian.Uint64(base[8:])
		// Slices are at most as wide as 64 bits unless the whole pool is one slice.
		var offset uint64
		if shift := 128 - p.slice6; shift < 64 {
			offset = uint64(bridge) << shift
		}
		var carry uint64
		lo, carry = bits.Add64(lo, offset+uint64(host), 0)
		binary.BigEndian.PutUint64(base[:8], hi+carry)
		binary.BigEndian.PutUint64(base[8:], lo)
		out = append(out, netip.PrefixFrom(netip.AddrFrom16(base), p.slice6))
	}
	return out
}

// gateways are the bridge's own addresses.
func (p pools) gateways(bridge int) []netip.Prefix { return p.at(bridge, firstHost-1) }

// locate is the inverse of at for one address of a pod.
func (p pools) locate(a netip.Addr) (bridge, host int, ok bool) {
	switch {
	case p.v4.IsValid() && p.v4.Contains(a):
		base, addr := p.v4.Addr().As4(), a.As4()
		n := binary.BigEndian.Uint32(addr[:]) - binary.BigEndian.Uint32(base[:])
		bridge, host = int(n>>(32-p.slice4)), int(n&(1<<(32-p.slice4)-1))
	case p.v6.IsValid() && p.v6.Contains(a):
		base, addr := p.v6.Addr().As16(), a.As16()
		n := binary.BigEndian.Uint64(addr[8:]) - binary.BigEndian.Uint64(base[8:])
		if shift := 128 - p.slice6; shift < 64 {
			bridge, n = int(n>>shift), n&(1<<shift-1)
		}
		if n >= uint64(p.hosts) {
			return 0, 0, false
		}
		host = int(n)
	default:
		return 0, 0, false
	}
	return bridge, host, bridge < p.bridges && host >= firstHost && host <= p.lastHost()
}

// prefixes are the pools themselves.
func (p pools) prefixes() []netip.Prefix {
	var out []netip.Prefix
	for _, c := range []netip.Prefix{p.v4, p.v6} {
		if c.IsValid() {
			out = append(out, c)
		}
	}
	return out
}
