package builtin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ownAlias marks the bridges that we made and may remove.
const ownAlias = "criserver"

// bridge is one that has been made ready. Those who find it being made wait for done.
type bridge struct {
	index int // of the interface; valid once done is closed and err is nil
	err   error
	done  chan struct{}
}

const maxInterfaceName = unix.IFNAMSIZ - 1

func checkBridgeName(name string) error {
	last := bridgeName(name, maxBridges-1)
	if name == "" || len(last) > maxInterfaceName || strings.ContainsAny(name, "/ :%\t\n") || strings.HasPrefix(name, ".") {
		return fmt.Errorf("bridge name %q: want a name of an interface that, counted on to %q, has at most %d bytes: %w",
			name, last, maxInterfaceName, errdefs.ErrInvalidArgument)
	}
	return nil
}

// bridgeName counts on from the number that the first name ends with: cri0, cri1, ...
func bridgeName(first string, index int) string {
	stem := strings.TrimRight(first, "0123456789")
	start, err := strconv.Atoi(first[len(stem):])
	if err != nil {
		start = 0
		if index == 0 {
			return first
		}
	}
	return stem + strconv.Itoa(start+index)
}

// isBridgeName says whether the name is one that bridgeName gives.
func isBridgeName(first, name string) bool {
	for i := range maxBridges {
		if bridgeName(first, i) == name {
			return true
		}
	}
	return false
}

// ensure makes the bridge, and what all bridges need, exactly once however many ask, and returns its index.
func (p *Plugin) ensure(ctx context.Context, name string, gateways []netip.Prefix) (int, error) {
	key := fmt.Sprint(name, gateways)
	p.mu.Lock()
	b := p.bridges[key]
	mine := b == nil
	if mine {
		b = &bridge{done: make(chan struct{})}
		p.bridges[key] = b
	}
	p.mu.Unlock()
	if !mine {
		select {
		case <-b.done:
			return b.index, b.err
		case <-ctx.Done():
			return 0, fmt.Errorf("wait for bridge %s: %w", name, ctx.Err())
		}
	}
	b.index, b.err = p.makeBridge(name, gateways)
	if b.err == nil {
		b.err = p.prepareForwarding()
	}
	if b.err != nil {
		p.forgetBridges() // the next one tries again
	}
	close(b.done)
	return b.index, b.err
}

func (p *Plugin) prepareForwarding() error {
	if err := enableForwarding(p.ipv6); err != nil {
		return err
	}
	p.mu.Lock()
	ready := p.ready
	p.mu.Unlock()
	if ready {
		return nil
	}
	return p.writeNAT()
}

// forgetBridges makes the next Attach look at bridges again.
func (p *Plugin) forgetBridges() {
	p.mu.Lock()
	clear(p.bridges)
	p.mu.Unlock()
}

func (p *Plugin) makeBridge(name string, gateways []netip.Prefix) (int, error) {
	if err := p.checkOverlap(); err != nil {
		return 0, err
	}
	link, err := p.host.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		link, err = p.addBridge(name, gateways[0].Addr())
	}
	if err != nil {
		return 0, fmt.Errorf("bridge %s: %w", name, err)
	}
	if link.Type() != "bridge" {
		return 0, fmt.Errorf("interface %s is of type %s, not a bridge: remove it or choose another bridge name: %w", name, link.Type(), errdefs.ErrFailedPrecondition)
	}
	// Before addresses: a bridge must not learn routes from what a pod advertises.
	if p.ipv6 {
		for _, s := range []string{"accept_ra", "accept_dad"} {
			if err := writeSysctl("net/ipv6/conf/"+name+"/"+s, "0"); err != nil && !errors.Is(err, os.ErrNotExist) {
				return 0, err
			}
		}
	}
	for _, g := range gateways {
		if err := p.host.AddrReplace(link, address(g)); err != nil {
			return 0, fmt.Errorf("bridge %s: add address %s: %w", name, g, err)
		}
	}
	if err := p.host.LinkSetUp(link); err != nil {
		return 0, fmt.Errorf("bridge %s: set it up: %w", name, err)
	}
	return link.Attrs().Index, nil
}

func (p *Plugin) addBridge(name string, gateway netip.Addr) (netlink.Link, error) {
	p.mu.Lock()
	mtu := p.mtu
	p.mu.Unlock()
	// With an address of its own the bridge does not change it as ports come and go.
	attrs := netlink.LinkAttrs{Name: name, MTU: mtu, TxQLen: -1, HardwareAddr: hardwareAddr(gateway), Alias: ownAlias}
	if err := p.host.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("add: %w", err)
	}
	link, err := p.host.LinkByName(name)
	if err != nil {
		return nil, err
	}
	// IFLA_IFALIAS at creation is ignored by the kernel.
	return link, p.host.LinkSetAlias(link, ownAlias)
}

