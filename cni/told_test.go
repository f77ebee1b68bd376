package cni_test

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/criserver/criserver/cni"
	"github.com/criserver/criserver/cni/internal/hosttest"
)

// What the node was told outlives the process that was told; a broken note of it costs no more than that.
func TestPodCIDRsAreRemembered(t *testing.T) {
	h := newHost(t)
	told := netip.MustParsePrefix("10.77.3.0/24")
	first := h.open(t)
	if err := first.SetPodCIDRs([]netip.Prefix{told}); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := h.open(t)
	if a := attach(t, second, "a"); !told.Contains(a.IPs[0]) {
		t.Errorf("after a restart the address is %v", a.IPs)
	}
	detach(t, second, "a")
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	note := filepath.Join(h.state, "pod-cidrs")
	if err := os.WriteFile(note, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	third := h.network(t)
	if a := attach(t, third, "a"); told.Contains(a.IPs[0]) {
		t.Errorf("with a broken note the address is %v", a.IPs)
	}
	if err := os.Remove(note); err != nil {
		t.Error(err)
	}
}

func TestLinks(t *testing.T) {
	h := newHost(t)
	n := h.network(t)
	a := attach(t, n, "a")
	before, err := n.Links(context.Background(), "a")
	if err != nil || len(before) != 1 || before[0].Name != cni.DefaultInterface {
		t.Fatalf("%+v, %v", before, err)
	}
	hosttest.Serve(t, a.Netns, "tcp", ":80", "a")
	expect(t, "", "tcp", hostPort(a.IPs[0], 80), "a", "")
	after, err := n.Links(context.Background(), "a")
	if err != nil || len(after) != 1 || after[0].RxBytes <= before[0].RxBytes || after[0].TxPackets <= before[0].TxPackets {
		t.Errorf("after a connection %+v, before %+v, %v", after, before, err)
	}
	if _, err := n.Links(context.Background(), "nope"); !errdefs.IsNotFound(err) {
		t.Errorf("an unknown pod: %v", err)
	}
}
