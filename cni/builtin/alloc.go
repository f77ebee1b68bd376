package builtin

import (
	"fmt"
	"maps"
	"net/netip"
	"sync"

	"github.com/containerd/errdefs"
)

// allocator hands out places of the pools. What is held is known from the attachments' records, so it keeps nothing
// on disk. Within a bridge it goes round, so that an address that was given back is the last to be given again; the
// first bridge with room is used. Safe for concurrent use.
type allocator struct {
	mu      sync.Mutex
	pools   pools
	held    map[netip.Addr]string // -> owner
	taken   []int                 // places held, for each bridge
	cursors []int                 // the place given last, for each bridge
}

func newAllocator(p pools) *allocator {
	a := &allocator{held: make(map[netip.Addr]string)}
	a.use(p)
	return a
}

// use changes where addresses come from; what is held stays held, wherever it is.
func (a *allocator) use(p pools) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pools = p
	a.taken, a.cursors = make([]int, p.bridges), make([]int, p.bridges)
	for i := range a.cursors {
		a.cursors[i] = firstHost - 1
	}
	for addr := range a.held {
		a.count(addr, 1)
	}
}

// count keeps taken right; a place counts by its address of the first family.
func (a *allocator) count(addr netip.Addr, by int) {
	if addr.Is4() != a.pools.v4.IsValid() {
		return
	}
	if bridge, _, ok := a.pools.locate(addr); ok {
		a.taken[bridge] += by
	}
}

// current returns the pools in use.
func (a *allocator) current() pools {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.pools
}

// take finds a free place for the owner and says which bridge it is on. errdefs.ErrResourceExhausted when there is none.
func (a *allocator) take(owner string) (bridge int, gateways []netip.Addr, addrs []netip.Prefix, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for bridge := range a.pools.bridges {
		if a.taken[bridge] >= a.pools.capacity() {
			continue
		}
		host := a.cursors[bridge]
		for range a.pools.capacity() {
			if host++; host > a.pools.lastHost() {
				host = firstHost
			}
			addrs := a.pools.at(bridge, host)
			if a.free(addrs) {
				a.cursors[bridge] = host
				a.hold(owner, addrs)
				for _, g := range a.pools.gateways(bridge) {
					gateways = append(gateways, g.Addr())
				}
				return bridge, gateways, addrs, nil
			}
		}
	}
	return 0, nil, nil, fmt.Errorf("no free address in %v: %d are held; remove pods or give the node a wider pod network: %w",
		a.pools.prefixes(), len(a.held), errdefs.ErrResourceExhausted)
}

func (a *allocator) free(addrs []netip.Prefix) bool {
	for _, p := range addrs {
		if _, held := a.held[p.Addr()]; held {
			return false
		}
	}
	return true
}

func (a *allocator) hold(owner string, addrs []netip.Prefix) {
	for _, p := range addrs {
		a.held[p.Addr()] = owner
		a.count(p.Addr(), 1)
	}
}

// restore takes back what a record says is held. An address that two records claim is an error and stays the first's.
func (a *allocator) restore(owner string, addrs []netip.Prefix) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range addrs {
		if other, held := a.held[p.Addr()]; held && other != owner {
			return fmt.Errorf("address %s of pod %s is held by pod %s: %w", p.Addr(), owner, other, errdefs.ErrAlreadyExists)
		}
	}
	for _, p := range addrs {
		if _, held := a.held[p.Addr()]; !held {
			a.held[p.Addr()] = owner
			a.count(p.Addr(), 1)
		}
		// Go on after what was given last, as far as that can be known.
		if bridge, host, ok := a.pools.locate(p.Addr()); ok {
			a.cursors[bridge] = max(a.cursors[bridge], host)
		}
	}
	return nil
}

// release gives the owner's addresses back; those of others are left alone.
func (a *allocator) release(owner string, addrs []netip.Prefix) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range addrs {
		if a.held[p.Addr()] == owner {
			delete(a.held, p.Addr())
			a.count(p.Addr(), -1)
		}
	}
}

// extra returns prefixes that cover held addresses outside the pools, each address by itself.
func (a *allocator) extra() []netip.Prefix {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []netip.Prefix
	for addr := range a.held {
		if !a.pools.v4.Contains(addr) && !a.pools.v6.Contains(addr) {
			out = append(out, netip.PrefixFrom(addr, addr.BitLen()))
		}
	}
	return out
}

// all returns what is held.
func (a *allocator) all() map[netip.Addr]string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.held)
}
