package native

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native/cgroup"
	"github.com/criserver/criserver/shim/native/stage"
)

// The test binary is also the program in the containers: the first argument says what it does there.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[0] == "inside" {
		os.Exit(inside(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// view is what a program in a container sees.
type view struct {
	Args, Env             []string
	Cwd, Hostname         string
	UID, GID              int
	Groups                []int
	Status                map[string]string
	Mounts                []string // "target type options"
	Dev                   []string
	Files                 map[string]string // content, or the error
	FDs                   []string
	Nofile, OOM           string
	PidOne, Parent        int
	Terminal              bool
	Cgroup                string
	MountsBelowSysWritten string
	SessionKeyring        int
	Namespaces            map[string]string
}

func inside(args []string) int {
	switch args[0] {
	case "view":
		return printView(args[1:])
	case "owners":
		return printOwners(args[1:])
	case "exit":
		var code int
		fmt.Sscan(args[1], &code)
		return code
	case "sleep":
		fmt.Println("sleeping")
		time.Sleep(time.Hour)
	case "chmod":
		for _, f := range args[1:] {
			fmt.Println(os.Chmod(f, 0o600))
		}
	case "hook":
		return hookInside(args[1])
	case "write":
		if err := os.WriteFile(args[1], []byte("written"), 0o600); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	return 0
}

func printView(files []string) int {
	v := view{Args: os.Args, Env: os.Environ(), UID: os.Getuid(), GID: os.Getgid(), Status: map[string]string{}, Files: map[string]string{}, PidOne: os.Getpid(), Parent: os.Getppid()}
	v.Cwd, _ = os.Getwd()
	v.Hostname, _ = os.Hostname()
	v.Groups, _ = os.Getgroups()
	status, _ := os.ReadFile("/proc/self/status")
	for _, line := range strings.Split(string(status), "\n") {
		if k, value, ok := strings.Cut(line, ":\t"); ok {
			v.Status[k] = value
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for _, line := range strings.Split(strings.TrimSpace(string(mounts)), "\n") {
		if f := strings.Fields(line); len(f) > 3 {
			v.Mounts = append(v.Mounts, strings.Join(f[1:4], " "))
		}
	}
	v.Namespaces = map[string]string{}
	for _, kind := range []string{"user", "mnt", "net", "pid", "cgroup"} {
		v.Namespaces[kind], _ = os.Readlink("/proc/self/ns/" + kind)
	}
	entries, _ := os.ReadDir("/dev")
	for _, e := range entries {
		v.Dev = append(v.Dev, e.Name())
	}
	for _, f := range files {
		if st, err := os.Stat(f); err == nil && st.IsDir() {
			inside, _ := os.ReadDir(f)
			v.Files[f] = fmt.Sprintf("%d entries", len(inside))
			continue
		}
		content, err := os.ReadFile(f)
		v.Files[f] = string(content)
		if err != nil {
			v.Files[f] = err.Error()
		}
	}
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, e := range fds {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && !strings.HasPrefix(target, "anon_inode:") && !strings.Contains(target, "/fd") {
			v.FDs = append(v.FDs, e.Name())
		}
	}
	limits, _ := os.ReadFile("/proc/self/limits")
	for _, line := range strings.Split(string(limits), "\n") {
		if strings.HasPrefix(line, "Max open files") {
			v.Nofile = strings.Join(strings.Fields(line)[3:5], " ")
		}
	}
	oom, _ := os.ReadFile("/proc/self/oom_score_adj")
	v.OOM = strings.TrimSpace(string(oom))
	group, _ := os.ReadFile("/proc/self/cgroup")
	v.Cgroup = string(group)
	_, err := unix.IoctlGetTermios(0, unix.TCGETS)
	v.Terminal = err == nil
	v.SessionKeyring, _ = unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false)
	_ = json.NewEncoder(os.Stdout).Encode(v)
	return 0
}

// rootfs makes a layer with the test binary in it and the overlay over it.
func rootfs(t testing.TB) *Mount {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"lower/bin", "lower/etc", "lower/secret", "base/proc", "upper", "work"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := exec.Command("cp", self, dir+"/lower/bin/inside").Run(); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"etc/hidden": "secret", "etc/plain": "plain", "secret/key": "secret"} {
		if err := os.WriteFile(filepath.Join(dir, "lower", name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc", dir+"/lower/link"); err != nil {
		t.Fatal(err)
	}
	return &Mount{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=" + dir + "/lower:" + dir + "/base", "upperdir=" + dir + "/upper", "workdir=" + dir + "/work", "index=off", "volatile"}}
}

// baseSpec is a container as the engine asks for it.
func baseSpec(args ...string) *specs.Spec {
	capabilities := []string{"CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"}
	return &specs.Spec{
		Version:  "1.0.2",
		Hostname: "box",
		Root:     &specs.Root{Path: "rootfs"},
		Process: &specs.Process{
			Args: append([]string{"inside"}, args...), Env: []string{"PATH=/usr/bin:/bin", "A=b"}, Cwd: "/",
			Capabilities:    &specs.LinuxCapabilities{Bounding: capabilities, Effective: capabilities, Permitted: capabilities},
			NoNewPrivileges: true,
			Rlimits:         []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 512, Hard: 1000}},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.CgroupNamespace},
			},
			MaskedPaths:   []string{"/proc/kcore", "/proc/acpi", "/etc/hidden", "/secret", "/not/there"},
			ReadonlyPaths: []string{"/proc/sys", "/proc/bus"},
		},
	}
}

func newRuntime(t testing.TB) *Runtime {
	t.Helper()
	r, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// group makes a cgroup for one test.
func group(t testing.TB) *cgroup.Cgroup {
	t.Helper()
	g, err := cgroup.New(fmt.Sprintf("/criserver-test-native-%d-%d", os.Getpid(), time.Now().UnixNano()), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Create(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.Background()
		if err := errors.Join(g.Kill(ctx), g.Remove(ctx)); err != nil {
			t.Error(err)
		}
	})
	return g
}

// finish starts a process, collects what it prints to w's other end, and gives its exit status as waitid has it.
func finish(t testing.TB, p *Process, r, w *os.File) (string, int) {
	t.Helper()
	if p.run != nil {
		if err := p.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(out), status(t, p.Pidfd)
}

func status(t testing.TB, pidfd *os.File) int {
	t.Helper()
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PIDFD, int(pidfd.Fd()), &info, unix.WEXITED, nil); err != nil {
		t.Fatal(err)
	}
	pidfd.Close()
	return int(stage.Status(&info))
}

func create(t testing.TB, r *Runtime, c Config) (*Process, *os.File, *os.File) {
	t.Helper()
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pr.Close(); pw.Close() })
	c.Stdout, c.Stderr = pw, pw
	p, err := r.Create(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return p, pr, pw
}

func look(t testing.TB, out string) view {
	t.Helper()
	var v view
	if err := json.NewDecoder(bytes.NewBufferString(out)).Decode(&v); err != nil {
		t.Fatalf("%v: %q", err, out)
	}
	return v
}

func TestContainerSeesWhatTheSpecSays(t *testing.T) {
	r := newRuntime(t)
	spec := baseSpec("view", "/etc/hidden", "/etc/plain", "/secret", "/proc/kcore", "/proc/acpi", "/link/plain", "/data/file")
	spec.Process.Cwd = "/made/for/it"
	data := t.TempDir()
	if err := os.WriteFile(data+"/file", []byte("mounted"), 0o644); err != nil {
		t.Fatal(err)
	}
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/data", Type: "bind", Source: data, Options: []string{"rbind", "ro"}})
	spec.Process.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{7, 8}}
	spec.Linux.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "81", "kernel.shmmni": "4097"}
	before := hostMounts(t)
	p, out, w := create(t, r, Config{ID: "x", Spec: spec, Rootfs: rootfs(t), Cgroup: group(t)})
	if after := hostMounts(t); after != before {
		t.Errorf("the host's mount table went from %d to %d", before, after)
	}
	text, code := finish(t, p, out, w)
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, text)
	}
	v := look(t, text)
	check := func(what string, got, want any) {
		t.Helper()
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	check("env", v.Env, "[PATH=/usr/bin:/bin A=b]")
	check("cwd", v.Cwd, "/made/for/it")
	check("hostname", v.Hostname, "box")
	if ours, _ := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false); v.SessionKeyring <= 0 || v.SessionKeyring == ours {
		t.Errorf("session keyring %d, and ours is %d", v.SessionKeyring, ours)
	}
	check("ids", []any{v.UID, v.GID, v.Groups}, "[1000 1001 [7 8]]")
	check("pid", []int{v.PidOne, v.Parent}, "[1 0]")
	check("bounding set", v.Status["CapBnd"], "0000000000000421")
	check("effective set", v.Status["CapEff"], "0000000000000000") // an ordinary user, no ambient capabilities
	check("no_new_privs", v.Status["NoNewPrivs"], "1")
	if !strings.HasSuffix(v.Nofile, " 1000") { // a Go program raises its own soft limit
		t.Errorf("nofile: %s", v.Nofile)
	}
	check("descriptors", v.FDs, "[0 1 2]")
	check("masked file", v.Files["/etc/hidden"], "")
	check("masked directory", v.Files["/secret"], "0 entries")
	if kcore := v.Files["/proc/kcore"]; kcore != "" && !strings.Contains(kcore, "no such file") {
		t.Errorf("kcore can be read: %d bytes", len(kcore))
	}
	check("plain file", v.Files["/etc/plain"], "plain")
	check("through a link", v.Files["/link/plain"], "plain")
	check("bind", v.Files["/data/file"], "mounted")
	check("dev", v.Dev, "[fd full mqueue null ptmx pts random stderr stdin stdout tty urandom zero]")
	for _, line := range strings.Split(strings.TrimSpace(v.Cgroup), "\n") {
		if !strings.HasSuffix(line, ":/") {
			t.Errorf("the cgroup namespace shows %q", line)
		}
	}
	for _, want := range []string{"/ overlay", "/proc proc rw,nosuid,nodev,noexec", "/sys sysfs ro,nosuid,nodev,noexec", "/data ", "/proc/sys proc ro", "/dev/pts devpts rw,nosuid,noexec"} {
		if !strings.Contains(strings.Join(v.Mounts, "\n"), want) {
			t.Errorf("no mount %q in %q", want, v.Mounts)
		}
	}
}

// A masked file is the host's /dev/null: root in the container must not be able to change it.
func TestMaskedFilesAreNotWritable(t *testing.T) {
	r := newRuntime(t)
	before, err := os.Stat("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	p, out, w := create(t, r, Config{ID: "x", Spec: baseSpec("chmod", "/etc/hidden", "/secret"), Rootfs: rootfs(t)})
	text, _ := finish(t, p, out, w)
	if strings.Count(text, "read-only file system") != 2 {
		t.Errorf("chmod of masked paths: %s", text)
	}
	if after, _ := os.Stat("/dev/null"); after.Mode() != before.Mode() {
		t.Fatalf("the host's /dev/null went from %v to %v", before.Mode(), after.Mode())
	}
}

func hostMounts(t testing.TB) int {
	t.Helper()
	content, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(content, []byte("\n"))
}
