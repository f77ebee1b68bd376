package native

import (
	"errors"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native/stage"
)

// running starts a container that sleeps and is killed at the end of the test.
func running(t testing.TB, r *Runtime, c Config) *Process {
	t.Helper()
	p, out, w := create(t, r, c)
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, err := io.ReadFull(out, make([]byte, len("sleeping"))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stage.End(p.Pidfd) })
	return p
}

func TestExecJoinsTheContainer(t *testing.T) {
	r := newRuntime(t)
	spec := baseSpec("sleep")
	g := group(t)
	p := running(t, r, Config{ID: "x", Spec: spec, Rootfs: rootfs(t), Cgroup: g})
	process := *baseSpec("view", "/etc/hidden").Process
	process.User.UID = 5
	process.Cwd = "/etc"
	pr, pw, _ := os.Pipe()
	defer pr.Close()
	e, err := r.Exec(t.Context(), ExecConfig{Spec: spec, Process: &process, Target: p.Pidfd, Stdout: pw, Stderr: pw, Cgroup: g})
	if err != nil {
		t.Fatal(err)
	}
	pids, err := g.Pids()
	if err != nil || len(pids) != 2 {
		t.Errorf("processes in the cgroup: %v, %v", pids, err)
	}
	pw.Close()
	out, _ := io.ReadAll(pr)
	if code := status(t, e.Pidfd); code != 0 {
		t.Fatalf("exit code %d: %s", code, out)
	}
	v := look(t, string(out))
	if v.UID != 5 || v.Cwd != "/etc" || v.Hostname != "box" || v.PidOne == 1 || v.Parent != 0 || v.Files["/etc/hidden"] != "" ||
		v.Status["CapBnd"] != "0000000000000421" || v.Status["NoNewPrivs"] != "1" || strings.Join(v.FDs, "") != "012" {
		t.Errorf("the process sees %+v", v)
	}
}

func TestExecErrors(t *testing.T) {
	r := newRuntime(t)
	spec := baseSpec("sleep")
	p := running(t, r, Config{ID: "x", Spec: spec, Rootfs: rootfs(t)})
	for _, test := range []struct {
		args []string
		cwd  string
		want string
		kind error
	}{
		{[]string{"nothing"}, "/", `exec: "nothing": executable file not found in $PATH`, errdefs.ErrNotFound},
		{[]string{"/bin/nothing"}, "/", `exec: "/bin/nothing": no such file or directory`, errdefs.ErrNotFound},
		{[]string{"/etc/plain"}, "/", `exec: "/etc/plain": permission denied`, unix.EACCES},
		{[]string{"inside"}, "/not/there", "process.cwd: call", unix.ENOENT},
		{[]string{"inside"}, "/proc/self/fd/0", "process.cwd: call", nil},
		{nil, "/", "process.args: no program is named", errdefs.ErrInvalidArgument},
		{[]string{"inside"}, "rel", `process.cwd: "rel" is not an absolute path`, errdefs.ErrInvalidArgument},
	} {
		process := *spec.Process
		process.Args, process.Cwd = test.args, test.cwd
		_, err := r.Exec(t.Context(), ExecConfig{Spec: spec, Process: &process, Target: p.Pidfd})
		if err == nil || !strings.Contains(err.Error(), test.want) || test.kind != nil && !errors.Is(err, test.kind) {
			t.Errorf("exec of %q in %s: %v, want %s", test.args, test.cwd, err, test.want)
		}
	}
	if children := zombies(t); children != 0 {
		t.Errorf("%d processes of failed execs are left", children)
	}
}

// zombies counts children of ours that ended and were not reaped.
func zombies(t *testing.T) int {
	t.Helper()
	var info unix.Siginfo
	n := 0
	if err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err == nil && info.Signo != 0 {
		n++
	}
	return n
}

func TestCreateErrorsLeaveNothing(t *testing.T) {
	r := newRuntime(t)
	for name, change := range map[string]func(*specs.Spec){
		"no such program": func(s *specs.Spec) { s.Process.Args = []string{"nothing"} },
		"a user namespace without mappings": func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		},
		"a sysctl of the host":    func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"vm.swappiness": "1"} },
		"a sysctl that leads out": func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net.//.vm.swappiness": "1"} },
		"a bind without source": func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "bind", Source: "/does/not/exist"})
		},
		"an unknown filesystem": func(s *specs.Spec) { s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "nofs"}) },
		"a hook without a path": func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "true"}}} },
		"a NUL in an argument":  func(s *specs.Spec) { s.Process.Args = []string{"inside", "a\x00b"} },
		"an unknown capability": func(s *specs.Spec) { s.Process.Capabilities.Bounding = []string{"CAP_FLY"} },
	} {
		t.Run(name, func(t *testing.T) {
			spec := baseSpec("exit", "0")
			change(spec)
			p, err := r.Create(t.Context(), Config{ID: "x", Spec: spec, Rootfs: rootfs(t)})
			if err == nil {
				err = p.Start(t.Context())
			}
			if err == nil {
				t.Fatal("it ran")
			}
			t.Log(err)
			if n := zombies(t); n != 0 {
				t.Errorf("%d processes are left", n)
			}
		})
	}
}

