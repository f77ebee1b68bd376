package e2e

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Addresses of the veth between the node and what plays the outside (TEST-NET-1 and the documentation prefix).
const (
	nodeV4, outsideV4 = "192.0.2.1", "192.0.2.2"
	nodeV6, outsideV6 = "2001:db8::1", "2001:db8::2"
)

// outside is a network namespace with a server in it, connected to the node by a veth.
type outside struct{ base string }

// newOutside makes it for one test.
func newOutside(t *testing.T) *outside {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "role-outside", ":80")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if link, err := netlink.LinkByName("e2e-out"); err == nil {
			_ = netlink.LinkDel(link) // it goes with the namespace, but later
		}
	})
	if err := connect(cmd.Process.Pid); err != nil {
		t.Fatalf("veth to the outside: %v", err)
	}
	o := &outside{base: "http://" + outsideV4}
	eventually(t, 20*time.Second, func() error {
		_, err := fetch(t.Context(), o.base+"/")
		return err
	})
	return o
}

// connect joins the node with the namespace of process pid.
func connect(pid int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "e2e-out"
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsPid(pid)}
	if err := netlink.LinkAdd(veth); err != nil {
		return err
	}
	here, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer here.Close()
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return err
	}
	defer ns.Close()
	there, err := netlink.NewHandleAt(nsHandle(ns), unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer there.Close()
	if err := configure(here, "e2e-out", nodeV4+"/24", nodeV6+"/64"); err != nil {
		return err
	}
	return configure(there, "eth0", outsideV4+"/24", outsideV6+"/64")
}

func configure(h *netlink.Handle, name string, addrs ...string) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	for _, text := range addrs {
		addr, err := netlink.ParseAddr(text)
		if err != nil {
			return err
		}
		if addr.IP.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := h.AddrAdd(link, addr); err != nil {
			return err
		}
	}
	return h.LinkSetUp(link)
}

// fetch gets a page from the outside's point of view.
func (o *outside) fetch(t *testing.T, page string) (string, error) {
	return fetch(t.Context(), o.base+"/fetch?url="+url.QueryEscape(page))
}

// from is the page of role-serve for a client.
func from(addr string) string { return "from " + addr + "\n" }

// get fetches a page inside a container.
func (c *container) get(t *testing.T, page string) (string, error) {
	r, err := c.exec(t.Context(), 10, "wget", "-q", "-O", "-", page)
	if err == nil && r.code != 0 {
		err = fmt.Errorf("wget %s: code %d, %s", page, r.code, strings.TrimSpace(r.stderr))
	}
	return r.stdout, err
}

// serving waits until role-serve listens.
func (c *container) serving(t *testing.T) *container {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		if out := c.logText(t, "stdout"); !strings.Contains(out, "listening") {
			return fmt.Errorf("not listening: %q", out)
		}
		return nil
	})
	return c
}

// TestPodToPod sees each pod's own address on the other side, in both families.
func TestPodToPod(t *testing.T) {
	n := sharedNode(t)
	server, client := n.runPod(t), n.runPod(t)
	server.run(t, helper("role-serve", ":80")).serving(t)
	c := client.run(t, command("sleep", "1000"))

	targets := append([]*runtimev1.PodIP{{Ip: server.ip(t)}}, server.status(t).Network.AdditionalIps...)
	sources := append([]*runtimev1.PodIP{{Ip: client.ip(t)}}, client.status(t).Network.AdditionalIps...)
	if len(targets) != 2 || len(sources) != 2 {
		t.Fatalf("addresses %v and %v, want an IPv4 and an IPv6 one each", targets, sources)
	}
	for i, target := range targets {
		got, err := c.get(t, "http://"+net.JoinHostPort(target.Ip, "80")+"/")
		if err != nil || got != from(sources[i].Ip) {
			t.Errorf("%s: %q, %v, want from %s", target.Ip, got, err, sources[i].Ip)
		}
	}
	if got, err := c.get(t, "http://127.0.0.1/"); err == nil {
		t.Errorf("the client's own loopback answers %q", got)
	}
}

// TestPodToOutside is masqueraded: the outside has no route back to pods.
func TestPodToOutside(t *testing.T) {
	n := sharedNode(t)
	newOutside(t)
	c := n.runPod(t).run(t, command("sleep", "1000"))
	for target, source := range map[string]string{outsideV4: nodeV4, "[" + outsideV6 + "]": nodeV6} {
		if got, err := c.get(t, "http://"+target+"/"); err != nil || got != from(source) {
			t.Errorf("%s: %q, %v, want from %s", target, got, err, source)
		}
	}
}

// TestHostPort is reached from the outside, from the node's own loopback, and from a pod through the node's address.
func TestHostPort(t *testing.T) {
	n := sharedNode(t)
	o := newOutside(t)
	p := n.runPod(t, hostPort(&runtimev1.PortMapping{Protocol: runtimev1.Protocol_TCP, ContainerPort: 80, HostPort: 8080}))
	c := p.run(t, helper("role-serve", ":80")).serving(t)

	if got, err := o.fetch(t, "http://"+nodeV4+":8080/"); err != nil || got != from(outsideV4) {
		t.Errorf("from the outside: %q, %v, want from %s", got, err, outsideV4)
	}
	if got, err := fetch(t.Context(), "http://127.0.0.1:8080/"); err != nil || !strings.HasPrefix(got, "from ") {
		t.Errorf("from the node's loopback: %q, %v", got, err)
	}
	if got, err := c.get(t, "http://"+nodeV4+":8080/"); err != nil || !strings.HasPrefix(got, "from ") {
		t.Errorf("from the pod itself: %q, %v", got, err)
	}
	_, err := n.tryPod(t, hostPort(&runtimev1.PortMapping{Protocol: runtimev1.Protocol_TCP, ContainerPort: 81, HostPort: 8080}))
	if err == nil || !strings.Contains(err.Error(), "8080") {
		t.Errorf("a second pod with the port: %v, want an error that names it", err)
	}
	if err := p.down(); err != nil {
		t.Fatal(err)
	}
	if got, err := fetch(t.Context(), "http://127.0.0.1:8080/"); err == nil {
		t.Errorf("after the removal the port answers %q", got)
	}
}

// TestDNSConfig writes what the pod asked for.
func TestDNSConfig(t *testing.T) {
	n := sharedNode(t)
	p := n.runPod(t, func(c *runtimev1.PodSandboxConfig) {
		c.DnsConfig = &runtimev1.DNSConfig{Servers: []string{"192.0.2.53"}, Searches: []string{"e2e.test"}, Options: []string{"ndots:5"}}
	})
	c := p.run(t, command("sleep", "1000"))
	got := c.output(t, "cat", "/etc/resolv.conf")
	for _, want := range []string{"nameserver 192.0.2.53", "search e2e.test", "options ndots:5"} {
		if !strings.Contains(got, want) {
			t.Errorf("resolv.conf %q lacks %q", got, want)
		}
	}
	hosts := c.output(t, "cat", "/etc/hosts")
	if !strings.Contains(hosts, p.ip(t)) || !strings.Contains(hosts, p.config.Hostname) {
		t.Errorf("hosts %q lacks the pod's own name and address", hosts)
	}
}

// nsHandle is a namespace's descriptor as the netlink library wants it.
func nsHandle(f *os.File) netns.NsHandle { return netns.NsHandle(f.Fd()) }
