package native

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native/stage"
)

// userSpec is baseSpec with a user namespace, whose root is 100000 on the host.
func userSpec(args ...string) *specs.Spec {
	spec := baseSpec(args...)
	spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	spec.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	spec.Linux.GIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 200000, Size: 65536}}
	return spec
}

func owner(t testing.TB, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

func TestUserNamespace(t *testing.T) {
	r := newRuntime(t)
	spec := userSpec("owners", "/", "/bin/inside", "/dev", "/dev/null", "/dev/mqueue", "/dev/pts", "/data", "/mapped/file", "/made/by/us", "/tmp/made", "/proc/self")
	volume, mapped := t.TempDir(), t.TempDir()
	if err := os.WriteFile(mapped+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	spec.Process.Cwd = "/made/by/us"
	spec.Process.Capabilities.Bounding = append(spec.Process.Capabilities.Bounding, "CAP_SYS_RESOURCE")
	spec.Mounts = append(spec.Mounts,
		specs.Mount{Destination: "/tmp/made", Type: "tmpfs", Source: "tmpfs", Options: []string{"gid=7"}},
		specs.Mount{Destination: "/data", Type: "bind", Source: volume, Options: []string{"rbind"}},
		specs.Mount{Destination: "/mapped", Type: "bind", Source: mapped, Options: []string{"rbind"}, UIDMappings: spec.Linux.UIDMappings, GIDMappings: spec.Linux.GIDMappings})
	root := rootfs(t)
	before := hostMounts(t)
	p, out, w := create(t, r, Config{ID: "x", Spec: spec, Rootfs: root, Cgroup: group(t)})
	if after := hostMounts(t); after != before {
		t.Errorf("the host's mount table went from %d to %d", before, after)
	}
	for _, kind := range []string{"mnt", "net", "ipc", "uts", "cgroup"} {
		user, err := OwnerOf("/proc/" + strconv.Itoa(p.Pid) + "/ns/" + kind)
		if err != nil {
			t.Errorf("owner of the %s namespace: %v", kind, err)
			continue
		}
		user.Close()
	}
	text, code := finish(t, p, out, w)
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, text)
	}
	for _, want := range []string{
		"/ 0:0", "/bin/inside 0:0", "/dev 0:0", "/dev/null 0:0", "/dev/mqueue 0:0", "/mapped/file 0:0", "/made/by/us 0:0", "/tmp/made 0:7", "/proc/self 0:0",
		"/data 65534:65534", "map 0 100000 65536", "caps 0000000001000421", "written to /dev/null",
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	var upper string
	for _, o := range root.Options {
		if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
			upper = dir
		}
	}
	for _, path := range []string{upper, upper + "/written", upper + "/made/by"} {
		if got := owner(t, path); got != "100000:200000" {
			t.Errorf("%s belongs to %s on the host", path, got)
		}
	}
	if got := owner(t, mapped+"/written"); got != "0:0" {
		t.Errorf("what was written to the mapped volume belongs to %s", got)
	}
}

func printOwners(paths []string) int {
	for _, p := range paths {
		var st unix.Stat_t
		if err := unix.Stat(p, &st); err != nil {
			fmt.Println(p, err)
			continue
		}
		fmt.Printf("%s %d:%d\n", p, st.Uid, st.Gid)
	}
	text, _ := os.ReadFile("/proc/self/uid_map")
	fmt.Println("map", strings.Join(strings.Fields(string(text)), " "))
	status, _ := os.ReadFile("/proc/self/status")
	set, _ := statusSet(status, "CapBnd")
	fmt.Printf("caps %016x\n", set)
	for _, f := range []string{"/written", "/mapped/written", "/dev/null"} {
		if err := os.WriteFile(f, []byte("x"), 0o600); err != nil {
			fmt.Println(err)
		} else {
			fmt.Println("written to", f)
		}
	}
	return 0
}

// TestExecInUserNamespace enters one that exists, as the image's user 5.
func TestExecInUserNamespace(t *testing.T) {
	r := newRuntime(t)
	spec := userSpec("sleep")
	p, out, _ := create(t, r, Config{ID: "x", Spec: spec, Rootfs: rootfs(t), Cgroup: group(t)})
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stage.End(p.Pidfd) })
	if line := make([]byte, 9); !readFull(out, line) {
		t.Fatal("it does not run")
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pr.Close()
	process := *spec.Process
	process.Args = []string{"inside", "view", "/etc/plain"}
	process.User = specs.User{UID: 5, GID: 6}
	x, err := r.Exec(t.Context(), ExecConfig{Spec: spec, Process: &process, Target: p.Pidfd, Stdout: pw})
	if err != nil {
		t.Fatal(err)
	}
	x.run = nil
	text, code := finish(t, x, pr, pw)
	v := look(t, text)
	if code != 0 || v.UID != 5 || v.GID != 6 || v.PidOne == 1 || v.Files["/etc/plain"] != "plain" || v.Status["CapBnd"] != "0000000000000421" {
		t.Errorf("code %d, %+v", code, v)
	}
	for _, kind := range []string{"user", "mnt", "net", "pid", "cgroup"} {
		if v.Namespaces[kind] == "" || v.Namespaces[kind] != link(t, "/proc/"+strconv.Itoa(p.Pid)+"/ns/"+kind) {
			t.Errorf("%s namespace is %s", kind, v.Namespaces[kind])
		}
	}
}

