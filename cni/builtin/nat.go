package builtin

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// nat is the table of nftables rules. It reads, as nft would print it:
//
//	table inet criserver {
//	  set pods4  { type ipv4_addr; flags interval }   # the pods' addresses
//	  set plain4 { type ipv4_addr; flags interval }   # destinations that see them as they are
//	  map addr_ports4 { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service }
//	  map ports4      { type inet_proto . inet_service : ipv4_addr . inet_service }
//	  ... the same for IPv6
//	  chain prerouting  { type nat hook prerouting priority dstnat; fib daddr type local jump host_ports }
//	  chain output      { type nat hook output priority dstnat; ip daddr 127.0.0.0/8 return; ip6 daddr ::1 return
//	                      fib daddr type local jump host_ports }
//	  chain host_ports  { ip saddr @pods4 meta mark set meta mark | 0x1000
//	                      dnat ip to ip daddr . meta l4proto . th dport map @addr_ports4
//	                      dnat ip to meta l4proto . th dport map @ports4; ... }
//	  chain postrouting { type nat hook postrouting priority srcnat
//	                      meta mark & 0x1000 == 0x1000 ct status dnat masquerade
//	                      ip saddr @pods4 ip daddr != @plain4 masquerade; ... }
//	}
//
// The mark says "a pod to a host port": such traffic is masqueraded, because the answer of a pod on the same bridge,
// or of the same pod, would not come back through the host. Only the first packet of a connection carries it.
// The number of rules does not depend on the number of pods.
//
// inet tables of type nat need Linux 5.2, concatenated map data and fib 5.6 or earlier. Safe for concurrent use: a
// batch is one transaction of the kernel, and each has its own socket.
type nat struct {
	table  *nftables.Table
	chains map[string]*nftables.Chain
	v4, v6 natSets

	mu    sync.Mutex // held only to read and change what follows
	plain []netip.Prefix
	pods  []netip.Prefix
	ports map[portRule]struct{}
}

type natSets struct {
	family               byte
	addrLen, saddr       uint32 // of an address in bytes; offset of the source in the header
	pods, plain          *nftables.Set
	addrPorts, ports     *nftables.Set
	portReg              uint32 // register of the port after an address in register 1
	ruleDaddr, ruleSaddr []expr.Any
}

// portRule sends what arrives for a port of the host to a pod. hostIP is not valid for every address.
type portRule struct {
	protocol uint8
	hostIP   netip.Addr
	hostPort uint16
	target   netip.AddrPort
}

const podToHostPort uint32 = 0x1000

// multicast and link-local destinations are never masqueraded.
var alwaysPlain = []netip.Prefix{
	netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("ff00::/8"), netip.MustParsePrefix("fe80::/10"),
}

func newNAT(table string) *nat {
	n := &nat{table: &nftables.Table{Name: table, Family: nftables.TableFamilyINet}, ports: make(map[portRule]struct{})}
	n.v4 = n.sets(unix.NFPROTO_IPV4, nftables.TypeIPAddr, 4, 12, 16, "4", unix.NFT_REG32_01)
	n.v6 = n.sets(unix.NFPROTO_IPV6, nftables.TypeIP6Addr, 16, 8, 24, "6", unix.NFT_REG_2)
	return n
}

func (n *nat) sets(family byte, addr nftables.SetDatatype, addrLen, saddr, daddr uint32, suffix string, portReg uint32) natSets {
	target := nftables.MustConcatSetType(addr, nftables.TypeInetService)
	load := func(offset, register uint32) []expr.Any {
		return []expr.Any{&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: addrLen}}
	}
	return natSets{
		family: family, addrLen: addrLen, saddr: saddr, portReg: portReg,
		pods:  &nftables.Set{Table: n.table, Name: "pods" + suffix, KeyType: addr, Interval: true},
		plain: &nftables.Set{Table: n.table, Name: "plain" + suffix, KeyType: addr, Interval: true},
		addrPorts: &nftables.Set{Table: n.table, Name: "addr_ports" + suffix, IsMap: true, Concatenation: true, DataType: target,
			KeyType: nftables.MustConcatSetType(addr, nftables.TypeInetProto, nftables.TypeInetService)},
		ports: &nftables.Set{Table: n.table, Name: "ports" + suffix, IsMap: true, Concatenation: true, DataType: target,
			KeyType: nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)},
		ruleSaddr: load(saddr, unix.NFT_REG_1),
		ruleDaddr: load(daddr, unix.NFT_REG_1),
	}
}

func (n *nat) of(a netip.Addr) *natSets {
	if a.Is4() {
		return &n.v4
	}
	return &n.v6
}

// rebuild replaces the table, in one transaction, by what pods and plain say and the ports that are known.
func (n *nat) rebuild(pods, plain []netip.Prefix) error {
	n.mu.Lock()
	n.pods, n.plain = pods, plain
	n.mu.Unlock()
	return n.restore()
}