func TestPodSharesItsNamespaces(t *testing.T) {
	for name, detached := range map[string]bool{"as the kernel can": true, "as on older kernels": false} {
		t.Run(name, func(t *testing.T) {
			r := newRuntime(t)
			r.host.CloneDetached = r.host.CloneDetached && detached
			r.host.ProcPidns = r.host.ProcPidns && detached
			r.host.LowerdirPlus = r.host.LowerdirPlus && detached
			podShares(t, r)
		})
	}
}

func podShares(t *testing.T, r *Runtime) {
	pod, err := r.NewPod(t.Context(), PodConfig{IPC: true, UTS: true, PID: true, ShmSize: 1 << 20, Hostname: "together", Sysctls: map[string]string{"kernel.msgmax": "9000"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pod.close(); stage.End(pod.Holder.Pidfd) })
	shared := func(s *specs.Spec) Config {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm"})
		return Config{ID: "x", Spec: s, Rootfs: rootfs(t), Namespaces: pod.Namespaces, Shm: pod.Shm, Proc: pod.Proc}
	}
	first := running(t, r, shared(baseSpec("sleep")))
	pw, out, w := create(t, r, shared(baseSpec("write", "/dev/shm/note")))
	if text, code := finish(t, pw, out, w); code != 0 {
		t.Fatalf("exit code %d: %s", code, text)
	}
	spec := baseSpec("view", "/dev/shm/note", "/proc/1/comm", "/proc/2/cmdline", "/proc/sys/kernel/msgmax", "/proc/1/root/etc")
	p, out, w := create(t, r, shared(spec))
	text, code := finish(t, p, out, w)
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, text)
	}
	v := look(t, text)
	if v.Hostname != "together" || v.Files["/proc/1/comm"] != "criserver-hold\n" || v.PidOne <= 2 || v.Files["/proc/sys/kernel/msgmax"] != "9000\n" {
		t.Errorf("the second container sees %+v", v)
	}
	if v.Files["/dev/shm/note"] != "written" {
		t.Errorf("shared memory: %q", v.Files["/dev/shm/note"])
	}
	if mounts := strings.Join(v.Mounts, "\n"); !strings.Contains(mounts, "/dev/shm tmpfs rw,nosuid,nodev,noexec,relatime,size=1024k") {
		t.Errorf("mounts %s", mounts)
	}
	if !strings.HasPrefix(v.Files["/proc/2/cmdline"], "inside\x00sleep") {
		t.Errorf("the first container is not seen: %q", v.Files)
	}
	holder, err := os.ReadFile("/proc/" + strconv.Itoa(pod.Holder.Pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000", "Uid:\t65534\t65534\t65534\t65534"} {
		if !strings.Contains(string(holder), want) {
			t.Errorf("the holder's status lacks %q", want)
		}
	}
	entries, err := os.ReadDir("/proc/" + strconv.Itoa(pod.Holder.Pid) + "/root")
	if err != nil || len(entries) != 0 {
		t.Errorf("the holder's root: %v, %v", entries, err)
	}
	if first.Pid == p.Pid {
		t.Error("two containers with one pid")
	}
}

