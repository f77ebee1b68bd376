package cni_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/criserver/criserver/cni"
	"github.com/criserver/criserver/cni/internal/hosttest"
)

// The built-in plugin as a program, driven by a configuration list.
func newProgramHost(t *testing.T) (h *confHost, state string) {
	h = newConfHost(t)
	needPlugins(t)
	state = t.TempDir()
	h.write(t, "10-criserver.conflist", fmt.Sprintf(`{"cniVersion":"1.1.0","name":"own","plugins":[{"type":"criserver","bridge":"xbr0",
		"subnets":["10.67.0.0/16","fd67::/64"],"stateDir":%q,"capabilities":{"portMappings":true,"bandwidth":true}}]}`, state))
	t.Cleanup(func() {
		if left, _ := filepath.Glob(state + "/xbr0/*.json"); len(left) > 0 {
			t.Errorf("records of the plugin are left: %v", left)
		}
		out, _ := exec.Command("ip", "-br", "link").CombinedOutput()
		if strings.Contains(string(out), "criv") {
			t.Errorf("interfaces are left:\n%s", out)
		}
		_ = exec.Command("ip", "link", "del", "xbr0").Run()
	})
	return h, state
}

func TestProgram(t *testing.T) {
	h, state := newProgramHost(t)
	outside := hosttest.Outside(t)
	hosttest.Serve(t, outside, "tcp", ":80", "outside")
	n := h.network(t)
	ctx := context.Background()
	if err := n.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	a, err := n.Attach(ctx, cni.Request{PodID: "a", PortMappings: []cni.PortMapping{port(8080, 80)},
		Annotations: map[string]string{"kubernetes.io/ingress-bandwidth": "100M"}})
	if err != nil {
		t.Fatal(err)
	}
	b := attach(t, n, "b")
	if len(a.IPs) != 2 || a.IPs[0] != netip.MustParseAddr("10.67.0.2") || b.IPs[0] == a.IPs[0] {
		t.Fatalf("addresses: %v, %v", a.IPs, b.IPs)
	}
	hosttest.Serve(t, a.Netns, "tcp", ":80", "a")
	for i, ip := range a.IPs {
		expect(t, b.Netns, "tcp", hostPort(ip, 80), "a", b.IPs[i].String())
	}
	expect(t, outside, "tcp", hosttest.Host4+":8080", "a", hosttest.Outside4)
	expect(t, b.Netns, "tcp", hosttest.Host4+":8080", "a", "")
	expect(t, a.Netns, "tcp", hosttest.Outside4+":80", "outside", hosttest.Host4)
	if err := n.Check(ctx, "a"); err != nil {
		t.Error(err)
	}
	if _, err := n.Attach(ctx, cni.Request{PodID: "c", PortMappings: []cni.PortMapping{port(8080, 80)}}); err == nil || !strings.Contains(err.Error(), "taken by pod a@eth0") {
		t.Errorf("a port that is taken: %v", err)
	}
	detach(t, n, "c")
	// What a runtime forgot is collected.
	if err := os.Remove(h.state + "/b.json"); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	_ = os.RemoveAll(filepath.Join(h.state, "cache"))
	if err := h.network(t).Reconcile(ctx, []string{"a"}); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(state + "/xbr0/*.json"); len(left) != 1 {
		t.Errorf("after GC: %v", left)
	}
}

func TestProgramConcurrently(t *testing.T) {
	h, _ := newProgramHost(t)
	n := h.network(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := make(map[netip.Addr]string)
	for i := range 8 {
		wg.Go(func() {
			id := fmt.Sprintf("p%d", i)
			r, err := n.Attach(context.Background(), cni.Request{PodID: id})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			for _, ip := range r.IPs {
				if seen[ip] != "" {
					t.Errorf("%s and %s have %s", id, seen[ip], ip)
				}
				seen[ip] = id
			}
		})
	}
	wg.Wait()
}
