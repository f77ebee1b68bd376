package builtin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/cni/portproxy"
)

// Port publishes a port of the pod on the host. Protocol is tcp, udp or sctp; a HostIP that is not valid is every
// address, an unspecified one every address of its family.
type Port struct {
	Protocol      string     `json:"protocol"`
	HostPort      uint16     `json:"hostPort"`
	ContainerPort uint16     `json:"containerPort"`
	HostIP        netip.Addr `json:"hostIP,omitzero"`
}

func (p Port) String() string {
	if p.HostIP.IsValid() {
		return fmt.Sprintf("%s %s", p.Protocol, netip.AddrPortFrom(p.HostIP, p.HostPort))
	}
	return fmt.Sprintf("%s %d", p.Protocol, p.HostPort)
}

var protocols = map[string]uint8{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}

// wildcard says whether the port is taken on all addresses of the family.
func (p Port) wildcard(v4 bool) bool {
	return !p.HostIP.IsValid() || p.HostIP.IsUnspecified() && p.HostIP.Is4() == v4
}

// serves says whether the port is taken on any address of the family.
func (p Port) serves(v4 bool) bool { return !p.HostIP.IsValid() || p.HostIP.Is4() == v4 }

func (p Port) conflicts(q Port) bool {
	if p.Protocol != q.Protocol || p.HostPort != q.HostPort {
		return false
	}
	for _, v4 := range []bool{true, false} {
		if p.serves(v4) && q.serves(v4) && (p.wildcard(v4) || q.wildcard(v4) || p.HostIP == q.HostIP) {
			return true
		}
	}
	return false
}

func (p Port) check() error {
	if _, ok := protocols[p.Protocol]; !ok {
		return fmt.Errorf("host port %s: protocol %q is not tcp, udp or sctp: %w", p, p.Protocol, errdefs.ErrInvalidArgument)
	}
	if p.HostPort == 0 || p.ContainerPort == 0 {
		return fmt.Errorf("host port %s to %d: a port is 1 to 65535: %w", p, p.ContainerPort, errdefs.ErrInvalidArgument)
	}
	return nil
}

// target is the pod's address that clients of a family are sent to: of the same family, or else, through the proxy, of
// the other.
func target(a *Attachment, v4 bool) (addr netip.Addr, sameFamily bool) {
	for _, p := range a.Addresses {
		if p.Addr().Is4() == v4 {
			return p.Addr(), true
		}
	}
	return a.Addresses[0].Addr(), false
}

// rules are what nftables needs for a port. Loopback addresses have none: packets to them are not rewritten.
func (p Port) rules(a *Attachment) []portRule {
	var out []portRule
	for _, v4 := range []bool{true, false} {
		addr, same := target(a, v4)
		if !same || !p.serves(v4) || p.HostIP.IsValid() && p.HostIP.IsLoopback() {
			continue
		}
		r := portRule{protocol: protocols[p.Protocol], hostPort: p.HostPort, target: netip.AddrPortFrom(addr, p.ContainerPort)}
		if !p.wildcard(v4) {
			r.hostIP = p.HostIP
		}
		out = append(out, r)
	}
	return out
}

// listeners are the sockets that the proxy opens for a port: where it listens and where that leads.
func (p Port) listeners(a *Attachment, ipv6 bool) map[netip.AddrPort]netip.AddrPort {
	out := make(map[netip.AddrPort]netip.AddrPort)
	if p.Protocol == "sctp" {
		return out
	}
	for _, v4 := range []bool{true, false} {
		if !p.serves(v4) || !v4 && !ipv6 {
			continue
		}
		addr := p.HostIP
		if p.wildcard(v4) {
			addr = netip.IPv6Unspecified()
			if v4 {
				addr = netip.IPv4Unspecified()
			}
		}
		to, _ := target(a, v4)
		out[netip.AddrPortFrom(addr, p.HostPort)] = netip.AddrPortFrom(to, p.ContainerPort)
	}
	return out
}

// ports knows which pod has which port of the host, and holds the listeners. Safe for concurrent use.
type ports struct {
	proxy bool
	ipv6  bool
	log   *slog.Logger
	nat   *nat

	mu     sync.Mutex
	owners map[string]*published
}

type published struct {
	a       *Attachment
	proxies map[netip.AddrPort]map[string]*portproxy.Proxy // listen address -> protocol
	missing bool                                           // a listener could not be opened
	closing bool                                           // no listener may be added
	logged  string                                         // why it could not, as said last
}

func newPorts(proxy bool, log *slog.Logger, n *nat) *ports {
	return &ports{proxy: proxy, ipv6: hostHasIPv6(), log: log, nat: n, owners: make(map[string]*published)}
}

