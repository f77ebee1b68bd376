package builtin

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/nftables"
)

func show(elements []nftables.SetElement) string {
	var out []string
	for _, e := range elements {
		a, _ := netip.AddrFromSlice(e.Key)
		if e.IntervalEnd {
			out = append(out, "<"+a.String())
		} else {
			out = append(out, a.String())
		}
	}
	return strings.Join(out, " ")
}

func TestIntervals(t *testing.T) {
	for _, c := range []struct {
		in   []string
		v4   bool
		want string
	}{
		{[]string{"10.0.0.0/8", "fd00::/64"}, true, "10.0.0.0 <11.0.0.0"},
		{[]string{"10.0.0.0/8", "fd00::/64"}, false, "fd00:: <fd00:0:0:1::"},
		{[]string{"10.1.0.0/16", "10.0.0.0/8", "10.0.0.0/9"}, true, "10.0.0.0 <11.0.0.0"},                      // inside another
		{[]string{"10.1.0.0/16", "10.0.0.0/16", "10.2.0.7/32"}, true, "10.0.0.0 <10.2.0.0 10.2.0.7 <10.2.0.8"}, // adjacent
		{[]string{"240.0.0.0/4"}, true, "240.0.0.0"},                                                           // to the end
		{[]string{"0.0.0.0/0"}, true, "0.0.0.0"},
		{nil, true, ""},
	} {
		if got := show(intervals(prefixes(c.in...), c.v4)); got != c.want {
			t.Errorf("%v: %s, want %s", c.in, got, c.want)
		}
	}
}

func TestConcat(t *testing.T) {
	got := concat([]byte{10, 0, 0, 1}, []byte{6}, []byte{0x1f, 0x90})
	if want := []byte{10, 0, 0, 1, 6, 0, 0, 0, 0x1f, 0x90, 0, 0}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func on(ip string, port uint16) Port {
	p := Port{Protocol: "tcp", HostPort: port, ContainerPort: 80}
	if ip != "" {
		p.HostIP = netip.MustParseAddr(ip)
	}
	return p
}

func TestPortConflicts(t *testing.T) {
	udp := on("", 80)
	udp.Protocol = "udp"
	for _, c := range []struct {
		a, b Port
		want bool
	}{
		{on("", 80), on("", 80), true},
		{on("", 80), on("", 81), false},
		{on("", 80), udp, false},
		{on("", 80), on("10.0.0.1", 80), true},
		{on("10.0.0.1", 80), on("10.0.0.1", 80), true},
		{on("10.0.0.1", 80), on("10.0.0.2", 80), false},
		{on("0.0.0.0", 80), on("10.0.0.2", 80), true},
		{on("0.0.0.0", 80), on("fd00::1", 80), false},
		{on("0.0.0.0", 80), on("::", 80), false},
		{on("::", 80), on("fd00::1", 80), true},
		{on("", 80), on("::", 80), true},
	} {
		if c.a.conflicts(c.b) != c.want || c.b.conflicts(c.a) != c.want {
			t.Errorf("%v and %v: %v and %v, want %v", c.a, c.b, c.a.conflicts(c.b), c.b.conflicts(c.a), c.want)
		}
	}
}

func TestPortRulesAndListeners(t *testing.T) {
	dual := &Attachment{Addresses: prefixes("10.0.0.2/24", "fd00::2/64")}
	v4 := &Attachment{Addresses: prefixes("10.0.0.2/24")}
	sctp := on("", 80)
	sctp.Protocol = "sctp"
	for _, c := range []struct {
		port             Port
		a                *Attachment
		rules, listeners string
	}{
		{on("", 8080), dual, "6 any:8080->10.0.0.2:80, 6 any:8080->[fd00::2]:80", "0.0.0.0:8080->10.0.0.2:80, [::]:8080->[fd00::2]:80"},
		{on("", 8080), v4, "6 any:8080->10.0.0.2:80", "0.0.0.0:8080->10.0.0.2:80, [::]:8080->10.0.0.2:80"},
		{on("0.0.0.0", 8080), dual, "6 any:8080->10.0.0.2:80", "0.0.0.0:8080->10.0.0.2:80"},
		{on("::", 8080), dual, "6 any:8080->[fd00::2]:80", "[::]:8080->[fd00::2]:80"},
		{on("192.0.2.1", 8080), dual, "6 192.0.2.1:8080->10.0.0.2:80", "192.0.2.1:8080->10.0.0.2:80"},
		{on("127.0.0.1", 8080), dual, "", "127.0.0.1:8080->10.0.0.2:80"},
		{on("::1", 8080), v4, "", "[::1]:8080->10.0.0.2:80"},
		{sctp, v4, "132 any:80->10.0.0.2:80", ""},
	} {
		var rules, listeners []string
		for _, r := range c.port.rules(c.a) {
			ip := "any"
			if r.hostIP.IsValid() {
				ip = r.hostIP.String()
			}
			rules = append(rules, fmt.Sprintf("%d %s:%d->%s", r.protocol, ip, r.hostPort, r.target))
		}
		for at, to := range c.port.listeners(c.a, true) {
			listeners = append(listeners, at.String()+"->"+to.String())
		}
		slices.Sort(listeners)
		if got := strings.Join(rules, ", "); got != c.rules {
			t.Errorf("%v: rules %s, want %s", c.port, got, c.rules)
		}
		if got := strings.Join(listeners, ", "); got != c.listeners {
			t.Errorf("%v: listeners %s, want %s", c.port, got, c.listeners)
		}
	}
}

func TestBridgeNames(t *testing.T) {
	for _, c := range []struct {
		first string
		index int
		want  string
	}{{"cri0", 0, "cri0"}, {"cri0", 12, "cri12"}, {"br", 0, "br"}, {"br", 3, "br3"}, {"x7", 2, "x9"}} {
		if got := bridgeName(c.first, c.index); got != c.want || !isBridgeName(c.first, got) {
			t.Errorf("%s + %d: %s, want %s", c.first, c.index, got, c.want)
		}
	}
	for _, bad := range []string{"", "a/b", "averyverylongname", "thirteenbytes", "a b", "..", "a%d"} {
		if err := checkBridgeName(bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if isBridgeName("cri0", "cri999") || isBridgeName("cri0", "crix") {
		t.Error("a bridge of somebody else is taken for ours")
	}
}

func TestTokenBucket(t *testing.T) {
	q := tokenBucket(3, 8_000_000, 1500)
	if q.Rate != 1_000_000 || q.Limit < 100_000 || q.Buffer == 0 {
		t.Errorf("%+v", q)
	}
	if err := (Rates{Ingress: 1}).check(); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
}
