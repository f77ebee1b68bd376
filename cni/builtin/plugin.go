// Package builtin is the network plugin of criserver: bridges, addresses, masquerade and host ports, IPv4 and IPv6. It
// keeps no file of its own: what is attached is in the records of its caller, who hands them back at start.
package builtin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	vishnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/cni/netns"
)

// Config says how pods are attached. No field has a default but where said.
type Config struct {
	CIDRs        []netip.Prefix // the pools, one a family
	NoMasquerade []netip.Prefix
	Bridge       string // the first bridge
	MTU          int    // 0 is that of the default route's interface, or 1500
	// Proxy makes this process listen on host ports: loopback clients are then served, and a port that something else
	// on the host listens on is an error.
	Proxy  bool
	Logger *slog.Logger
}

// Attachment is what a pod has, or will have once Attach has run. The caller records it before Attach and gives it back
// to New after a restart.
type Attachment struct {
	Bridge    string         `json:"bridge"`
	Name      string         `json:"name"`      // the pod's side
	Interface string         `json:"interface"` // the host's side
	Addresses []netip.Prefix `json:"addresses"` // with the length of the on-link prefix; IPv4 first
	Gateways  []netip.Addr   `json:"gateways"`
	MTU       int            `json:"mtu"`
	Ports     []Port         `json:"ports,omitempty"`
	Rates     Rates          `json:"rates,omitzero"`
}

// gatewayPrefixes are the bridge's addresses with the length of the on-link prefix.
func (a *Attachment) gatewayPrefixes() []netip.Prefix {
	out := make([]netip.Prefix, len(a.Gateways))
	for i, g := range a.Gateways {
		out[i] = netip.PrefixFrom(g, a.Addresses[i].Bits())
	}
	return out
}

// IPs are the addresses without lengths.
func (a *Attachment) IPs() []netip.Addr {
	ips := make([]netip.Addr, len(a.Addresses))
	for i, p := range a.Addresses {
		ips[i] = p.Addr()
	}
	return ips
}

// Plugin attaches pods in the network namespace of this process. Safe for concurrent use; calls for one pod must come
// one after the other.
type Plugin struct {
	cfg    Config
	ipv6   bool
	host   *netlink.Handle
	socket *nl.SocketHandle // for requests that host has no method for
	alloc  *allocator
	nat    *nat
	ports  *ports
	leave  *leavers
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	mu      sync.Mutex
	mtu     int
	bridges map[string]*bridge // by name and gateways
	ready   bool               // the nftables table has been written
	problem error
	probed  time.Time
}

// New changes nothing on the host. Recover follows for each attachment that the caller has a record of, then, in a
// process that stays, Start. Close it.
func New(cfg Config) (*Plugin, error) {
	p := &Plugin{cfg: cfg, ipv6: hostHasIPv6(), bridges: make(map[string]*bridge), cancel: func() {}}
	if err := checkBridgeName(cfg.Bridge); err != nil {
		return nil, err
	}
	pools, err := newPools(p.usable(cfg.CIDRs))
	if err != nil {
		return nil, err
	}
	p.alloc = newAllocator(pools)
	p.nat = newNAT(tableName(cfg.Bridge))
	p.ports = newPorts(cfg.Proxy, cfg.Logger, p.nat)
	if p.host, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	socket, err := nl.GetNetlinkSocketAt(vishnetns.None(), vishnetns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		p.host.Close()
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	p.socket = &nl.SocketHandle{Socket: socket}
	p.mtu = cfg.MTU
	if p.mtu == 0 {
		p.mtu = p.defaultMTU()
	}
	p.leave = newLeavers(p.host, cfg.Logger, p.alloc)
	return p, nil
}

func tableName(bridge string) string {
	if bridge == "cri0" {
		return "criserver"
	}
	return "criserver-" + bridge
}

func hostHasIPv6() bool {
	data, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/disable_ipv6")
	return err == nil && strings.TrimSpace(string(data)) == "0"
}

// usable leaves out what the host cannot do.
func (p *Plugin) usable(cidrs []netip.Prefix) []netip.Prefix {
	if p.ipv6 {
		return cidrs
	}
	v4 := slices.DeleteFunc(slices.Clone(cidrs), func(c netip.Prefix) bool { return !c.Addr().Is4() })
	if len(v4) != len(cidrs) {
		p.cfg.Logger.Warn("IPv6 is disabled on this host (net.ipv6.conf.all.disable_ipv6); pods get no IPv6 address")
	}
	return v4
}

// defaultMTU is that of the interface of the default route.
func (p *Plugin) defaultMTU() int {
	routes, err := dump(func() ([]netlink.Route, error) {
		return p.host.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_DST)
	})
	if err == nil {
		for _, r := range routes {
			if link, err := p.host.LinkByIndex(r.LinkIndex); err == nil && link.Attrs().MTU > 0 && link.Attrs().Name != "lo" {
				return link.Attrs().MTU
			}
		}
	}
	return 1500
}

