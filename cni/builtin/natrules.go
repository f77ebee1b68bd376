package builtin

import (
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

func (n *nat) addChains(c *nftables.Conn) {
	n.chains = map[string]*nftables.Chain{"host_ports": c.AddChain(&nftables.Chain{Name: "host_ports", Table: n.table})}
	base := func(name string, hook *nftables.ChainHook, priority *nftables.ChainPriority) {
		n.chains[name] = c.AddChain(&nftables.Chain{Name: name, Table: n.table, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: priority})
	}
	base("prerouting", nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	base("output", nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	base("postrouting", nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
}

func (n *nat) addRules(c *nftables.Conn) {
	rule := func(chain string, parts ...[]expr.Any) {
		var exprs []expr.Any
		for _, p := range parts {
			exprs = append(exprs, p...)
		}
		c.AddRule(&nftables.Rule{Table: n.table, Chain: n.chains[chain], Exprs: exprs})
	}
	toHostPorts := append(localDestination(), &expr.Verdict{Kind: expr.VerdictJump, Chain: "host_ports"})
	ret := []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}}
	masquerade := []expr.Any{&expr.Masq{}}
	rule("prerouting", toHostPorts)
	rule("output", n.v4.match(), n.v4.ruleDaddr, equalMasked([]byte{0xff, 0, 0, 0}, []byte{127, 0, 0, 0}), ret)
	rule("output", n.v6.match(), n.v6.ruleDaddr, []expr.Any{equal([]byte{15: 1})}, ret)
	rule("output", toHostPorts)
	for _, s := range []*natSets{&n.v4, &n.v6} {
		rule("host_ports", s.match(), s.ruleSaddr, inSet(s.pods, false), setMark(podToHostPort))
	}
	for _, s := range []*natSets{&n.v4, &n.v6} {
		rule("host_ports", s.match(), s.loadKey(true), s.dnat(s.addrPorts))
		rule("host_ports", s.match(), s.loadKey(false), s.dnat(s.ports))
	}
	rule("postrouting", hasMark(podToHostPort), wasDNATed(), masquerade)
	for _, s := range []*natSets{&n.v4, &n.v6} {
		rule("postrouting", s.match(), s.ruleSaddr, inSet(s.pods, false), s.ruleDaddr, inSet(s.plain, true), masquerade)
	}
}

// match restricts a rule of an inet table to the family.
func (s *natSets) match() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: unix.NFT_REG_1}, equal([]byte{s.family})}
}

// loadKey loads [daddr .] l4proto . dport into registers from the first on, as the maps have them.
func (s *natSets) loadKey(withAddress bool) []expr.Any {
	next := uint32(unix.NFT_REG32_00)
	var out []expr.Any
	if withAddress {
		out = append(out, s.ruleDaddr...)
		next += s.addrLen / 4
	}
	return append(out,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: next},
		&expr.Payload{DestRegister: next + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2})
}

func (s *natSets) dnat(m *nftables.Set) []expr.Any {
	return []expr.Any{
		&expr.Lookup{SourceRegister: unix.NFT_REG32_00, DestRegister: unix.NFT_REG_1, IsDestRegSet: true, SetName: m.Name, SetID: m.ID},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(s.family), RegAddrMin: unix.NFT_REG_1, RegProtoMin: s.portReg, Specified: true},
	}
}

func localDestination() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: unix.NFT_REG_1, FlagDADDR: true, ResultADDRTYPE: true},
		equal(native(unix.RTN_LOCAL)),
	}
}

func inSet(s *nftables.Set, inverted bool) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: unix.NFT_REG_1, SetName: s.Name, SetID: s.ID, Invert: inverted}}
}

func equal(data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: data}
}

func equalMasked(mask, data []byte) []expr.Any {
	zero := make([]byte, len(mask))
	return []expr.Any{
		&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: uint32(len(mask)), Mask: mask, Xor: zero},
		equal(data),
	}
}

func setMark(bit uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: unix.NFT_REG_1},
		&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 4, Mask: native(^bit), Xor: native(bit)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: unix.NFT_REG_1},
	}
}

func hasMark(bit uint32) []expr.Any {
	return append([]expr.Any{&expr.Meta{Key: expr.MetaKeyMARK, Register: unix.NFT_REG_1}}, equalMasked(native(bit), native(bit))...)
}

// wasDNATed is "ct status dnat" (IPS_DST_NAT, linux/netfilter/nf_conntrack_common.h).
func wasDNATed() []expr.Any {
	const dstNAT = 1 << 5
	return append([]expr.Any{&expr.Ct{Key: expr.CtKeySTATUS, Register: unix.NFT_REG_1}}, equalMasked(native(dstNAT), native(dstNAT))...)
}
