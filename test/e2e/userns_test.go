package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The user namespace of the tests' pods: root is userBase on the node.
const (
	userBase = 131072
	userSize = 65536
)

func userMapping() []*runtimev1.IDMapping {
	return []*runtimev1.IDMapping{{ContainerId: 0, HostId: userBase, Length: userSize}}
}

func inUser(c *runtimev1.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimev1.UserNamespace{
		Mode: runtimev1.NamespaceMode_POD, Uids: userMapping(), Gids: userMapping(),
	}
}

// mappedVolume mounts a directory whose owners are shown as the pod's user namespace has them.
func mappedVolume(source, target string) containerOption {
	return func(c *runtimev1.ContainerConfig) {
		c.Mounts = append(c.Mounts, &runtimev1.Mount{
			HostPath: source, ContainerPath: target, UidMappings: userMapping(), GidMappings: userMapping(),
		})
	}
}

// needUser skips where the node says that it has no user namespaces.
func needUser(t *testing.T, n *node) {
	t.Helper()
	ctx, cancel := callContext()
	defer cancel()
	s, err := n.d.Runtime.Status(ctx, &runtimev1.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range s.RuntimeHandlers {
		if h.Name != handler {
			continue
		}
		if !h.GetFeatures().GetUserNamespaces() {
			t.Skip("no user namespaces: the filesystem of the images does not map owners, or the handler's program does not")
		}
		return
	}
	t.Fatalf("no runtime handler %q", handler)
}

func hostOwner(t *testing.T, path string) string {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

func TestUserNamespace(t *testing.T) {
	n := sharedNode(t)
	needUser(t, n)
	volume, plain := filepath.Join(place.Dir, "user-volume"), filepath.Join(place.Dir, "user-plain")
	for _, dir := range []string{volume, plain} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
	}
	p := n.runPod(t, inUser)
	if got := p.status(t).GetLinux().GetNamespaces().GetOptions().GetUsernsOptions(); got.GetMode() != runtimev1.NamespaceMode_POD || len(got.GetUids()) != 1 || got.Uids[0].HostId != userBase {
		t.Errorf("the pod's status says %v", got)
	}
	c := p.run(t, helper("role-serve", ":8080"), mappedVolume(volume, "/volume"), mountAt(plain, "/plain"))
	want := fmt.Sprintf("0 %d %d", userBase, userSize)
	if got := strings.Join(strings.Fields(c.output(t, "cat", "/proc/self/uid_map")), " "); got != want {
		t.Errorf("uid_map is %q, want %q", got, want)
	}
	for path, want := range map[string]string{
		"/": "0:0", "/bin/busybox": "0:0", "/etc/passwd": "0:0", "/etc/hosts": "0:0", "/etc/resolv.conf": "0:0", "/etc/hostname": "0:0",
		"/dev": "0:0", "/dev/null": "0:0", "/dev/shm": "0:0", "/dev/pts": "0:0", "/proc/self": "0:0", "/volume": "0:0", "/plain": "65534:65534",
	} {
		if got := strings.TrimSpace(c.output(t, "stat", "-L", "-c", "%u:%g", path)); got != want && !(got == "65534:65534" && (path == "/dev/pts" || path == "/dev/null" && handler != "")) {
			t.Errorf("%s belongs to %s, want %s", path, got, want)
		}
	}
	c.output(t, "sh", "-c", "echo x >/volume/file && chown 5:6 /volume/file && echo >/written && echo >/dev/shm/x && echo >>/etc/hosts && ! touch /plain/x 2>/dev/null && ! mount -t tmpfs x /mnt 2>/dev/null")
	if got := hostOwner(t, volume+"/file"); got != "5:6" {
		t.Errorf("what uid 5 wrote to the volume belongs to %s on the node", got)
	}
	if _, err := fetch(t.Context(), "http://"+p.ip(t)+":8080/"); err != nil {
		t.Errorf("its server does not answer: %v", err)
	}
	c.output(t, "ping", "-c", "1", "-w", "5", p.ip(t))
	for _, w := range n.workloads(t) {
		if got := hostOwner(t, fmt.Sprintf("/proc/%d", w.PID)); strings.Contains(w.Cmdline, "role-serve") && got != fmt.Sprintf("%d:%[1]d", userBase) {
			t.Errorf("process %v belongs to %s on the node", w, got)
		}
	}
	ours, _ := os.Readlink("/proc/self/ns/user")
	inside := c.output(t, "readlink", "/proc/self/ns/user")
	if inside == ours+"\n" {
		t.Error("an exec is in the node's user namespace")
	}
	other := p.run(t, command("sleep", "1000"))
	if got := other.output(t, "readlink", "/proc/self/ns/user"); got != inside {
		t.Errorf("the pod's containers are in %s and %s", got, inside)
	}
}

func mountAt(source, target string) containerOption {
	return func(c *runtimev1.ContainerConfig) {
		c.Mounts = append(c.Mounts, &runtimev1.Mount{HostPath: source, ContainerPath: target})
	}
}

// TestUserNamespaceModes has the other namespaces shared with the node, or among the pod's containers.
func TestUserNamespaceModes(t *testing.T) {
	n := sharedNode(t)
	needUser(t, n)
	shared := n.runPod(t, inUser, sharedPID)
	a := shared.run(t, command("sleep", "1000"))
	b := shared.run(t, command("sleep", "1001"), tty)
	if out := b.output(t, "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '; kill $(pidof sleep | tr ' ' '\\n' | tail -1)"); !strings.Contains(out, "sleep 1000") {
		t.Errorf("the other container's process is not seen: %q", out)
	}
	_ = a
	host := n.runPod(t, inUser, hostNetwork).run(t, command("sleep", "1000"))
	if out := host.output(t, "cat", "/proc/self/gid_map"); !strings.Contains(out, fmt.Sprint(userBase)) {
		t.Errorf("gid_map in the node's network is %q", out)
	}
	if r, err := host.exec(t.Context(), 0, "ip", "link", "set", "lo", "mtu", "1499"); err != nil || r.code == 0 {
		t.Errorf("root of a user namespace configures the node's network: %+v, %v", r, err)
	}
}

func TestUserNamespaceRefused(t *testing.T) {
	n := sharedNode(t)
	needUser(t, n)
	_, err := n.tryPod(t, inUser, func(c *runtimev1.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions.Uids[0].ContainerId = 1
	})
	wantCode(t, err, codes.InvalidArgument, "userns_options.uids")
	p := n.runPod(t, inUser)
	_, err = p.tryCreate(func(c *runtimev1.ContainerConfig) {
		c.Mounts = append(c.Mounts, &runtimev1.Mount{HostPath: "/tmp", ContainerPath: "/x", Propagation: runtimev1.MountPropagation_PROPAGATION_BIDIRECTIONAL})
	})
	wantCode(t, err, codes.InvalidArgument, "rshared")
	_, err = p.tryCreate(func(c *runtimev1.ContainerConfig) {
		c.Linux.SecurityContext.RunAsUser = &runtimev1.Int64Value{Value: 70000}
	})
	wantCode(t, err, codes.InvalidArgument, "70000")
}

// TestUserNamespaceSurvives kills shim and keeper, alone and together; the pod's user namespace is found again.
func TestUserNamespaceSurvives(t *testing.T) {
	n := ownNode(t)
	needUser(t, n)
	p := n.runPod(t, inUser)
	first := p.run(t, command("sleep", "1000"))
	want := first.output(t, "sh", "-c", "readlink /proc/self/ns/user; readlink /proc/self/ns/net")
	kill := func(which killed) {
		n.kill(t, which)
		n.recovered(t, which)
	}
	check := func(what string) {
		t.Helper()
		c := p.run(t, command("sleep", "1000"))
		if got := c.output(t, "sh", "-c", "readlink /proc/self/ns/user; readlink /proc/self/ns/net"); got != want {
			t.Errorf("after the end of %s: namespaces %q, want %q", what, got, want)
		}
		c.stop(t, 0)
	}
	kill(killed{shim: true})
	check("the shim")
	kill(killed{shim: true, keeper: true})
	check("shim and keeper")
	first.stop(t, 0)
	kill(killed{shim: true, keeper: true})
	check("shim and keeper, with no container running")
}