// Recover takes over an attachment of another process, from its record. Its ports are served again once Start is
// called. With leaving set it is one that Detach has been called for; gone is then called as Detach says.
func (p *Plugin) Recover(id string, a *Attachment, leaving bool, gone func()) error {
	if err := p.alloc.restore(a.Interface, a.Addresses); err != nil {
		return err
	}
	if leaving {
		p.leave.add(a.Interface, a.Addresses, gone)
		return nil
	}
	return p.ports.recover(id, a)
}

// Start watches interfaces go and keeps the host's rules and listeners as they should be, until Close. What cannot be done
// yet is logged and tried again behind.
func (p *Plugin) Start(ctx context.Context) error {
	ctx, p.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if err := p.leave.start(ctx, &p.tasks); err != nil {
		p.cancel()
		return err
	}
	p.leave.resync() // what went before the watch began
	if len(p.alloc.all()) > 0 {
		p.check(ctx)
	}
	p.tasks.Go(func() { p.maintain(ctx) })
	return nil
}

// Exists says whether the host's side of an attachment is there.
func (p *Plugin) Exists(a *Attachment) bool {
	_, err := p.host.LinkByName(a.Interface)
	return err == nil
}

// Reserve chooses addresses and takes the ports, in memory only. Detach gives them back. A port that another pod has is
// errdefs.ErrFailedPrecondition, no free address errdefs.ErrResourceExhausted.
//
// name is what the pod's interface will be called.
func (p *Plugin) Reserve(id, name string, want []Port, rates Rates) (*Attachment, error) {
	a := &Attachment{Name: name, Interface: newInterfaceName(), Ports: want, Rates: rates}
	if err := rates.check(); err != nil {
		return nil, err
	}
	bridge, gateways, addrs, err := p.alloc.take(a.Interface)
	if err != nil {
		return nil, err
	}
	a.Bridge, a.Gateways, a.Addresses = bridgeName(p.cfg.Bridge, bridge), gateways, addrs
	if err := p.ports.reserve(id, a); err != nil {
		p.alloc.release(a.Interface, a.Addresses)
		return nil, err
	}
	p.mu.Lock()
	a.MTU = p.mtu
	p.mu.Unlock()
	return a, nil
}

// Attach makes what Reserve chose. After an error Detach cleans up.
func (p *Plugin) Attach(ctx context.Context, id string, a *Attachment, ns *netns.NS) error {
	master, err := p.ensure(ctx, a.Bridge, a.gatewayPrefixes())
	if err != nil {
		return fmt.Errorf("attach pod %s: %w", id, err)
	}
	if err := p.connect(a, master, ns); err != nil {
		return fmt.Errorf("attach pod %s: %w", id, err)
	}
	return p.ports.open(id, a)
}

// Detach takes ports away at once and gives the addresses back when the host's side of the pair of interfaces is seen
// gone, which happens some time after the last reference to the namespace went; gone, if not nil, is then called, from
// another goroutine or this one. The caller has dropped its own references. It goes on past errors and returns them.
func (p *Plugin) Detach(id string, a *Attachment, gone func()) error {
	err := p.ports.close(id, a)
	p.leave.add(a.Interface, a.Addresses, gone)
	return err
}