// restore writes the table as it should be.
func (n *nat) restore() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	// The lock is held over the transaction, which is one message and its acknowledgement: an add or remove between
	// the two would be lost.
	c := &nftables.Conn{}
	c.AddTable(n.table)
	c.DelTable(n.table)
	c.AddTable(n.table)
	for _, s := range []*natSets{&n.v4, &n.v6} {
		is4 := s.addrLen == 4
		plain := slices.Concat(n.pods, n.plain, alwaysPlain)
		if err := errors.Join(
			c.AddSet(s.pods, intervals(n.pods, is4)), c.AddSet(s.plain, intervals(plain, is4)),
			c.AddSet(s.addrPorts, nil), c.AddSet(s.ports, nil)); err != nil {
			return fmt.Errorf("nftables: %w", err)
		}
	}
	for r := range n.ports {
		if err := n.element(c, r, c.SetAddElements); err != nil {
			return err
		}
	}
	n.addChains(c)
	n.addRules(c)
	return n.commit(c, "write table inet "+n.table.Name)
}

func (n *nat) commit(c *nftables.Conn, what string) error {
	err := c.Flush()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("nftables: %s: %w: the kernel lacks nf_tables with inet nat, fib or masquerade (CONFIG_NF_TABLES_INET, NFT_NAT, NFT_MASQ, NFT_FIB_INET): %w",
			what, err, errdefs.ErrNotImplemented)
	default:
		return fmt.Errorf("nftables: %s: %w", what, err)
	}
}

// add and remove change the ports in one transaction each. Removing what is not there is no error.
func (n *nat) add(rules []portRule) error {
	n.mu.Lock()
	for _, r := range rules {
		n.ports[r] = struct{}{}
	}
	n.mu.Unlock()
	c := &nftables.Conn{}
	for _, r := range rules {
		if err := n.element(c, r, c.SetAddElements); err != nil {
			return err
		}
	}
	err := n.commit(c, "add host ports")
	if errors.Is(err, unix.ENOENT) { // somebody flushed the ruleset
		return n.restore()
	}
	return err
}

func (n *nat) remove(rules []portRule) error {
	n.mu.Lock()
	for _, r := range rules {
		delete(n.ports, r)
	}
	n.mu.Unlock()
	var errs []error
	for _, r := range rules {
		c := &nftables.Conn{}
		if err := n.element(c, r, c.SetDeleteElements); err != nil {
			errs = append(errs, err)
			continue
		}
		if err := n.commit(c, "remove a host port"); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// probe writes the table under another name, with nothing in its sets, and removes it.
func (n *nat) probe() error {
	try := newNAT(n.table.Name + "-probe")
	if err := try.restore(); err != nil {
		return err
	}
	return try.drop()
}

// present says whether the table is there.
func (n *nat) present() bool {
	c := &nftables.Conn{}
	_, err := c.ListTableOfFamily(n.table.Name, n.table.Family)
	return err == nil
}

// drop removes the table. One that is not there is no error.
func (n *nat) drop() error {
	c := &nftables.Conn{}
	c.AddTable(n.table)
	c.DelTable(n.table)
	return n.commit(c, "remove table inet "+n.table.Name)
}

func (n *nat) element(c *nftables.Conn, r portRule, apply func(*nftables.Set, []nftables.SetElement) error) error {
	s := n.of(r.target.Addr())
	set := s.ports
	key := concat([]byte{r.protocol}, binaryutil.BigEndian.PutUint16(r.hostPort))
	if r.hostIP.IsValid() {
		set = s.addrPorts
		key = concat(r.hostIP.AsSlice(), key)
	}
	value := concat(r.target.Addr().AsSlice(), binaryutil.BigEndian.PutUint16(r.target.Port()))
	if err := apply(set, []nftables.SetElement{{Key: key, Val: value}}); err != nil {
		return fmt.Errorf("nftables: host port %d: %w", r.hostPort, err)
	}
	return nil
}

// concat pads each part to the kernel's 32-bit registers.
func concat(parts ...[]byte) []byte {
	var out []byte
	for _, p := range parts {
		out = append(out, p...)
		for len(out)%4 != 0 {
			out = append(out, 0)
		}
	}
	return out
}

// intervals turns prefixes of one family into the sorted, disjoint half-open intervals that a set wants.
func intervals(prefixes []netip.Prefix, v4 bool) []nftables.SetElement {
	var mine []netip.Prefix
	for _, p := range prefixes {
		if p.Addr().Is4() == v4 {
			mine = append(mine, p.Masked())
		}
	}
	// Wider first, so that what is inside another is found after it.
	slices.SortFunc(mine, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	var out []nftables.SetElement
	var end netip.Addr // of the interval before
	for _, p := range mine {
		if end.IsValid() && p.Addr().Less(end) {
			continue
		}
		next := after(p)
		if len(out) > 0 && p.Addr() == end {
			out = out[:len(out)-1] // adjacent: one interval
		} else {
			out = append(out, nftables.SetElement{Key: p.Addr().AsSlice()})
		}
		if !next.IsValid() {
			return out // up to the end of the address space
		}
		end = next
		out = append(out, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
	}
	return out
}

// after is the first address behind a prefix, not valid when there is none.
func after(p netip.Prefix) netip.Addr {
	last := p.Addr().AsSlice()
	for i := range last {
		switch free := p.Bits() - 8*i; {
		case free <= 0:
			last[i] = 0xff
		case free < 8:
			last[i] |= 0xff >> free
		}
	}
	a, _ := netip.AddrFromSlice(last)
	return a.Next()
}

// native is how the kernel compares marks and enumerations: in the byte order of the host.
func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