func link(t testing.TB, path string) string {
	t.Helper()
	s, err := os.Readlink(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func readFull(f *os.File, b []byte) bool {
	for n := 0; n < len(b); {
		m, err := f.Read(b[n:])
		if err != nil {
			return false
		}
		n += m
	}
	return true
}

func TestUserNamespaceRefused(t *testing.T) {
	for name, change := range map[string]func(*specs.Spec){
		"linux.uidMappings[1]": func(s *specs.Spec) {
			s.Linux.UIDMappings = append(s.Linux.UIDMappings, specs.LinuxIDMapping{ContainerID: 100, HostID: 1, Size: 1})
		},
		"linux.gidMappings[0]": func(s *specs.Spec) { s.Linux.GIDMappings[0].Size = 0 },
		"uid 0 is not mapped":  func(s *specs.Spec) { s.Linux.UIDMappings[0].ContainerID = 1 },
		"gid 70000":            func(s *specs.Spec) { s.Process.User.AdditionalGids = []uint32{70000} },
		"rootfsPropagation":    func(s *specs.Spec) { s.Linux.RootfsPropagation = "rshared" },
		"no user namespace":    func(s *specs.Spec) { s.Linux.Namespaces = baseSpec().Linux.Namespaces },
		"both are needed":      func(s *specs.Spec) { s.Linux.GIDMappings = nil },
	} {
		spec := userSpec("run")
		change(spec)
		err := validate(goldenInput(spec, newKernel))
		if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	spec := userSpec("run")
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/x", Type: "bind", Source: "/srv/x", Options: []string{"rshared"}})
	if _, err := compileCreate(goldenInput(spec, newKernel)); err == nil || !strings.Contains(err.Error(), "mounts[5] /x: shared propagation") {
		t.Errorf("a shared mount: %v", err)
	}
}

// TestUserPod makes a pod's namespaces and a container that joins them.
func TestUserPod(t *testing.T) {
	r := newRuntime(t)
	mapping := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	pod, err := r.NewPod(t.Context(), PodConfig{
		User: &UserMappings{mapping, mapping}, Network: true, IPC: true, UTS: true, PID: true, Hostname: "podded", ShmSize: 1 << 20,
		Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "82", "kernel.shmmni": "4097"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stage.End(pod.Holder.Pidfd); pod.close() })
	spec := userSpec("view", "/proc/sys/net/ipv4/ip_unprivileged_port_start", "/proc/sys/kernel/shmmni", "/proc/1/status")
	spec.Hostname = ""
	spec.Linux.UIDMappings, spec.Linux.GIDMappings = mapping, mapping
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm"})
	p, out, w := create(t, r, Config{ID: "x", Spec: spec, Rootfs: rootfs(t), Namespaces: pod.Namespaces, Shm: pod.Shm, Proc: pod.Proc})
	text, code := finish(t, p, out, w)
	v := look(t, text)
	if code != 0 || v.Hostname != "podded" || v.PidOne == 1 || v.Files["/proc/sys/net/ipv4/ip_unprivileged_port_start"] != "82\n" ||
		v.Files["/proc/sys/kernel/shmmni"] != "4097\n" || !strings.Contains(v.Files["/proc/1/status"], "Uid:\t65534\t65534") {
		t.Errorf("code %d, %+v", code, v)
	}
	again, err := r.NewPod(t.Context(), PodConfig{User: &UserMappings{mapping, mapping}, UserNamespace: pod.Namespaces[specs.UserNamespace], UTS: true, Hostname: "again"})
	if err != nil {
		t.Fatal(err)
	}
	defer again.close()
	if again.Namespaces[specs.UserNamespace] != nil || again.Namespaces[specs.UTSNamespace] == nil {
		t.Errorf("made %v", again.Namespaces)
	}
}

func TestMapsOwners(t *testing.T) {
	r := newRuntime(t)
	if err := r.MapsOwners(t.Context(), t.TempDir()); err != nil {
		t.Error(err)
	}
	if err := r.MapsOwners(t.Context(), "/proc"); err == nil || !strings.Contains(err.Error(), "/proc does not map owners") {
		t.Errorf("of /proc: %v", err)
	}
}

func TestMapRange(t *testing.T) {
	gids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 1000, Size: 10}, {ContainerID: 10, HostID: 5000, Size: 10}}
	for value, want := range map[string]string{"0 9": "1000 1009", "12\t13": "5002 5003", "1 0": "1 0", "0 10": "", "0 30": "", "x": ""} {
		got, err := mapRange(value, gids)
		if got != want || (err != nil) != (want == "") {
			t.Errorf("%q: %q, %v", value, got, err)
		}
	}
}

// TestScratchOverlay has a writable overlay, such as an image's own volume, with the owner that the image says.
func TestScratchOverlay(t *testing.T) {
	r := newRuntime(t)
	dir := t.TempDir()
	for _, d := range []string{"lower", "upper", "work"} {
		if err := os.Mkdir(dir+"/"+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.WriteFile(dir+"/lower/written", nil, 0o600), os.Chown(dir+"/lower/written", 5, 6), os.Chown(dir+"/upper", 100005, 200006)); err != nil {
		t.Fatal(err)
	}
	spec := userSpec("owners", "/mapped", "/mapped/written")
	spec.Root.Readonly = true
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/mapped", Type: "overlay", Source: "overlay", Options: []string{
		"workdir=" + dir + "/work", "upperdir=" + dir + "/upper", "lowerdir=" + dir + "/lower", "index=off", "volatile",
	}})
	for range 2 { // what a volatile overlay leaves is no obstacle
		p, out, w := create(t, r, Config{ID: "x", Spec: spec, Rootfs: rootfs(t), Cgroup: group(t)})
		text, code := finish(t, p, out, w)
		for _, want := range []string{"/mapped 5:6", "/mapped/written 5:6", "open /written: read-only file system"} {
			if code != 0 || !strings.Contains(text, want+"\n") {
				t.Errorf("code %d, no %q in:\n%s", code, want, text)
			}
		}
	}
}
