package builtin

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/containerd/errdefs"
)

func prefixes(text ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range text {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestPools(t *testing.T) {
	for _, c := range []struct {
		cidrs              []string
		bridges, capacity  int
		gateways, last, at string // of the last bridge; the pod at place 5 of it
	}{
		{[]string{"10.88.0.0/16", "fd00::/64"}, 256, 253, "[10.88.255.1/24 fd00::ff:1/112]", "[10.88.255.254/24 fd00::ff:fe/112]", "[10.88.255.5/24 fd00::ff:5/112]"},
		{[]string{"10.88.3.0/24"}, 1, 253, "[10.88.3.1/24]", "[10.88.3.254/24]", "[10.88.3.5/24]"},
		{[]string{"10.88.3.64/26", "fd00::/120"}, 1, 61, "[10.88.3.65/26 fd00::1/120]", "[10.88.3.126/26 fd00::3e/120]", "[10.88.3.69/26 fd00::5/120]"},
		{[]string{"10.88.2.0/23", "fd00::100/119"}, 2, 253, "[10.88.3.1/24 fd00::101/120]", "[10.88.3.254/24 fd00::1fe/120]", "[10.88.3.5/24 fd00::105/120]"},
		{[]string{"fd00::/48"}, 256, 254, "[fd00::ff:1/112]", "[fd00::ff:ff/112]", "[fd00::ff:5/112]"},
		{[]string{"10.0.0.0/8"}, 256, 253, "[10.0.255.1/24]", "[10.0.255.254/24]", "[10.0.255.5/24]"},
		{[]string{"10.99.0.0/29"}, 1, 5, "[10.99.0.1/29]", "[10.99.0.6/29]", "[10.99.0.5/29]"},
	} {
		p, err := newPools(prefixes(c.cidrs...))
		if err != nil {
			t.Errorf("%v: %v", c.cidrs, err)
			continue
		}
		b := p.bridges - 1
		got := fmt.Sprint(p.bridges, p.capacity(), p.gateways(b), p.at(b, p.lastHost()), p.at(b, 5))
		if want := fmt.Sprint(c.bridges, c.capacity, " ", c.gateways, " ", c.last, " ", c.at); got != want {
			t.Errorf("%v:\ngot  %s\nwant %s", c.cidrs, got, want)
		}
	}
}

func TestPoolsRefused(t *testing.T) {
	for _, cidrs := range [][]string{{}, {"10.0.0.0/31"}, {"fd00::/127"}, {"10.0.0.0/16", "10.1.0.0/16"}, {"224.0.0.0/8"}, {"0.0.0.0/0"}, {"ff02::/64"}, {"::ffff:10.0.0.0/112"}} {
		if p, err := newPools(prefixes(cidrs...)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: %+v, %v", cidrs, p, err)
		}
	}
}

// Each place has addresses of its own in each pool, and is found again by each of them.
func FuzzPools(f *testing.F) {
	f.Add("10.88.0.0/16", "fd00::/64", 3, 77)
	f.Add("10.88.3.64/26", "fd00::/120", 0, 2)
	f.Add("10.0.0.0/8", "fd00::/8", 255, 254)
	f.Add("192.168.0.0/30", "fd00:ffff:ffff:ffff:ffff:ffff:ffff:ff00/120", 0, 2)
	f.Fuzz(func(t *testing.T, v4, v6 string, bridge, host int) {
		c4, err4 := netip.ParsePrefix(v4)
		c6, err6 := netip.ParsePrefix(v6)
		if err4 != nil || err6 != nil {
			return
		}
		p, err := newPools([]netip.Prefix{c4, c6})
		if err != nil || bridge < 0 || bridge >= p.bridges || host < firstHost || host > p.lastHost() {
			return
		}
		gateways := p.gateways(bridge)
		for i, a := range p.at(bridge, host) {
			if !p.prefixes()[i].Contains(a.Addr()) {
				t.Errorf("%v is outside %v", a, p.prefixes()[i])
			}
			if a.Masked() != gateways[i].Masked() || a.Addr() == gateways[i].Addr() {
				t.Errorf("%v does not reach its gateway %v", a, gateways[i])
			}
			if b, h, ok := p.locate(a.Addr()); !ok || b != bridge || h != host {
				t.Errorf("%v is at %d, %d; located at %d, %d, %v", a, bridge, host, b, h, ok)
			}
		}
	})
}

func TestAllocator(t *testing.T) {
	p, err := newPools(prefixes("10.99.0.0/29", "fd00::/64"))
	if err != nil {
		t.Fatal(err)
	}
	a := newAllocator(p)
	var all [][]netip.Prefix
	for i := range p.capacity() {
		_, gateways, addrs, err := a.take(fmt.Sprint(i))
		if err != nil || len(gateways) != 2 || len(addrs) != 2 {
			t.Fatal(gateways, addrs, err)
		}
		all = append(all, addrs)
	}
	if _, _, _, err := a.take("more"); !errdefs.IsResourceExhausted(err) {
		t.Errorf("a sixth in a /29: %v", err)
	}
	a.release("other", all[1]) // not theirs
	if _, _, _, err := a.take("more"); err == nil {
		t.Error("an address was given back by a stranger")
	}
	a.release("1", all[1])
	a.release("3", all[3])
	a.release("1", all[1]) // twice
	// After the last place it goes round: place 1 was freed first and comes before 3.
	for _, want := range []int{1, 3} {
		if _, _, got, err := a.take("again"); err != nil || got[0] != all[want][0] {
			t.Errorf("got %v, %v; want %v", got, err, all[want])
		}
	}
	if err := a.restore("intruder", all[0]); !errdefs.IsAlreadyExists(err) {
		t.Errorf("an address that two records claim: %v", err)
	}
	if err := a.restore("0", all[0]); err != nil {
		t.Errorf("restored twice: %v", err)
	}
}

func TestAllocatorGoesRound(t *testing.T) {
	p, _ := newPools(prefixes("10.99.0.0/24"))
	a := newAllocator(p)
	last := netip.Addr{}
	for i := range 2 * p.capacity() {
		_, _, addrs, err := a.take("pod")
		if err != nil || addrs[0].Addr() == last {
			t.Fatalf("take %d: %v, %v", i, addrs, err)
		}
		last = addrs[0].Addr()
		a.release("pod", addrs)
	}
}

func TestAllocatorChangesPools(t *testing.T) {
	one, _ := newPools(prefixes("10.1.0.0/30"))
	two, _ := newPools(prefixes("10.2.0.0/30"))
	a := newAllocator(one)
	_, _, old, err := a.take("old")
	if err != nil {
		t.Fatal(err)
	}
	a.use(two)
	if got := fmt.Sprint(a.extra()); got != "[10.1.0.2/32]" {
		t.Errorf("outside the pools: %s", got)
	}
	if _, _, got, err := a.take("new"); err != nil || got[0].String() != "10.2.0.2/30" {
		t.Errorf("%v, %v", got, err)
	}
	a.use(one)
	if _, _, _, err := a.take("more"); !errdefs.IsResourceExhausted(err) {
		t.Errorf("the only address is held: %v", err)
	}
	a.release("old", old)
	if _, _, _, err := a.take("more"); err != nil {
		t.Error(err)
	}
}
