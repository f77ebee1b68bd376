package oci_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// program is criserver-shim under the name that makes it an OCI runtime.
var program string

// TestMain is also the program in the containers.
func TestMain(m *testing.M) {
	if os.Args[0] == "inside" {
		os.Exit(inside(os.Args[1:]))
	}
	dir, err := os.MkdirTemp("", "oci-programs")
	if err != nil {
		panic(err)
	}
	program = filepath.Join(dir, "criserver-oci")
	build := exec.Command("go", "build", "-o", program, "../../cmd/criserver-shim")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

func inside(args []string) int {
	switch args[0] {
	case "sleep":
		fmt.Println("sleeping")
		time.Sleep(time.Hour)
	case "exit":
		var code int
		fmt.Sscan(args[1], &code)
		return code
	case "echo":
		fmt.Println(strings.Join(args[1:], " "))
	case "tty":
		_, err := unix.IoctlGetTermios(0, unix.TCGETS)
		fmt.Println("terminal", err == nil)
	case "reopen": // as programs do that log to /dev/stdout
		f, err := os.OpenFile("/dev/stdout", os.O_WRONLY, 0)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Fprintln(f, "uid", os.Getuid())
	}
	return 0
}

// rig is a bundle and a state directory.
type rig struct {
	t            *testing.T
	root, bundle string
	spec         *specs.Spec
}

func newRig(t *testing.T, args ...string) *rig {
	t.Helper()
	dir := t.TempDir()
	r := &rig{t: t, root: filepath.Join(dir, "state"), bundle: filepath.Join(dir, "bundle")}
	for _, d := range []string{"rootfs/proc", "rootfs/dev", "rootfs/bin", "rootfs/sys"} {
		if err := os.MkdirAll(filepath.Join(r.bundle, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", self, r.bundle+"/rootfs/bin/inside").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	r.spec = &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Args: append([]string{"inside"}, args...), Env: []string{"PATH=/bin"}, Cwd: "/"},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=755"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666", "mode=0620"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: "/" + filepath.Base(dir) + "-" + filepath.Base(t.TempDir()) + fmt.Sprint(os.Getpid()),
			Namespaces:  []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}},
		},
		Annotations: map[string]string{"a": "b"},
	}
	t.Cleanup(func() {
		out, _ := r.try("list", "--quiet")
		for id := range strings.FieldsSeq(out) {
			r.must("delete", "--force", id)
		}
		if left, _ := os.ReadDir(r.root); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
		if left, _ := filepath.Glob("/sys/fs/cgroup/*" + r.spec.Linux.CgroupsPath); len(left) > 0 {
			t.Errorf("cgroups are left: %v", left)
		}
	})
	return r
}

func (r *rig) write() {
	r.t.Helper()
	b, err := json.Marshal(r.spec)
	if err == nil {
		err = os.WriteFile(filepath.Join(r.bundle, "config.json"), b, 0o600)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) command(args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	r.t.Cleanup(cancel)
	return exec.CommandContext(ctx, program, append([]string{"--root", r.root}, args...)...)
}

// try runs a command whose output is kept in a file: who inherits a pipe would keep us waiting.
func (r *rig) try(args ...string) (string, error) {
	f, err := os.CreateTemp(r.t.TempDir(), "out")
	if err != nil {
		return "", err
	}
	defer f.Close()
	cmd := r.command(args...)
	cmd.Stdout, cmd.Stderr = f, f
	err = cmd.Run()
	b, _ := os.ReadFile(f.Name())
	return string(b), err
}

func (r *rig) must(args ...string) string {
	r.t.Helper()
	out, err := r.try(args...)
	if err != nil {
		r.t.Fatalf("%v: %v: %s", args, err, out)
	}
	return out
}

func (r *rig) refused(want string, args ...string) {
	r.t.Helper()
	if out, err := r.try(args...); err == nil || !strings.Contains(out, want) {
		r.t.Errorf("%v: %v: %s; want %q", args, err, out, want)
	}
}

func (r *rig) state(id string) (s struct {
	specs.State
	Rootfs string
}) {
	r.t.Helper()
	if err := json.Unmarshal([]byte(r.must("state", id)), &s); err != nil {
		r.t.Fatal(err)
	}
	return s
}

func (r *rig) await(id string, want specs.ContainerState) {
	r.t.Helper()
	for deadline := time.Now().Add(5 * time.Second); r.state(id).Status != want; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("%s is %s, not %s", id, r.state(id).Status, want)
		}
	}
}

