package netns_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/criserver/criserver/cni/internal/hosttest"
	"github.com/criserver/criserver/cni/netns"
)

func TestMain(m *testing.M) { hosttest.Main(m) }

func TestPin(t *testing.T) {
	hosttest.Need(t)
	dir, err := netns.OpenDir(filepath.Join(t.TempDir(), "netns"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dir.Unpin("a") })
	ns, err := netns.New("owner-1")
	if err != nil {
		t.Fatal(err)
	}
	if err := dir.Pin(ns, "a"); err != nil {
		t.Fatal(err)
	}
	if err := dir.Pin(ns, "a"); err != nil { // again, over what is there
		t.Fatal(err)
	}
	ns.Close()
	ns.Close()
	if !dir.Pinned("a") || dir.Pinned("b") {
		t.Errorf("pinned: a %v, b %v; want a only", dir.Pinned("a"), dir.Pinned("b"))
	}
	if got := dir.Owner("a"); got != "owner-1" {
		t.Errorf("owner %q", got)
	}
	hosttest.In(t, dir.Path("a"), func() {
		links, err := netlink.LinkList()
		if err != nil || len(links) == 0 || links[0].Attrs().Name != "lo" || links[0].Attrs().RawFlags&1 == 0 {
			t.Errorf("want lo, up: %v, %v", links, err)
		}
		if data, _ := os.ReadFile("/proc/thread-self/net/if_inet6"); len(data) > 0 {
			for name, want := range map[string]string{"accept_ra": "0\n", "accept_dad": "0\n"} {
				if got, _ := os.ReadFile("/proc/sys/net/ipv6/conf/default/" + name); string(got) != want {
					t.Errorf("%s is %q, want %q", name, got, want)
				}
			}
		}
	})
	opened, err := netns.Open(dir.Path("a"))
	if err != nil {
		t.Fatal(err)
	}
	opened.Close()
	for range 2 {
		if err := dir.Unpin("a"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(dir.Path("a")); !os.IsNotExist(err) {
		t.Errorf("the file is left: %v", err)
	}
	if _, err := netns.Open("/etc/hostname"); err == nil {
		t.Error("a file is taken for a namespace")
	}
}

// No thread stays in a namespace that was made, and the pool keeps its size.
func TestPool(t *testing.T) {
	hosttest.Need(t)
	here, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	p := netns.NewPool(3, "owner", slog.New(slog.NewTextHandler(t.Output(), nil)))
	for range 20 {
		ns, err := p.Get()
		if err != nil {
			t.Fatal(err)
		}
		ns.Close()
	}
	p.Close()
	if ns, err := p.Get(); err != nil {
		t.Errorf("after Close: %v", err)
	} else {
		ns.Close()
	}
	var strangers []string
	for range 200 { // a thread that ends takes a moment
		strangers = nil
		tasks, _ := filepath.Glob("/proc/self/task/*/ns/net")
		for _, task := range tasks {
			if got, err := os.Readlink(task); err == nil && got != here {
				strangers = append(strangers, task)
			}
		}
		if len(strangers) == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("threads in other namespaces: %v", strangers)
}