// reserve takes the ports for the pod, or none of them.
func (s *ports) reserve(id string, a *Attachment) error {
	for i, p := range a.Ports {
		if err := p.check(); err != nil {
			return err
		}
		for _, q := range a.Ports[:i] {
			if p.conflicts(q) {
				return fmt.Errorf("host port %s is asked for twice by pod %s: %w", p, id, errdefs.ErrInvalidArgument)
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for other, o := range s.owners {
		for _, q := range o.a.Ports {
			for _, p := range a.Ports {
				if other != id && p.conflicts(q) {
					return fmt.Errorf("host port %s is taken by pod %s: choose another port or remove that pod: %w", p, other, errdefs.ErrFailedPrecondition)
				}
			}
		}
	}
	if len(a.Ports) > 0 {
		s.owners[id] = &published{a: a}
	}
	return nil
}

// recover takes ports over from a record and leaves the listeners to reopen. The table is written later, with them.
func (s *ports) recover(id string, a *Attachment) error {
	if err := s.reserve(id, a); err != nil {
		return err
	}
	s.mu.Lock()
	if o := s.owners[id]; o != nil {
		o.missing = true
	}
	s.mu.Unlock()
	s.nat.mu.Lock()
	defer s.nat.mu.Unlock()
	for _, p := range a.Ports {
		for _, r := range p.rules(a) {
			s.nat.ports[r] = struct{}{}
		}
	}
	return nil
}

// open listens first, because that is what finds another holder, and then sends packets to the pod.
func (s *ports) open(id string, a *Attachment) error {
	if len(a.Ports) == 0 {
		return nil
	}
	if err := s.listen(id, a); err != nil {
		return err
	}
	var rules []portRule
	for _, p := range a.Ports {
		rules = append(rules, p.rules(a)...)
	}
	if err := s.nat.add(rules); err != nil {
		return err
	}
	s.forgetFlows(a)
	return nil
}

func (s *ports) listen(id string, a *Attachment) error {
	if !s.proxy {
		return nil
	}
	s.mu.Lock()
	o := s.owners[id]
	s.mu.Unlock()
	if o == nil {
		return fmt.Errorf("host ports of pod %s are not reserved: %w", id, errdefs.ErrNotFound)
	}
	var errs []error
	for _, p := range a.Ports {
		for at, to := range p.listeners(a, s.ipv6) {
			if s.has(o, at, p.Protocol) {
				continue
			}
			proxy, err := portproxy.Listen(p.Protocol, at, to, s.log)
			if errors.Is(err, unix.EADDRINUSE) {
				if holder := portproxy.Holder(p.Protocol, p.HostPort); holder != "" {
					err = fmt.Errorf("host port %s is taken by %s: %w", p, holder, errdefs.ErrFailedPrecondition)
				}
			}
			if err != nil {
				errs = append(errs, err)
				continue
			}
			if !s.keep(id, o, at, p.Protocol, proxy) {
				proxy.Close()
			}
		}
	}
	return errors.Join(errs...)
}

func (s *ports) has(o *published, at netip.AddrPort, protocol string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return o.proxies[at][protocol] != nil
}

// keep is false when the pod was detached meanwhile.
func (s *ports) keep(id string, o *published, at netip.AddrPort, protocol string, proxy *portproxy.Proxy) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.owners[id] != o || o.closing || o.proxies[at][protocol] != nil {
		return false
	}
	if o.proxies == nil {
		o.proxies = make(map[netip.AddrPort]map[string]*portproxy.Proxy)
	}
	if o.proxies[at] == nil {
		o.proxies[at] = make(map[string]*portproxy.Proxy)
	}
	o.proxies[at][protocol] = proxy
	return true
}

// reopen tries the listeners that are missing after a restart.
func (s *ports) reopen(ctx context.Context) {
	s.mu.Lock()
	missing := make(map[string]*published)
	for id, o := range s.owners {
		if o.missing {
			missing[id] = o
		}
	}
	s.mu.Unlock()
	for id, o := range missing {
		if ctx.Err() != nil {
			return
		}
		if err := s.listen(id, o.a); err != nil {
			s.mu.Lock()
			again := o.logged == err.Error()
			o.logged = err.Error()
			s.mu.Unlock()
			if !again {
				s.log.Warn("host ports of a pod cannot be reached from loopback addresses; tried again behind", "pod", id, "err", err)
			}
			continue
		}
		s.mu.Lock()
		o.missing = false
		s.mu.Unlock()
	}
}

// close gives the ports of a pod back, once nothing listens on them. Repeating it is no error.
func (s *ports) close(id string, a *Attachment) error {
	if len(a.Ports) == 0 {
		return nil
	}
	s.mu.Lock()
	o := s.owners[id]
	if o == nil || o.closing || o.a.Interface != a.Interface { // the last: the pod has been attached anew
		s.mu.Unlock()
		return nil
	}
	o.closing = true
	s.mu.Unlock()
	var rules []portRule
	for _, p := range a.Ports {
		rules = append(rules, p.rules(a)...)
	}
	err := s.nat.remove(rules)
	o.closeProxies()
	s.mu.Lock()
	delete(s.owners, id)
	s.mu.Unlock()
	return err
}

func (s *ports) closeAll() {
	s.mu.Lock()
	owners := s.owners
	s.owners = make(map[string]*published)
	for _, o := range owners {
		o.closing = true
	}
	s.mu.Unlock()
	for _, o := range owners {
		o.closeProxies()
	}
}

// closeProxies is for one that is closing, so that proxies does not change any more.
func (o *published) closeProxies() {
	for _, byProtocol := range o.proxies {
		for _, p := range byProtocol {
			p.Close()
		}
	}
}

// forgetFlows drops conntrack's memory of UDP flows to a host port: a client that keeps sending would otherwise go on
// to reach whoever had the port before.
func (s *ports) forgetFlows(a *Attachment) {
	for _, p := range a.Ports {
		if p.Protocol != "udp" {
			continue
		}
		for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
			filter := &netlink.ConntrackFilter{}
			err := errors.Join(filter.AddProtocol(unix.IPPROTO_UDP), filter.AddPort(netlink.ConntrackOrigDstPort, p.HostPort))
			if err == nil {
				_, err = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, filter)
			}
			if err != nil {
				s.log.Debug("forget flows to a host port", "port", p.String(), "err", err)
			}
		}
	}
}