func code(err error) int {
	var e *exec.ExitError
	if errors.As(err, &e) {
		return e.ExitCode()
	}
	return -1
}

func TestLifecycle(t *testing.T) {
	r := newRig(t, "sleep")
	r.write()
	pidFile := filepath.Join(t.TempDir(), "pid")
	r.must("create", "--bundle", r.bundle, "--pid-file", pidFile, "c")
	s := r.state("c")
	pid, _ := os.ReadFile(pidFile)
	if s.Status != "created" || s.ID != "c" || s.Version != specs.Version || s.Bundle != r.bundle || s.Rootfs != r.bundle+"/rootfs" || s.Annotations["a"] != "b" || fmt.Sprint(s.Pid) != string(pid) {
		t.Errorf("%+v, pid file %q", s, pid)
	}
	r.refused("exists already", "create", "--bundle", r.bundle, "c")
	r.refused("not paused", "resume", "c")
	r.must("start", "c")
	r.await("c", "running")
	r.refused("it is running, not created", "start", "c")
	r.refused("that is not stopped", "delete", "c")
	if out := r.must("exec", "c", "inside", "echo", "a", "b"); out != "a b\n" {
		t.Errorf("exec: %q", out)
	}
	if out, err := r.try("exec", "c", "inside", "exit", "7"); code(err) != 7 {
		t.Errorf("exec: %v %s", err, out)
	}
	r.refused("executable file not found", "exec", "c", "nothing")
	r.must("pause", "c")
	if s := r.state("c"); s.Status != "paused" {
		t.Errorf("%s after pause", s.Status)
	}
	r.refused("it is paused", "exec", "c", "inside", "echo")
	r.must("resume", "c")
	var pids []int
	if err := json.Unmarshal([]byte(r.must("ps", "--format", "json", "c")), &pids); err != nil || len(pids) != 1 || pids[0] != s.Pid {
		t.Errorf("ps: %v %v", pids, err)
	}
	if out := r.must("list"); !strings.Contains(out, "running") || !strings.Contains(out, r.bundle) {
		t.Errorf("list: %s", out)
	}
	r.must("update", "--pids-limit", "33", "c")
	r.must("kill", "c", "KILL")
	r.await("c", "stopped")
	r.refused("container not running", "kill", "c")
	r.refused("it is stopped", "exec", "c", "inside", "echo")
	r.must("delete", "c")
	r.refused("does not exist", "state", "c")
	r.must("delete", "--force", "c")
}

func TestRun(t *testing.T) {
	r := newRig(t, "exit", "5")
	r.write()
	if out, err := r.try("run", "--bundle", r.bundle, "c"); code(err) != 5 || out != "" {
		t.Errorf("%v %s", err, out)
	}
	r.spec.Process.Args = []string{"inside", "reopen"}
	r.spec.Process.User.UID = 1000
	r.write()
	if out := r.must("run", "--bundle", r.bundle, "c"); out != "uid 1000\n" {
		t.Errorf("%s", out)
	}
	r.spec.Process.Args = []string{"nothing"}
	r.write()
	r.refused(`"nothing": executable file not found`, "run", "--bundle", r.bundle, "c")
	r.spec.Process.Args = []string{"inside", "sleep"}
	r.write()
	r.must("run", "--detach", "--bundle", r.bundle, "c")
	r.await("c", "running")
	cmd := r.command("exec", "c", "inside", "sleep") // a signal is passed on
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = out.Read(make([]byte, 1))
	_ = cmd.Process.Signal(unix.SIGTERM)
	if err := cmd.Wait(); code(err) != 2 && code(err) != 143 {
		t.Errorf("exec that got SIGTERM: %v", err)
	}
}

