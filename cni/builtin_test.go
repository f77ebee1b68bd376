package cni_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"

	"github.com/criserver/criserver/cni"
	"github.com/criserver/criserver/cni/internal/hosttest"
)

// host is a state directory and a directory of namespaces that several Networks, one after the other, use.
type host struct {
	state, netns string
	cidrs        []netip.Prefix
	bins         []string // of plugins, for what another mode attached
}

// newHost proves, at the end of the test, that a new Network on what the test left removes everything.
func newHost(t testing.TB) *host {
	t.Helper()
	hosttest.Need(t)
	dir := t.TempDir()
	h := &host{state: filepath.Join(dir, "cni"), netns: filepath.Join(dir, "netns")}
	t.Cleanup(func() {
		n := h.open(t)
		h.empty(t, n)
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		h.checkGone(t)
	})
	return h
}

func (h *host) open(t testing.TB) *cni.Network {
	t.Helper()
	n, err := cni.New(context.Background(), cni.Config{StateDir: h.state, NetnsDir: h.netns, PodCIDRs: h.cidrs, BinDirs: h.bins,
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// network is open, closed at the end of the test.
func (h *host) network(t testing.TB) *cni.Network {
	t.Helper()
	n := h.open(t)
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func (h *host) empty(t testing.TB, n *cni.Network) {
	t.Helper()
	if err := n.Reconcile(context.Background(), nil); err != nil {
		t.Error(err)
	}
	eventually(t, "records are removed", func() error {
		left, _ := filepath.Glob(h.state + "/*.json")
		if len(left) > 0 {
			return fmt.Errorf("left: %v", left)
		}
		return nil
	})
}

// checkGone wants no pin, no mount, no interface, no table left.
func (h *host) checkGone(t testing.TB) {
	t.Helper()
	if pins, _ := filepath.Glob(h.netns + "/*"); len(pins) > 0 {
		t.Errorf("pinned namespaces are left: %v", pins)
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	if strings.Contains(string(mounts), h.netns) {
		t.Errorf("mounts are left:\n%s", mounts)
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Error(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, "cri") {
			t.Errorf("interface %s is left", l.Attrs().Name)
		}
	}
}

func eventually(t testing.TB, what string, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Errorf("%s: not within 10 s: %v", what, err)
}

func attach(t testing.TB, n *cni.Network, id string, ports ...cni.PortMapping) cni.Result {
	t.Helper()
	r, err := n.Attach(context.Background(), cni.Request{PodID: id, Namespace: "default", Name: id, UID: "uid-" + id, PortMappings: ports})
	if err != nil {
		t.Fatalf("attach %s: %v", id, err)
	}
	return r
}

func detach(t testing.TB, n *cni.Network, id string) {
	t.Helper()
	if err := n.Detach(context.Background(), id); err != nil {
		t.Fatalf("detach %s: %v", id, err)
	}
}

func port(host, container uint16) cni.PortMapping {
	return cni.PortMapping{Protocol: "tcp", HostPort: host, ContainerPort: container}
}

// expect wants an answer of the server that saw the client as from; "" is any.
func expect(t *testing.T, ns, network, addr, server, from string) {
	t.Helper()
	answer, err := hosttest.Ask(t, ns, network, addr)
	if err != nil {
		t.Errorf("%s %s: %v", network, addr, err)
		return
	}
	gotServer, gotFrom, _ := strings.Cut(answer, " ")
	if gotServer != server || from != "" && gotFrom != from {
		t.Errorf("%s %s: answered by %q, which saw %q; want %q, %q", network, addr, gotServer, gotFrom, server, from)
	}
}

func hostPort(ip fmt.Stringer, port int) string {
	return net.JoinHostPort(ip.String(), fmt.Sprint(port))
}

func TestPodToPod(t *testing.T) {
	n := newHost(t).network(t)
	a, b := attach(t, n, "a"), attach(t, n, "b")
	if len(a.IPs) != 2 || !a.IPs[0].Is4() || !a.IPs[1].Is6() {
		t.Fatalf("want an IPv4 and an IPv6 address, got %v", a.IPs)
	}
	hosttest.Serve(t, b.Netns, "tcp", ":80", "b")
	hosttest.Serve(t, b.Netns, "udp", ":53", "b")
	for i, ip := range b.IPs {
		expect(t, a.Netns, "tcp", hostPort(ip, 80), "b", a.IPs[i].String())
		expect(t, a.Netns, "udp", hostPort(ip, 53), "b", a.IPs[i].String())
		expect(t, "", "tcp", hostPort(ip, 80), "b", "") // from the host
	}
	hosttest.Serve(t, a.Netns, "tcp", "127.0.0.1:81", "lo")
	expect(t, a.Netns, "tcp", "127.0.0.1:81", "lo", "127.0.0.1")
	again := attach(t, n, "a")
	if fmt.Sprint(again) != fmt.Sprint(a) {
		t.Errorf("attached again: %v, before %v", again, a)
	}
	if err := n.Check(context.Background(), "a"); err != nil {
		t.Error(err)
	}
	if err := n.Ready(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestMasquerade(t *testing.T) {
	n := newHost(t).network(t)
	outside := hosttest.Outside(t)
	hosttest.Serve(t, outside, "tcp", ":80", "outside")
	a := attach(t, n, "a")
	expect(t, a.Netns, "tcp", net.JoinHostPort(hosttest.Outside4, "80"), "outside", hosttest.Host4)
	expect(t, a.Netns, "tcp", net.JoinHostPort(hosttest.Outside6, "80"), "outside", hosttest.Host6)
}

func TestHostPorts(t *testing.T) {
	n := newHost(t).network(t)
	outside := hosttest.Outside(t)
	udp := cni.PortMapping{Protocol: "UDP", HostPort: 5353, ContainerPort: 53}
	a := attach(t, n, "a", port(8080, 80), udp)
	b := attach(t, n, "b")
	hosttest.Serve(t, a.Netns, "tcp", ":80", "a")
	hosttest.Serve(t, a.Netns, "udp", ":53", "a")
	for i, self := range []string{hosttest.Host4, hosttest.Host6} {
		client := []string{hosttest.Outside4, hosttest.Outside6}[i]
		loopback := []string{"127.0.0.1", "::1"}[i]
		tcp, udp := net.JoinHostPort(self, "8080"), net.JoinHostPort(self, "5353")
		expect(t, outside, "tcp", tcp, "a", client)
		expect(t, outside, "udp", udp, "a", client)
		expect(t, "", "tcp", net.JoinHostPort(loopback, "8080"), "a", "")
		expect(t, "", "udp", net.JoinHostPort(loopback, "5353"), "a", "")
		expect(t, "", "tcp", tcp, "a", "")
		expect(t, b.Netns, "tcp", tcp, "a", "")
		expect(t, b.Netns, "udp", udp, "a", "")
		expect(t, a.Netns, "tcp", tcp, "a", "") // a pod to its own port
		expect(t, a.Netns, "udp", udp, "a", "")
	}
	expect(t, "", "tcp", "127.0.0.2:8080", "a", "")
	expect(t, "", "udp", "127.0.0.2:5353", "a", "")
	if data, _ := os.ReadFile("/proc/sys/net/ipv4/conf/all/route_localnet"); strings.TrimSpace(string(data)) != "0" {
		t.Errorf("route_localnet is %s", data)
	}
	detach(t, n, "a")
	if answer, err := hosttest.Ask(t, outside, "tcp", hosttest.Host4+":8080"); err == nil {
		t.Errorf("a detached pod's port answers %q", answer)
	}
	c := attach(t, n, "c", port(8080, 80), udp)
	hosttest.Serve(t, c.Netns, "tcp", ":80", "c")
	hosttest.Serve(t, c.Netns, "udp", ":53", "c")
	expect(t, outside, "tcp", hosttest.Host4+":8080", "c", hosttest.Outside4)
	expect(t, outside, "udp", hosttest.Host4+":5353", "c", hosttest.Outside4)
}

func TestHostPortOnOneAddress(t *testing.T) {
	n := newHost(t).network(t)
	outside := hosttest.Outside(t)
	on := func(ip string) cni.PortMapping {
		p := port(8080, 80)
		p.HostIP = netip.MustParseAddr(ip)
		return p
	}
	for id, ip := range map[string]string{"a": hosttest.Host4, "b": hosttest.Host6, "c": "127.0.0.1"} {
		r := attach(t, n, id, on(ip))
		hosttest.Serve(t, r.Netns, "tcp", ":80", id)
	}
	expect(t, outside, "tcp", net.JoinHostPort(hosttest.Host4, "8080"), "a", hosttest.Outside4)
	expect(t, outside, "tcp", net.JoinHostPort(hosttest.Host6, "8080"), "b", hosttest.Outside6)
	expect(t, "", "tcp", "127.0.0.1:8080", "c", "")
	_, err := n.Attach(context.Background(), cni.Request{PodID: "d", PortMappings: []cni.PortMapping{port(8080, 80)}})
	if !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a port that is taken on one address: %v", err)
	}
	detach(t, n, "d")
}

func TestHostPortConflicts(t *testing.T) {
	n := newHost(t).network(t)
	attach(t, n, "a", port(8080, 80))
	ctx := context.Background()
	_, err := n.Attach(ctx, cni.Request{PodID: "b", PortMappings: []cni.PortMapping{port(8080, 81)}})
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "tcp 8080") || !strings.Contains(err.Error(), "pod a") {
		t.Errorf("a port of another pod: %v", err)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:8081")
	if err != nil {
		t.Fatal(err)
	}
	_, err = n.Attach(ctx, cni.Request{PodID: "c", PortMappings: []cni.PortMapping{port(8081, 81)}})
	if want := fmt.Sprintf("process %d", os.Getpid()); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), want) {
		t.Errorf("a port of a process: want FailedPrecondition naming %q, got %v", want, err)
	}
	l.Close()
	attach(t, n, "c", port(8081, 81)) // a retry, without a Detach between
	for _, bad := range []cni.PortMapping{{Protocol: "icmp", HostPort: 1, ContainerPort: 1}, {Protocol: "tcp", HostPort: 1}} {
		if _, err := n.Attach(ctx, cni.Request{PodID: "d", PortMappings: []cni.PortMapping{bad}}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: %v", bad, err)
		}
	}
	sctp := port(9000, 9000)
	sctp.Protocol = "sctp"
	attach(t, n, "e", sctp)
}

// An address is not given again while the kernel still has the interface of the pod that had it.
func TestAddressIsHeld(t *testing.T) {
	h := newHost(t)
	h.cidrs = []netip.Prefix{netip.MustParsePrefix("10.99.0.0/30")} // one pod
	n := h.network(t)
	a := attach(t, n, "a")
	held, err := os.Open(a.Netns) // as a process of the pod would
	if err != nil {
		t.Fatal(err)
	}
	detach(t, n, "a")
	if _, err := n.Attach(context.Background(), cni.Request{PodID: "b"}); !errdefs.IsResourceExhausted(err) {
		t.Errorf("while the interface is there: %v", err)
	}
	if ids, _ := n.Attached(context.Background()); len(ids) != 0 {
		t.Errorf("attached: %v", ids)
	}
	held.Close()
	eventually(t, "the address is free", func() error {
		_, err := n.Attach(context.Background(), cni.Request{PodID: "b"})
		return err
	})
}

func TestManyPods(t *testing.T) {
	h := newHost(t)
	n := h.network(t)
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for i := range 13 {
				id := fmt.Sprintf("pod-%d-%d", worker, i)
				r, err := n.Attach(context.Background(), cni.Request{PodID: id, PortMappings: []cni.PortMapping{port(uint16(20000+worker*100+i), 80)}})
				if err == nil && len(r.IPs) != 2 {
					err = fmt.Errorf("addresses %v", r.IPs)
				}
				if err == nil {
					err = n.Detach(context.Background(), id)
				}
				if err != nil {
					t.Errorf("%s: %v", id, err)
				}
			}
		})
	}
	wg.Wait()
}

func TestWithoutIPv6(t *testing.T) {
	h := newHost(t)
	const all = "/proc/sys/net/ipv6/conf/all/disable_ipv6"
	if err := os.WriteFile(all, []byte("1"), 0); err != nil {
		t.Skipf("needs IPv6, to disable it: %v", err)
	}
	t.Cleanup(func() { _ = os.WriteFile(all, []byte("0"), 0) })
	n := h.network(t)
	a, b := attach(t, n, "a", port(8080, 80)), attach(t, n, "b")
	if len(a.IPs) != 1 || !a.IPs[0].Is4() {
		t.Fatalf("addresses %v; want one of IPv4", a.IPs)
	}
	hosttest.Serve(t, a.Netns, "tcp4", ":80", "a")
	expect(t, b.Netns, "tcp", hostPort(a.IPs[0], 80), "a", b.IPs[0].String())
	expect(t, "", "tcp", "127.0.0.1:8080", "a", "")
}

func TestBandwidth(t *testing.T) {
	n := newHost(t).network(t)
	r, err := n.Attach(context.Background(), cni.Request{PodID: "a", Annotations: map[string]string{
		"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "1Gi"}})
	if err != nil {
		t.Fatal(err)
	}
	hosttest.In(t, r.Netns, func() {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			t.Error(err)
			return
		}
		qdiscs, err := netlink.QdiscList(l)
		if err != nil || len(qdiscs) != 1 || qdiscs[0].Type() != "tbf" || qdiscs[0].(*netlink.Tbf).Rate != 1<<30/8 {
			t.Errorf("egress: %v, %v", qdiscs, err)
		}
	})
	_, err = n.Attach(context.Background(), cni.Request{PodID: "b", Annotations: map[string]string{"kubernetes.io/ingress-bandwidth": "fast"}})
	if !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
}

func TestMoreBridges(t *testing.T) {
	h := newHost(t)
	h.cidrs = []netip.Prefix{netip.MustParsePrefix("10.99.0.0/23"), netip.MustParsePrefix("fd01::/64")} // two slices
	n := h.network(t)
	first := attach(t, n, "first")
	for i := range 252 {
		attach(t, n, fmt.Sprintf("p%d", i))
	}
	last := attach(t, n, "last")
	if !netip.MustParsePrefix("10.99.1.0/24").Contains(last.IPs[0]) {
		t.Fatalf("the 254th pod has %v; want it in the second slice", last.IPs)
	}
	hosttest.Serve(t, last.Netns, "tcp", ":80", "last")
	for i, ip := range last.IPs {
		expect(t, first.Netns, "tcp", hostPort(ip, 80), "last", first.IPs[i].String())
	}
}

func TestSetPodCIDRs(t *testing.T) {
	h := newHost(t)
	n := h.network(t)
	outside := hosttest.Outside(t)
	hosttest.Serve(t, outside, "tcp", ":80", "outside")
	a := attach(t, n, "a")
	if err := n.SetPodCIDRs([]netip.Prefix{netip.MustParsePrefix("10.77.3.0/24")}); err != nil {
		t.Fatal(err)
	}
	b := attach(t, n, "b")
	if !netip.MustParsePrefix("10.77.3.0/24").Contains(b.IPs[0]) {
		t.Fatalf("after the change: %v", b.IPs)
	}
	hosttest.Serve(t, b.Netns, "tcp", ":80", "b")
	expect(t, a.Netns, "tcp", hostPort(b.IPs[0], 80), "b", a.IPs[0].String())
	for _, ns := range []string{a.Netns, b.Netns} {
		expect(t, ns, "tcp", hosttest.Outside4+":80", "outside", hosttest.Host4)
	}
	if err := n.SetPodCIDRs([]netip.Prefix{netip.MustParsePrefix("10.77.3.0/32")}); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
}

func TestOverlap(t *testing.T) {
	h := newHost(t)
	hosttest.Outside(t)
	h.cidrs = []netip.Prefix{netip.MustParsePrefix("198.18.0.0/16")}
	n := h.network(t)
	_, err := n.Attach(context.Background(), cni.Request{PodID: "a"})
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "uplink") {
		t.Error(err)
	}
	if err := n.Ready(context.Background()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("ready: %v", err)
	}
}

func BenchmarkAttachDetach(b *testing.B) {
	n := newHost(b).network(b)
	ctx := context.Background()
	var attaches, detaches []time.Duration
	for i := 0; b.Loop(); i++ {
		id := fmt.Sprintf("pod%d", i)
		start := time.Now()
		if _, err := n.Attach(ctx, cni.Request{PodID: id}); err != nil {
			b.Fatal(err)
		}
		attached := time.Now()
		if err := n.Detach(ctx, id); err != nil {
			b.Fatal(err)
		}
		attaches, detaches = append(attaches, attached.Sub(start)), append(detaches, time.Since(attached))
		b.StopTimer()
		time.Sleep(30 * time.Millisecond) // the pool fills, the kernel cleans up
		b.StartTimer()
	}
	for name, d := range map[string][]time.Duration{"attach": attaches, "detach": detaches} {
		slices.Sort(d)
		b.ReportMetric(float64(d[0].Microseconds()), name+"-min-us")
		b.ReportMetric(float64(d[len(d)/2].Microseconds()), name+"-p50-us")
		b.ReportMetric(float64(d[len(d)*95/100].Microseconds()), name+"-p95-us")
	}
}