func TestTerminal(t *testing.T) {
	r := newRuntime(t)
	spec := baseSpec("view")
	spec.Process.Terminal = true
	spec.Process.ConsoleSize = &specs.Box{Width: 123, Height: 45}
	spec.Process.User.UID = 1000
	p, err := r.Create(t.Context(), Config{ID: "x", Spec: spec, Rootfs: rootfs(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Console.Close()
	if size, err := unix.IoctlGetWinsize(int(p.Console.Fd()), unix.TIOCGWINSZ); err != nil || size.Col != 123 || size.Row != 45 {
		t.Errorf("the window is %+v, %v", size, err)
	}
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(10*time.Second, func() { _ = unix.PidfdSendSignal(int(p.Pidfd.Fd()), unix.SIGKILL, nil, 0) })
	out, _ := io.ReadAll(p.Console) // ends with EIO when the last slave is closed
	if code := status(t, p.Pidfd); code != 0 {
		t.Fatalf("exit code %d: %s", code, out)
	}
	v := look(t, string(out))
	if !v.Terminal || !strings.Contains(strings.Join(v.Dev, " "), "console") || strings.Join(v.FDs, "") != "012" {
		t.Errorf("the process sees %+v", v)
	}
}

func TestReadonlyRoot(t *testing.T) {
	r := newRuntime(t)
	for _, readonly := range []bool{true, false} {
		spec := baseSpec("write", "/etc/new")
		spec.Root.Readonly = readonly
		p, out, w := create(t, r, Config{ID: "x", Spec: spec, Rootfs: rootfs(t)})
		text, code := finish(t, p, out, w)
		if readonly != strings.Contains(text, "read-only file system") || readonly != (code == 1) {
			t.Errorf("readonly %v: exit code %d, %q", readonly, code, text)
		}
	}
}

// A bind's target is looked up beneath the container's root, whatever links the image has.
func TestMountTargetsStayInside(t *testing.T) {
	r := newRuntime(t)
	m := rootfs(t)
	lower := strings.TrimPrefix(strings.Split(m.Options[0], ":")[0], "lowerdir=")
	outside := t.TempDir()
	for name, target := range map[string]string{"up": "../../../../../../.." + outside, "abs": outside, "proc-link": "/proc/self/root"} {
		if err := os.Symlink(target, lower+"/"+name); err != nil {
			t.Fatal(err)
		}
	}
	spec := baseSpec("view", "/up/in/file", "/abs/in/file")
	data := t.TempDir()
	if err := os.WriteFile(data+"/file", []byte("mounted"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(lower+outside, 0o755); err != nil { // what the links mean inside
		t.Fatal(err)
	}
	for _, d := range []string{"/up/in", "/abs/in"} {
		spec.Mounts = append(spec.Mounts, specs.Mount{Destination: d, Type: "bind", Source: data, Options: []string{"rbind"}})
	}
	p, out, w := create(t, r, Config{ID: "x", Spec: spec, Rootfs: m})
	text, code := finish(t, p, out, w)
	v := look(t, text)
	if code != 0 || v.Files["/up/in/file"] != "mounted" || v.Files["/abs/in/file"] != "mounted" {
		t.Errorf("exit code %d, %v", code, v.Files)
	}
	if entries, _ := os.ReadDir(outside); len(entries) != 0 {
		t.Errorf("made outside: %v", entries)
	}
	spec = baseSpec("exit", "0")
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/proc-link/x", Type: "bind", Source: data})
	if _, err := r.Create(t.Context(), Config{ID: "x", Spec: spec, Rootfs: m}); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a link of /proc was followed: %v", err)
	}
}

// tiny is a root filesystem with the smallest program there is: the stage, which ends with 2 when it finds no plan.
func tiny(b testing.TB) *Mount {
	b.Helper()
	m := rootfs(b)
	program, err := os.ReadFile("stage/stage_" + runtime.GOARCH)
	if err != nil {
		b.Fatal(err)
	}
	lower := strings.TrimPrefix(strings.Split(m.Options[0], ":")[0], "lowerdir=")
	if err := os.WriteFile(lower+"/bin/tiny", program, 0o755); err != nil {
		b.Fatal(err)
	}
	return m
}

func BenchmarkCreateStartWait(b *testing.B) {
	r := newRuntime(b)
	m, g := tiny(b), group(b)
	spec := baseSpec("exit", "0")
	spec.Process.Args = []string{"/bin/tiny"}
	for b.Loop() {
		p, err := r.Create(b.Context(), Config{ID: "x", Spec: spec, Rootfs: m, Cgroup: g})
		if err != nil {
			b.Fatal(err)
		}
		if err := p.Start(b.Context()); err != nil {
			b.Fatal(err)
		}
		status(b, p.Pidfd)
	}
}

func BenchmarkExec(b *testing.B) {
	r := newRuntime(b)
	spec := baseSpec("sleep")
	g := group(b)
	p := running(b, r, Config{ID: "x", Spec: spec, Rootfs: tiny(b), Cgroup: g})
	process := *spec.Process
	process.Args = []string{"/bin/tiny"}
	for b.Loop() {
		e, err := r.Exec(b.Context(), ExecConfig{Spec: spec, Process: &process, Target: p.Pidfd, Cgroup: g})
		if err != nil {
			b.Fatal(err)
		}
		status(b, e.Pidfd)
	}
}

func BenchmarkCompile(b *testing.B) {
	for b.Loop() {
		built, err := compileCreate(goldenInput(goldenSpec(), newKernel))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := built.plan.Encode(); err != nil {
			b.Fatal(err)
		}
	}
}