// What fails after the command of create has ended is told by start.
func TestStartTellsWhatFailed(t *testing.T) {
	r := newRig(t)
	r.spec.Process.Args = []string{"/bin/nothing"}
	r.write()
	r.must("create", "--bundle", r.bundle, "c")
	r.refused(`exec: "/bin/nothing": no such file or directory`, "start", "c")
	r.await("c", "stopped")
	r.must("delete", "c")
}

func TestRefused(t *testing.T) {
	r := newRig(t, "sleep")
	r.write()
	for want, args := range map[string][]string{
		"--no-pivot":         {"create", "--no-pivot", "--bundle", r.bundle, "c"},
		"--preserve-fds 2":   {"create", "--preserve-fds", "2", "--bundle", r.bundle, "c"},
		"container id":       {"create", "--bundle", r.bundle, "../c"},
		"no such file":       {"create", "--bundle", r.bundle + "/none", "c"},
		"--console-socket":   {"create", "--console-socket", "/none", "--bundle", r.bundle, "c"},
		"one container":      {"start"},
		"signal \"NONE\"":    {"kill", "c", "NONE"},
		"usage":              {"nothing"},
		"--log-format \"x\"": {"--log-format", "x", "list"},
		"systemd":            {"--systemd-cgroup", "create", "--bundle", r.bundle, "c"},
	} {
		r.refused(want, args...)
	}
	r.spec.Version = "2.0.0"
	r.write()
	r.refused("ociVersion", "create", "--bundle", r.bundle, "c")
}

func TestErrorsGoToTheLog(t *testing.T) {
	r := newRig(t, "sleep")
	log := filepath.Join(t.TempDir(), "log")
	r.refused("does not exist", "--log", log, "--log-format", "json", "state", "none")
	b, err := os.ReadFile(log)
	var line struct{ Level, Msg, Time string }
	if err != nil || json.Unmarshal(b, &line) != nil || line.Level != "error" || !strings.Contains(line.Msg, "does not exist") || line.Time == "" {
		t.Errorf("%v: %s", err, b)
	}
}

// Hooks run in the commands that they belong to, those of the end also when the start fails.
func TestHooks(t *testing.T) {
	r := newRig(t, "sleep")
	file := filepath.Join(t.TempDir(), "hooks")
	hook := func(name string) []specs.Hook {
		return []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo " + name + " >>" + file}, Env: []string{"PATH=/bin:/usr/bin"}}}
	}
	noted := func(want string) {
		t.Helper()
		b, _ := os.ReadFile(file)
		if got := strings.Join(strings.Fields(string(b)), " "); got != want {
			t.Errorf("hooks: %q, want %q", got, want)
		}
	}
	r.spec.Hooks = &specs.Hooks{
		CreateRuntime: hook("createRuntime"), CreateContainer: hook("createContainer"), Poststart: hook("poststart"), Poststop: hook("poststop"),
		StartContainer: []specs.Hook{{Path: "/bin/inside", Args: []string{"inside", "exit", "0"}}},
	}
	r.write()
	r.must("create", "--bundle", r.bundle, "c")
	noted("createRuntime createContainer")
	r.must("start", "c")
	noted("createRuntime createContainer poststart")
	r.must("delete", "--force", "c")
	noted("createRuntime createContainer poststart poststop")
	r.spec.Hooks.StartContainer[0].Args = []string{"inside", "exit", "3"}
	r.write()
	r.must("create", "--bundle", r.bundle, "c")
	r.refused("hooks.startContainer[0] /bin/inside: exit code 3", "start", "c")
	r.await("c", "stopped")
	r.must("delete", "c")
	r.spec.Hooks.CreateRuntime = []specs.Hook{{Path: "/bin/false"}}
	r.write()
	_ = os.Remove(file)
	r.refused("hooks.createRuntime[0] /bin/false: exit code 1", "create", "--bundle", r.bundle, "c")
	noted("poststop")
}