// Remove is Detach for a process that does not stay: the interfaces are removed now, not when the namespace goes.
func (p *Plugin) Remove(id string, a *Attachment) error {
	errs := []error{p.ports.close(id, a)}
	link, err := p.host.LinkByName(a.Interface)
	if err == nil {
		err = p.host.LinkDel(link)
	}
	if err != nil && !errors.As(err, &netlink.LinkNotFoundError{}) {
		errs = append(errs, fmt.Errorf("remove interface %s: %w", a.Interface, err))
	}
	if errors.Join(errs...) == nil {
		p.alloc.release(a.Interface, a.Addresses)
	}
	return errors.Join(errs...)
}

// SetCIDRs changes where the addresses of pods come from. Attached pods keep theirs.
func (p *Plugin) SetCIDRs(cidrs []netip.Prefix) error {
	pools, err := newPools(p.usable(cidrs))
	if err != nil {
		return err
	}
	if pools == p.alloc.current() {
		return nil
	}
	p.alloc.use(pools)
	p.mu.Lock()
	ready := p.ready
	p.mu.Unlock()
	if ready {
		return p.writeNAT()
	}
	return nil
}

// Ready is nil when pods can be attached as far as is known. Until the first has been, the host is probed, at most once in
// probeEvery.
func (p *Plugin) Ready() error {
	p.mu.Lock()
	if p.ready || time.Since(p.probed) < probeEvery {
		defer p.mu.Unlock()
		return p.problem
	}
	p.probed = time.Now()
	p.mu.Unlock()
	err := p.Probe()
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ready {
		p.problem = err
	}
	return p.problem
}

const probeEvery = 10 * time.Second

// Close stops what runs in this process. Attached pods keep their interfaces, addresses and port rules. With
// removeHost set, which is for when nothing is attached, the bridges and the table go too.
func (p *Plugin) Close(removeHost bool) error {
	p.cancel()
	p.leave.close() // ends the subscription
	p.ports.closeAll()
	p.tasks.Wait()
	defer p.host.Close()
	defer p.socket.Close()
	if !removeHost {
		return nil
	}
	var errs []error
	for _, link := range p.ownBridges() {
		if err := p.host.LinkDel(link); err != nil {
			errs = append(errs, fmt.Errorf("remove bridge %s: %w", link.Attrs().Name, err))
		}
	}
	if err := p.nat.drop(); err != nil && !errdefs.IsNotImplemented(err) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

const checkEvery = 15 * time.Second

// maintain repairs what others took away, such as rules by a reload of the host's firewall.
func (p *Plugin) maintain(ctx context.Context) {
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			p.leave.resync()
			p.mu.Lock()
			ready := p.ready
			p.mu.Unlock()
			if ready {
				p.check(ctx)
			}
		}
	}
}

// check rewrites the table when it is missing and opens listeners that could not be opened.
func (p *Plugin) check(ctx context.Context) {
	p.mu.Lock()
	ready := p.ready
	p.mu.Unlock()
	if !ready || !p.nat.present() {
		err := p.writeNAT()
		if err != nil {
			p.cfg.Logger.Error("the rules for pods could not be written", "err", err)
		} else if ready {
			p.cfg.Logger.Warn("the table of rules for pods was gone and has been written again", "table", p.nat.table.Name)
		}
	}
	p.ports.reopen(ctx)
}

func (p *Plugin) writeNAT() error {
	pods := append(p.alloc.current().prefixes(), p.alloc.extra()...)
	err := p.nat.rebuild(pods, p.cfg.NoMasquerade)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.problem = err
	p.ready = err == nil
	return err
}

// Probe says whether pods could be attached: the kernel can do what the rules need, and no other interface has addresses
// of the pools.
func (p *Plugin) Probe() error {
	if err := p.checkOverlap(); err != nil {
		return err
	}
	return p.nat.probe()
}