// checkOverlap finds another interface that has an address in the pools: both could not be reached.
func (p *Plugin) checkOverlap() error {
	addrs, err := dump(func() ([]netlink.Addr, error) { return p.host.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	names := make(map[int]string)
	for _, pool := range p.alloc.current().prefixes() {
		for _, a := range addrs {
			ip, ok := netip.AddrFromSlice(a.IP)
			if !ok || !pool.Contains(ip.Unmap()) {
				continue
			}
			if names[a.LinkIndex] == "" {
				if link, err := p.host.LinkByIndex(a.LinkIndex); err == nil {
					names[a.LinkIndex] = link.Attrs().Name
				}
			}
			if !isBridgeName(p.cfg.Bridge, names[a.LinkIndex]) {
				return fmt.Errorf("pod network %s holds address %s of interface %s: give pods another network: %w",
					pool, ip.Unmap(), names[a.LinkIndex], errdefs.ErrFailedPrecondition)
			}
		}
	}
	return nil
}

// ownBridges lists the bridges that carry our mark and have a name of ours.
func (p *Plugin) ownBridges() []netlink.Link {
	links, err := dump(p.host.LinkList)
	if err != nil {
		return nil
	}
	var out []netlink.Link
	for _, l := range links {
		if l.Type() == "bridge" && l.Attrs().Alias == ownAlias && isBridgeName(p.cfg.Bridge, l.Attrs().Name) {
			out = append(out, l)
		}
	}
	return out
}

// RemoveStrays removes interfaces on our bridges that look like ours and that nobody knows: known is asked, after they
// were listed, for each by its name.
func (p *Plugin) RemoveStrays(known func(name string) bool) {
	links, err := dump(p.host.LinkList)
	if err != nil {
		p.cfg.Logger.Warn("list interfaces", "err", err)
		return
	}
	bridges := make(map[int]bool)
	for _, l := range links {
		bridges[l.Attrs().Index] = l.Type() == "bridge" && isBridgeName(p.cfg.Bridge, l.Attrs().Name)
	}
	for _, l := range links {
		name := l.Attrs().Name
		ours := strings.HasPrefix(name, interfacePrefix) && l.Type() == "veth" && bridges[l.Attrs().MasterIndex]
		if !ours || p.leave.knows(name) || known(name) {
			continue
		}
		p.cfg.Logger.Warn("remove an interface that no pod has", "interface", name)
		if err := p.host.LinkDel(l); err != nil && !errors.As(err, &netlink.LinkNotFoundError{}) {
			p.cfg.Logger.Warn("remove an interface", "interface", name, "err", err)
		}
	}
}

// dump repeats a listing that changes of what is listed made incomplete. On a busy host the last one has to do.
func dump[T any](list func() ([]T, error)) (out []T, err error) {
	for range 20 {
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, err
		}
	}
	return out, nil
}

// hardwareAddr is made from the address, so that a neighbour's cache entry is right for whoever has the address next.
func hardwareAddr(a netip.Addr) net.HardwareAddr {
	b := a.As16()
	return net.HardwareAddr{0x0a, 0x58, b[12], b[13], b[14], b[15]}
}

func address(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

// enableForwarding lets the host route for pods. Turning IPv6 forwarding on makes the kernel ignore router
// advertisements on interfaces with accept_ra=1 (Documentation/networking/ip-sysctl.rst), so those get 2 first: a host
// that is configured by advertisements keeps its route.
func enableForwarding(ipv6 bool) error {
	if err := setSysctl("net/ipv4/ip_forward", "1"); err != nil {
		return err
	}
	if !ipv6 {
		return nil
	}
	const forwarding = "net/ipv6/conf/all/forwarding"
	if readSysctl(forwarding) == "1" {
		return nil
	}
	files, _ := filepath.Glob("/proc/sys/net/ipv6/conf/*/accept_ra")
	for _, f := range files {
		name := filepath.Base(filepath.Dir(f))
		if key := strings.TrimPrefix(f, "/proc/sys/"); name != "all" && name != "lo" && readSysctl(key) == "1" {
			_ = writeSysctl(key, "2") // an interface may go meanwhile
		}
	}
	return setSysctl(forwarding, "1")
}

func readSysctl(key string) string {
	data, _ := os.ReadFile("/proc/sys/" + key)
	return strings.TrimSpace(string(data))
}

func writeSysctl(key, value string) error {
	if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0); err != nil {
		return fmt.Errorf("set %s to %s: %w", strings.ReplaceAll(key, "/", "."), value, err)
	}
	return nil
}

// setSysctl writes only what differs, so that a read-only /proc/sys set up by the administrator is no error.
func setSysctl(key, value string) error {
	if readSysctl(key) == value {
		return nil
	}
	return writeSysctl(key, value)
}
