package engine

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/engine/spec"
)

func TestHostFactsAreThoseOfThisProcess(t *testing.T) {
	h, err := hostFacts(spec.Unconfined, "")
	must(t, err)
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	for _, c := range h.Capabilities {
		if !strings.HasPrefix(c, "CAP_") {
			t.Errorf("capability %q", c)
		}
	}
	bounded, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_SYS_RESOURCE, 0, 0, 0)
	must(t, err)
	if slices.Contains(h.Capabilities, "CAP_SYS_RESOURCE") != (bounded == 1) {
		t.Errorf("CAP_SYS_RESOURCE is in the bounding set: %d; facts: %v", bounded, h.Capabilities)
	}
	if h.NoSeccomp {
		t.Error("this kernel has seccomp filters")
	}
}

func TestDevices(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Symlink("/dev/null", filepath.Join(dir, "link")))
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	must(t, os.Mkdir(filepath.Join(dir, "sub"), 0o700))
	if err := unix.Mknod(filepath.Join(dir, "sub", "zero"), unix.S_IFCHR|0o640, int(unix.Mkdev(1, 5))); err != nil {
		t.Skipf("needs CAP_MKNOD: %v", err)
	}
	got, err := resolveDevices([]spec.Device{
		{HostPath: filepath.Join(dir, "link"), ContainerPath: "/dev/mine", Permissions: "r"},
		{HostPath: filepath.Join(dir, "sub"), ContainerPath: "/dev/sub"},
	})
	must(t, err)
	if len(got) != 2 || got[0].Path != "/dev/mine" || got[0].Major != 1 || got[0].Minor != 3 || got[0].Permissions != "r" {
		t.Errorf("a device behind a link: %+v", got)
	}
	if d := got[1]; d.Path != "/dev/sub/zero" || d.Minor != 5 || d.Permissions != "rwm" || *d.FileMode != 0o640 {
		t.Errorf("a directory of devices: %+v", d)
	}
	for _, path := range []string{filepath.Join(dir, "file"), filepath.Join(dir, "missing")} {
		if _, err := resolveDevices([]spec.Device{{HostPath: path}}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
	all, err := hostDevices()
	must(t, err)
	for _, d := range all {
		if strings.HasPrefix(d.Path, "/dev/pts/") || strings.HasPrefix(d.Path, "/dev/shm/") {
			t.Errorf("%s is not a device for others", d.Path)
		}
	}
	if !slices.ContainsFunc(all, func(d specs.LinuxDevice) bool { return d.Path == "/dev/null" }) {
		t.Error("the host's devices have no /dev/null")
	}
}

func TestSourcesOfMounts(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "real"), 0o700))
	must(t, os.Symlink("real", filepath.Join(dir, "link")))
	got, err := resolveMounts([]spec.Mount{
		{Source: filepath.Join(dir, "link"), Target: "/a"}, {Source: filepath.Join(dir, "new", "deep"), Target: "/b"},
	}, false)
	must(t, err)
	real, err := filepath.EvalSymlinks(dir)
	must(t, err)
	if got[0].Source != filepath.Join(real, "real") {
		t.Errorf("the source behind a link is %s", got[0].Source)
	}
	if info, err := os.Stat(filepath.Join(dir, "new", "deep")); err != nil || !info.IsDir() {
		t.Errorf("a missing source: %v", err)
	}
	missing := filepath.Join(t.TempDir(), "missing")
	if _, err := resolveMounts([]spec.Mount{{Source: missing, Target: "/a"}}, true); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), missing) {
		t.Errorf("a missing source where they must be there: %v", err)
	}
	if _, err := resolveMounts([]spec.Mount{{Source: "relative", Target: "/a"}}, false); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a relative source: %v", err)
	}
}

func TestResolver(t *testing.T) {
	got, err := resolver(&spec.DNS{Servers: []string{"10.0.0.10", "fd00::a"}, Searches: []string{"a.local", "b"}, Options: []string{"ndots:5"}})
	must(t, err)
	if want := "search a.local b\nnameserver 10.0.0.10\nnameserver fd00::a\noptions ndots:5\n"; string(got) != want {
		t.Errorf("got %q", got)
	}
	if _, err := resolver(&spec.DNS{Searches: []string{"x\nnameserver 6.6.6.6"}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a search domain with a line of its own: %v", err)
	}
}

func TestPortMappings(t *testing.T) {
	p := aPod("a")
	p.PortMappings = []spec.PortMapping{
		{ContainerPort: 80}, {Protocol: "UDP", ContainerPort: 53, HostPort: 5353, HostIP: "127.0.0.1"}, {ContainerPort: 443, HostPort: 8443},
	}
	r, err := networkRequest(&p)
	must(t, err)
	if len(r.PortMappings) != 2 || r.PortMappings[0].Protocol != "udp" || r.PortMappings[0].HostIP != netip.MustParseAddr("127.0.0.1") ||
		r.PortMappings[1].Protocol != "tcp" || r.PortMappings[1].HostIP.IsValid() {
		t.Errorf("got %+v", r.PortMappings)
	}
	for _, bad := range []spec.PortMapping{{HostPort: 1, ContainerPort: 1, HostIP: "localhost"}, {HostPort: 1, ContainerPort: 1, Protocol: "icmp"}, {HostPort: 1}} {
		p.PortMappings = []spec.PortMapping{bad}
		if _, err := networkRequest(&p); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

func TestHostNetworkPodsHaveTheHostsNames(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	e := open(t, w, dir)
	p := aPod("a")
	p.Hostname, p.Security.Namespaces = "", spec.Namespaces{Network: spec.ModeNode, IPC: spec.ModeNode, PID: spec.ModeNode}
	id, err := e.RunPod(background, p)
	must(t, err)
	if count(w, "Attach")+count(w, "StartPod") != 0 {
		t.Errorf("a pod that shares all with the host called %v", w.calls)
	}
	name, err := os.Hostname()
	must(t, err)
	data, err := os.ReadFile(filepath.Join(dir, "pods", id, "hostname"))
	must(t, err)
	if string(data) != name+"\n" {
		t.Errorf("hostname is %q", data)
	}
	must(t, e.RemovePod(background, id))
	nothingLeft(t, w, dir)
}