func TestConsoleSocket(t *testing.T) {
	r := newRig(t, "tty")
	r.spec.Process.Terminal = true
	r.write()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r.must("create", "--bundle", r.bundle, "--console-socket", path, "c")
	conn, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	name, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	n, on, _, _, err := conn.ReadMsgUnix(name, oob)
	if err != nil || n == 0 {
		t.Fatal(n, err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:on])
	if err != nil || len(messages) != 1 {
		t.Fatal(messages, err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		t.Fatal(err)
	}
	master := os.NewFile(uintptr(fds[0]), "master")
	defer master.Close()
	r.must("start", "c")
	var out bytes.Buffer
	_, _ = io.Copy(&out, master)
	if !strings.Contains(out.String(), "terminal true") {
		t.Errorf("%q", out.String())
	}
	r.await("c", "stopped")
}

// A create that is killed leaves what delete removes.
func TestKilledCreate(t *testing.T) {
	r := newRig(t, "sleep")
	r.spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/sleep", Args: []string{"sleep", "2"}}}}
	r.write()
	cmd := r.command("create", "--bundle", r.bundle, "c")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Lstat(filepath.Join(r.root, "c", "start")); err == nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	time.Sleep(100 * time.Millisecond)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if s := r.state("c"); s.Status != "stopped" {
		t.Errorf("%s", s.Status)
	}
	r.must("delete", "c")
}

// Without a daemon, what a config.json says is made; what would be, plan prints.
func TestPlanAndFeatures(t *testing.T) {
	r := newRig(t, "sleep")
	r.write()
	out := r.must("plan", filepath.Join(r.bundle, "config.json"))
	for _, call := range []string{"pivot_root", "execve", r.bundle + "/rootfs"} {
		if !strings.Contains(out, call) {
			t.Errorf("no %s in the plan", call)
		}
	}
	for name, content := range map[string]string{"empty": "", "other": "{}"} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		r.refused(path, "plan", path)
	}
	var f struct{ Hooks []string }
	if err := json.Unmarshal([]byte(r.must("features")), &f); err != nil || len(f.Hooks) != 6 {
		t.Errorf("%v %v", f, err)
	}
	dir := t.TempDir()
	r.must("spec", "--bundle", dir)
	r.refused("is there already", "spec", "--bundle", dir)
	if out := r.must("--version"); !strings.Contains(out, specs.Version) {
		t.Errorf("%s", out)
	}
}

// Without a mount namespace the container's mounts are the host's, and gone with it.
func TestHostMounts(t *testing.T) {
	r := newRig(t, "sleep")
	r.spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.PIDNamespace}}
	r.spec.Linux.MaskedPaths = []string{"/sys"}
	r.write()
	r.must("run", "--detach", "--bundle", r.bundle, "c")
	root := fmt.Sprintf("/proc/%d/root", r.state("c").Pid)
	if target, err := os.Readlink(root); err != nil || target != r.bundle+"/rootfs" {
		t.Errorf("its root is %s, %v", target, err)
	}
	r.refused("mount namespace is required", "exec", "c", "inside", "echo")
	r.must("delete", "--force", "c")
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(b), r.bundle) {
		t.Errorf("mounts are left, %v", err)
	}
}

// A mount namespace that is there already is entered by its path.
func TestMountNamespaceByPath(t *testing.T) {
	r := newRig(t, "sleep")
	holder := exec.Command("unshare", "--mount", "--propagation", "private", "sleep", "100")
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = holder.Process.Kill(); _ = holder.Wait() }()
	path := fmt.Sprintf("/proc/%d/ns/mnt", holder.Process.Pid)
	own, _ := os.Readlink("/proc/self/ns/mnt")
	for {
		if ns, err := os.Readlink(path); err == nil && ns != own {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	want, _ := os.Readlink(path)
	r.spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace, Path: path}}
	r.write()
	r.must("run", "--detach", "--bundle", r.bundle, "c")
	if got, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", r.state("c").Pid)); got != want || err != nil {
		t.Errorf("it is in %s, %v, want %s", got, err, want)
	}
	if out := r.must("exec", "c", "inside", "echo", "a"); out != "a\n" {
		t.Errorf("%s", out)
	}
}
