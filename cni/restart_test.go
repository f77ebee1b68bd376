package cni_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/cni"
	"github.com/criserver/criserver/cni/internal/hosttest"
)

func TestRestart(t *testing.T) {
	h := newHost(t)
	outside := hosttest.Outside(t)
	first := h.open(t)
	a := attach(t, first, "a", port(8080, 80))
	hosttest.Serve(t, a.Netns, "tcp", ":80", "a")
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	expect(t, outside, "tcp", hosttest.Host4+":8080", "a", hosttest.Outside4) // without any process of ours
	second := h.network(t)
	if got := attach(t, second, "a", port(8080, 80)); fmt.Sprint(got) != fmt.Sprint(a) {
		t.Errorf("after a restart %v, before %v", got, a)
	}
	if b := attach(t, second, "b"); b.IPs[0] == a.IPs[0] {
		t.Errorf("both pods have %s", b.IPs[0])
	}
	expect(t, "", "tcp", "127.0.0.1:8080", "a", "")
	expect(t, outside, "tcp", hosttest.Host4+":8080", "a", hosttest.Outside4)
	if _, err := second.Attach(context.Background(), cni.Request{PodID: "c", PortMappings: []cni.PortMapping{port(8080, 1)}}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a port taken before the restart: %v", err)
	}
	if ids, err := second.Attached(context.Background()); err != nil || fmt.Sprint(ids) != "[a b]" {
		t.Errorf("attached: %v, %v", ids, err)
	}
}

func TestRulesComeBack(t *testing.T) {
	h := newHost(t)
	outside := hosttest.Outside(t)
	first := h.open(t)
	a := attach(t, first, "a", port(8080, 80))
	hosttest.Serve(t, a.Netns, "tcp", ":80", "a")
	flushRules(t)
	b := attach(t, first, "b", port(8081, 80)) // finds the table gone
	hosttest.Serve(t, b.Netns, "tcp", ":80", "b")
	expect(t, outside, "tcp", hosttest.Host4+":8080", "a", hosttest.Outside4)
	expect(t, outside, "tcp", hosttest.Host4+":8081", "b", hosttest.Outside4)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	flushRules(t)
	h.network(t)
	expect(t, outside, "tcp", hosttest.Host4+":8080", "a", hosttest.Outside4)
}

// Nothing that a killed process left half done stays.
func TestReconcile(t *testing.T) {
	h := newHost(t)
	first := h.open(t)
	attach(t, first, "a")
	attach(t, first, "lost")
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(h.state + "/lost.json"); err != nil {
		t.Fatal(err)
	}
	foreign := h.netns + "/criserver-foreign"
	if err := os.WriteFile(foreign, nil, 0o600); err != nil { // not made by us: it has no owner
		t.Fatal(err)
	}
	n := h.network(t)
	if err := n.Reconcile(context.Background(), []string{"a"}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(h.netns + "/criserver-lost"); err == nil {
		t.Error("the namespace without a record is still pinned")
	}
	if _, err := os.Stat(foreign); err != nil {
		t.Errorf("a file of somebody else: %v", err)
	}
	os.Remove(foreign)
	if err := n.Check(context.Background(), "a"); err != nil {
		t.Error(err)
	}
}

func TestBrokenRecord(t *testing.T) {
	h := newHost(t)
	first := h.open(t)
	attach(t, first, "a")
	b := attach(t, first, "b")
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(h.state+"/a.json", []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	n := h.network(t)
	if got := attach(t, n, "b"); fmt.Sprint(got) != fmt.Sprint(b) {
		t.Errorf("the other pod: %v, before %v", got, b)
	}
	attach(t, n, "a")
}

// A process that is killed after it unpinned a namespace leaves a record; the pod is gone and its address not lost.
func TestKilledWhileDetaching(t *testing.T) {
	h := newHost(t)
	h.cidrs = []netip.Prefix{netip.MustParsePrefix("10.99.0.0/30")} // one pod
	first := h.open(t)
	a := attach(t, first, "a", port(8080, 80))
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	held, err := os.Open(a.Netns)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Unmount(a.Netns, unix.MNT_DETACH), os.Remove(a.Netns)); err != nil {
		t.Fatal(err)
	}
	n := h.network(t)
	if ids, _ := n.Attached(context.Background()); len(ids) != 0 {
		t.Errorf("attached: %v", ids)
	}
	if _, err := n.Attach(context.Background(), cni.Request{PodID: "b"}); !errdefs.IsResourceExhausted(err) {
		t.Errorf("while the interface is there: %v", err)
	}
	held.Close()
	eventually(t, "the address and the port are free", func() error {
		_, err := n.Attach(context.Background(), cni.Request{PodID: "b", PortMappings: []cni.PortMapping{port(8080, 80)}})
		return err
	})
	if err := n.Detach(context.Background(), "a"); err != nil {
		t.Error(err)
	}
}

func flushRules(t *testing.T) {
	t.Helper()
	c := &nftables.Conn{}
	c.FlushRuleset()
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
}
