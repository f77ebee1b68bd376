package shim_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim"
	"github.com/criserver/criserver/shim/api"
)

// programs is where TestMain has built criserver-shim, criserver-keeper and workload.
var programs string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "shim-programs")
	if err != nil {
		panic(err)
	}
	programs = dir
	build := exec.Command("go", "build", "-o", dir, "../cmd/criserver-shim", "../cmd/criserver-keeper", "./testdata/workload")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// node is a keeper and a shim of their own on a state directory of their own.
type node struct {
	*shim.Client
	t     testing.TB
	state string
	log   string
	n     int
	ids   []string
}

func newNode(t testing.TB) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("these tests make namespaces and cgroups: run them as root")
	}
	state, err := os.MkdirTemp("", "shim")
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(state, "log"))
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, state: state, log: log.Name()}
	n.Client, err = shim.Open(t.Context(), shim.Config{
		StateDir: state, ShimPath: filepath.Join(programs, "criserver-shim"), KeeperPath: filepath.Join(programs, "criserver-keeper"), Log: log,
	})
	_ = log.Close()
	if err != nil {
		b, _ := os.ReadFile(n.log)
		t.Fatalf("%v\n%s", err, b)
	}
	t.Cleanup(n.end)
	return n
}

func (n *node) context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	n.t.Cleanup(cancel)
	return ctx
}

// end deletes everything, stops shim and keeper, and checks that nothing is left.
func (n *node) end() {
	ctx := n.context()
	for _, id := range n.ids {
		if err := n.Delete(ctx, &api.DeleteRequest{Id: id, CgroupsPath: n.cgroup(id)}); err != nil {
			n.t.Errorf("delete %s: %v", id, err)
		}
	}
	for i := range n.n + 1 {
		_ = n.StopPod(ctx, "pod"+strconv.Itoa(i))
	}
	info, err := n.Info(ctx)
	if err != nil {
		n.t.Errorf("info at the end: %v", err)
		return
	}
	_ = unix.Kill(int(info.Pid), unix.SIGTERM)
	deadline := time.Now().Add(5 * time.Second)
	for _, pid := range []int32{info.Pid, info.KeeperPid} {
		for alive(int(pid)) {
			if time.Now().After(deadline) {
				n.t.Errorf("process %d does not end", pid)
				_ = unix.Kill(int(pid), unix.SIGKILL)
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	_ = n.Close()
	for _, id := range n.ids {
		found, _ := filepath.Glob("/sys/fs/cgroup/*" + n.cgroup(id))
		if len(found) > 0 {
			n.t.Errorf("cgroups are left: %v", found)
		}
	}
	parents, _ := filepath.Glob("/sys/fs/cgroup/*/" + filepath.Base(n.state))
	for _, p := range parents {
		_ = os.Remove(p)
	}
	if n.t.Failed() {
		b, _ := os.ReadFile(n.log)
		n.t.Logf("log of shim and keeper:\n%s", b)
	}
	_ = os.RemoveAll(n.state)
}

func alive(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && !strings.Contains(string(b), ") Z ")
}

func (n *node) cgroup(id string) string { return "/" + filepath.Base(n.state) + "/" + id }

// container is a prepared container.
type container struct {
	id, dir, log string
	spec         *specs.Spec
	request      *api.StartRequest
}

func (n *node) container(args ...string) *container {
	n.t.Helper()
	n.n++
	id := "c" + strconv.Itoa(n.n)
	n.ids = append(n.ids, id)
	dir := filepath.Join(n.state, "pods", "pod", id)
	root := filepath.Join(n.state, "roots", id)
	for _, d := range []string{dir, filepath.Join(root, "proc"), filepath.Join(root, "dev"), filepath.Join(root, "tmp")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			n.t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(programs, "workload"), filepath.Join(root, "workload")); err != nil {
		n.t.Fatal(err)
	}
	c := &container{id: id, dir: dir, log: filepath.Join(n.state, id+".log")}
	c.spec = &specs.Spec{
		Version:  specs.Version,
		Hostname: "test",
		Root:     &specs.Root{Path: root},
		Process:  process(args...),
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=755"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666", "mode=0620"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: n.cgroup(id),
			Namespaces:  []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}},
		},
	}
	c.request = &api.StartRequest{Id: id, PodId: "pod", Dir: dir, LogPath: c.log, LogFormat: api.LogFormat_LOG_FORMAT_CRI}
	return c
}

func process(args ...string) *specs.Process {
	return &specs.Process{Args: append([]string{"/workload"}, args...), Cwd: "/", Env: []string{"PATH=/"}}
}

func (n *node) start(c *container) *api.StartResponse {
	n.t.Helper()
	r, err := n.tryStart(c)
	if err != nil {
		n.t.Fatal(err)
	}
	return r
}

func (n *node) tryStart(c *container) (*api.StartResponse, error) {
	n.t.Helper()
	b, err := json.Marshal(c.spec)
	if err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.dir, "config.json"), b, 0o600); err != nil {
		n.t.Fatal(err)
	}
	return n.Start(n.context(), c.request)
}

// exit waits for a container's exit, by List and Exits as the engine does.
func (n *node) exit(id string) *api.Exit {
	n.t.Helper()
	ctx := n.context()
	for {
		list, err := n.List(ctx)
		if err != nil {
			n.t.Fatal(err)
		}
		for _, c := range list.Containers {
			if c.Id == id && c.Exit != nil {
				return c.Exit
			}
		}
		if _, err := n.Exits(ctx, list.Sequence); err != nil && !errdefs.IsUnavailable(err) {
			n.t.Fatal(err)
		}
	}
}

// output waits until a container's log has a line, and answers what each stream printed.
func (n *node) output(c *container, want string) map[string]string {
	n.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		out := map[string]string{}
		b, _ := os.ReadFile(c.log)
		for line := range strings.SplitSeq(string(b), "\n") {
			if f := strings.SplitN(line, " ", 4); len(f) == 4 {
				out[f[1]] += f[3]
				if f[2] == "F" {
					out[f[1]] += "\n"
				}
			}
		}
		if strings.Contains(out["stdout"]+out["stderr"], want) {
			return out
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("%q is not in the log: %q", want, b)
		}
	}
}

func (n *node) exec(id string, p *specs.Process, timeout time.Duration, limit int64) (*api.ExecResponse, string, string, error) {
	n.t.Helper()
	b, _ := json.Marshal(p)
	var stdout, stderr bytes.Buffer
	r, err := n.Exec(n.context(), &api.ExecRequest{Id: id, Process: b, TimeoutNs: int64(timeout), OutputLimit: limit}, func(o, e []byte) {
		stdout.Write(o)
		stderr.Write(e)
	})
	return r, stdout.String(), stderr.String(), err
}

func (n *node) kill(pid int32) {
	n.t.Helper()
	if pid <= 1 {
		n.t.Fatalf("kill %d", pid)
	}
	if err := unix.Kill(int(pid), unix.SIGKILL); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) info() *api.InfoResponse {
	n.t.Helper()
	i, err := n.Info(n.context())
	if err != nil {
		n.t.Fatal(err)
	}
	return i
}

func numbered(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintln(&b, "line", i)
	}
	return b.String()
}

func TestOutputAndExitCode(t *testing.T) {
	n := newNode(t)
	c := n.container("echo", "out", "err")
	first := n.start(c)
	if e := n.exit(c.id); e.Code != 0 || e.OomKilled || e.Reason != "" || e.ExitedAt < first.StartedAt {
		t.Errorf("exit: %v", e)
	}
	// The exit is told after the output is in the log.
	b, _ := os.ReadFile(c.log)
	if s := string(b); !strings.Contains(s, " stdout F out\n") || !strings.Contains(s, " stderr F err\n") {
		t.Errorf("log: %q", s)
	}
	again := n.start(c)
	if again.Pid != first.Pid || again.StartedAt != first.StartedAt {
		t.Errorf("a repeated start: %v, the first: %v", again, first)
	}
	var record map[string]any
	b, err := os.ReadFile(filepath.Join(c.dir, "exit.json"))
	if err != nil || json.Unmarshal(b, &record) != nil || record["code"] != 0.0 {
		t.Errorf("exit.json: %s, %v", b, err)
	}
	for _, code := range []int32{7, 137} {
		c := n.container("exit", strconv.Itoa(int(code)))
		n.start(c)
		if e := n.exit(c.id); e.Code != code {
			t.Errorf("exit: %v, want %d", e, code)
		}
	}
}

func TestSignalsAndDelete(t *testing.T) {
	n := newNode(t)
	c := n.container("term")
	n.start(c)
	n.output(c, "ready")
	if err := n.Signal(n.context(), &api.SignalRequest{Id: c.id, Signal: int32(unix.SIGTERM)}); err != nil {
		t.Fatal(err)
	}
	if e := n.exit(c.id); e.Code != 3 {
		t.Errorf("exit after SIGTERM: %v", e)
	}
	if err := n.Signal(n.context(), &api.SignalRequest{Id: c.id, Signal: 9}); err != nil {
		t.Errorf("signal to an exited container: %v", err)
	}
	if err := n.Signal(n.context(), &api.SignalRequest{Id: "nobody", Signal: 9}); !errdefs.IsNotFound(err) {
		t.Errorf("signal to an unknown container: %v", err)
	}
	d := n.container("spawn", "stay")
	pid := n.start(d).Pid
	n.output(d, "sleeping")
	if err := n.Signal(n.context(), &api.SignalRequest{Id: d.id, Signal: 9, All: true}); err != nil {
		t.Fatal(err)
	}
	if e := n.exit(d.id); e.Code != 137 {
		t.Errorf("exit after SIGKILL: %v", e)
	}
	for range 2 {
		if err := n.Delete(n.context(), &api.DeleteRequest{Id: d.id, CgroupsPath: n.cgroup(d.id)}); err != nil {
			t.Fatal(err)
		}
	}
	if alive(int(pid)) {
		t.Error("the process is left")
	}
	list, err := n.List(n.context())
	if err != nil || len(list.Containers) != 1 {
		t.Errorf("list: %v, %v", list, err)
	}
}

func TestStartThatFailsLeavesNothing(t *testing.T) {
	n := newNode(t)
	c := n.container()
	c.spec.Process.Args = []string{"/nothing"}
	_, err := n.tryStart(c)
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "/nothing") {
		t.Fatalf("start: %v", err)
	}
	names, _ := os.ReadDir(c.dir)
	if len(names) != 1 {
		t.Errorf("left in the directory: %v", names)
	}
	if found, _ := filepath.Glob("/sys/fs/cgroup/*" + n.cgroup(c.id)); len(found) > 0 {
		t.Errorf("cgroups are left: %v", found)
	}
	list, err := n.List(n.context())
	if err != nil || len(list.Containers) != 0 {
		t.Errorf("list: %v, %v", list, err)
	}
	c.spec.Process.Args = []string{"/workload", "exit", "4"}
	n.start(c)
	if e := n.exit(c.id); e.Code != 4 {
		t.Errorf("exit of the second try: %v", e)
	}
}

func TestExec(t *testing.T) {
	n := newNode(t)
	c := n.container("sleep")
	n.start(c)
	r, out, errs, err := n.exec(c.id, process("echo", "hello", "there"), 0, 0)
	if err != nil || r.ExitCode != 0 || out != "hello\n" || errs != "there\n" {
		t.Fatalf("%v %q %q %v", r, out, errs, err)
	}
	if r, _, _, err := n.exec(c.id, process("exit", "42"), 0, 0); err != nil || r.ExitCode != 42 {
		t.Errorf("%v %v", r, err)
	}
	if _, _, _, err := n.exec(c.id, &specs.Process{Args: []string{"/nothing"}, Cwd: "/"}, 0, 0); !errdefs.IsNotFound(err) {
		t.Errorf("a missing program: %v", err)
	}
	if _, _, _, err := n.exec("nobody", process("exit", "0"), 0, 0); !errdefs.IsNotFound(err) {
		t.Errorf("an unknown container: %v", err)
	}
	if r, out, _, err := n.exec(c.id, process("flood", "1000000"), 0, 5000); err != nil || r.ExitCode != 0 || len(out) != 5000 {
		t.Errorf("%v, %d bytes, %v", r, len(out), err)
	}
	if r, out, _, err := n.exec(c.id, process("flood", "1000000"), 0, 0); err != nil || r.ExitCode != 0 || len(out) != 1000000 {
		t.Errorf("%v, %d bytes, %v", r, len(out), err)
	}
	began := time.Now()
	r, out, _, err = n.exec(c.id, process("spawn"), 0, 0)
	if err != nil || r.ExitCode != 0 || !strings.HasPrefix(out, "spawned") || time.Since(began) > 2*time.Second {
		t.Errorf("a child that holds the output: %v %q %v after %v", r, out, err, time.Since(began))
	}
}

func TestExecTimeoutKillsDescendants(t *testing.T) {
	n := newNode(t)
	c := n.container("sleep")
	n.start(c)
	before := n.pids(c.id)
	began := time.Now()
	r, out, _, err := n.exec(c.id, process("spawn", "stay"), 500*time.Millisecond, 0)
	if err != nil || !r.TimedOut || r.ExitCode != 137 || !strings.Contains(out, "spawned") {
		t.Fatalf("%v %q %v", r, out, err)
	}
	if d := time.Since(began); d < 500*time.Millisecond || d > 2*time.Second {
		t.Errorf("it took %v", d)
	}
	n.settle(c.id, before)
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	b, _ := json.Marshal(process("spawn", "stay"))
	if _, err := n.Exec(ctx, &api.ExecRequest{Id: c.id, Process: b}, func([]byte, []byte) {}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a caller that goes away: %v", err)
	}
	n.settle(c.id, before)
}

// pids counts the processes of a container's cgroup.
func (n *node) pids(id string) int {
	for _, h := range []string{"pids", "unified", "."} {
		if b, err := os.ReadFile("/sys/fs/cgroup/" + h + n.cgroup(id) + "/cgroup.procs"); err == nil {
			return len(strings.Fields(string(b)))
		}
	}
	n.t.Fatalf("no cgroup of %s", id)
	return 0
}

func (n *node) settle(id string, want int) {
	n.t.Helper()
	for deadline := time.Now().Add(3 * time.Second); n.pids(id) != want; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			n.t.Errorf("%d processes, %d are wanted", n.pids(id), want)
			return
		}
	}
}

func TestKillShim(t *testing.T) {
	n := newNode(t)
	const lines = 300
	c := n.container("count", strconv.Itoa(lines), "10", "9")
	pid := n.start(c).Pid
	before := n.info()
	for range 8 {
		time.Sleep(200 * time.Millisecond)
		began := time.Now()
		n.kill(n.info().Pid)
		list, err := n.List(n.context())
		if err != nil || len(list.Containers) != 1 || list.Containers[0].Pid != pid {
			t.Fatalf("list after a kill: %v, %v", list, err)
		}
		t.Logf("served again after %v", time.Since(began))
	}
	if i := n.info(); i.Instance == before.Instance || i.KeeperPid != before.KeeperPid {
		t.Errorf("before: %v, after: %v", before, i)
	}
	if e := n.exit(c.id); e.Code != 9 || e.Reason != "" {
		t.Errorf("exit: %v", e)
	}
	if out := n.output(c, "line "+strconv.Itoa(lines-1)); out["stdout"] != numbered(lines) {
		t.Errorf("the log has gaps or doubles: %q", out["stdout"])
	}
}

// TestKillDuringStart kills the shim at a random moment of each of 15 starts. The client tries again, and every container runs once.
func TestKillDuringStart(t *testing.T) {
	n := newNode(t)
	var all []*container
	for range 15 {
		c := n.container("term")
		pid := n.info().Pid
		killed := make(chan struct{})
		go func() {
			time.Sleep(rand.N(25 * time.Millisecond))
			_ = unix.Kill(int(pid), unix.SIGKILL)
			close(killed)
		}()
		n.start(c)
		<-killed
		all = append(all, c)
	}
	list, err := n.List(n.context())
	if err != nil || len(list.Containers) != len(all) {
		t.Fatalf("%d containers, %v", len(list.GetContainers()), err)
	}
	for _, c := range list.Containers {
		if c.Exit != nil || n.pids(c.Id) != 1 {
			t.Errorf("%s: %d processes, exit %v", c.Id, n.pids(c.Id), c.Exit)
		}
	}
	for _, c := range all {
		n.output(c, "ready")
		if err := n.Signal(n.context(), &api.SignalRequest{Id: c.id, Signal: 15}); err != nil {
			t.Error(err)
		}
		if e := n.exit(c.id); e.Code != 3 {
			t.Errorf("%s: %v", c.id, e)
		}
	}
}

func TestExitWhileTheShimIsDead(t *testing.T) {
	n := newNode(t)
	c := n.container("sleep")
	pid := n.start(c).Pid
	n.output(c, "sleeping")
	shim := n.info().Pid
	n.kill(shim)
	n.kill(pid)
	if e := n.exit(c.id); e.Code != 137 || e.Reason != "" {
		t.Errorf("exit: %v", e)
	}
	n.kill(n.info().Pid) // an exit that is known stays known
	if e := n.exit(c.id); e.Code != 137 || e.Reason != "" {
		t.Errorf("exit after another kill: %v", e)
	}
}

func TestKillKeeper(t *testing.T) {
	n := newNode(t)
	c := n.container("count", "150", "10", "9")
	n.start(c)
	before := n.info()
	n.kill(before.KeeperPid)
	time.Sleep(100 * time.Millisecond)
	after := n.info()
	if after.Instance != before.Instance || after.KeeperPid == before.KeeperPid || !alive(int(after.KeeperPid)) {
		t.Fatalf("before: %v, after: %v", before, after)
	}
	n.kill(after.Pid) // now the shim, which the new keeper starts again
	if e := n.exit(c.id); e.Code != 9 && (e.Code != 255 || e.Reason != "ExitUnknown") {
		t.Errorf("exit: %v", e)
	} else {
		t.Logf("exit after the keeper and then the shim were killed: %v", e)
	}
	if out := n.output(c, "line 149"); out["stdout"] != numbered(150) {
		t.Errorf("the log has gaps or doubles: %q", out["stdout"])
	}
}

func TestKillShimAndKeeper(t *testing.T) {
	n := newNode(t)
	c := n.container("sleep")
	pid := n.start(c).Pid
	n.output(c, "sleeping")
	before := n.info()
	n.kill(before.KeeperPid)
	n.kill(before.Pid)
	after := n.info() // the client starts a new keeper
	if after.Instance == before.Instance {
		t.Fatalf("before: %v, after: %v", before, after)
	}
	list, err := n.List(n.context())
	if err != nil || len(list.Containers) != 1 || list.Containers[0].Pid != pid || list.Containers[0].Exit != nil || !alive(int(pid)) {
		t.Fatalf("list: %v, %v", list, err)
	}
	if r, out, _, err := n.exec(c.id, process("echo", "a", "b"), 0, 0); err != nil || out != "a\n" {
		t.Errorf("exec: %v %q %v", r, out, err)
	}
	n.kill(pid)
	e := n.exit(c.id)
	if e.Code != 137 && (e.Code != 255 || e.Reason != "ExitUnknown") {
		t.Errorf("exit: %v", e)
	}
	t.Logf("exit of a process that nobody of ours is the parent of: %v", e)
}

func TestStdinStaysOpen(t *testing.T) {
	n := newNode(t)
	c := n.container("cat")
	c.request.Stdin = true
	n.start(c)
	f, err := os.OpenFile(filepath.Join(c.dir, "stdin"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(f, "one")
	_ = f.Close()
	n.output(c, "one")
	n.kill(n.info().Pid)
	n.info()
	f, err = os.OpenFile(filepath.Join(c.dir, "stdin"), os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatalf("nobody reads after a restart: %v", err)
	}
	fmt.Fprintln(f, "two")
	_ = f.Close()
	n.output(c, "two")
	d := n.container("cat") // without stdin it reads /dev/null
	n.start(d)
	if e := n.exit(d.id); e.Code != 0 {
		t.Errorf("exit: %v", e)
	}
}

func TestTerminal(t *testing.T) {
	n := newNode(t)
	c := n.container("tty")
	c.spec.Process.Terminal = true
	n.start(c)
	if out := n.output(c, "terminal"); !strings.Contains(out["stdout"], "terminal true") {
		t.Errorf("%q", out)
	}
	n.kill(n.info().Pid)
	n.info()
	if err := n.Signal(n.context(), &api.SignalRequest{Id: c.id, Signal: 9}); err != nil {
		t.Fatal(err)
	}
	if e := n.exit(c.id); e.Code != 137 {
		t.Errorf("exit: %v", e)
	}
	d := n.container("sleep")
	n.start(d)
	p := process("tty")
	p.Terminal = true
	if r, out, _, err := n.exec(d.id, p, 200*time.Millisecond, 0); err != nil || !strings.Contains(out, "terminal true") {
		t.Errorf("exec: %v %q %v", r, out, err)
	}
}

func TestOOM(t *testing.T) {
	n := newNode(t)
	c := n.container("eat")
	limit := int64(32 << 20)
	c.spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}
	n.start(c)
	if e := n.exit(c.id); e.Code != 137 || !e.OomKilled {
		t.Errorf("exit: %v", e)
	}
	n.kill(n.info().Pid)
	if e := n.exit(c.id); !e.OomKilled {
		t.Errorf("exit after a restart: %v", e)
	}
	d := n.container("oom")
	n.start(d)
	if out := n.output(d, "0"); out["stdout"] != "0\n" {
		t.Errorf("oom_score_adj of a workload: %q", out)
	}
}

func TestReopenLog(t *testing.T) {
	n := newNode(t)
	c := n.container("count", "200", "5")
	n.start(c)
	n.output(c, "line 20")
	old := c.log + ".old"
	if err := os.Rename(c.log, old); err != nil {
		t.Fatal(err)
	}
	n.kill(n.info().Pid) // between rename and reopen the old file goes on
	time.Sleep(100 * time.Millisecond)
	if err := n.ReopenLog(n.context(), c.id); err != nil {
		t.Fatal(err)
	}
	n.kill(n.info().Pid)
	n.exit(c.id)
	a, err1 := os.ReadFile(old)
	b, err2 := os.ReadFile(c.log)
	if err1 != nil || err2 != nil || len(a) == 0 || len(b) == 0 {
		t.Fatalf("%d and %d bytes, %v, %v", len(a), len(b), err1, err2)
	}
	if err := os.WriteFile(c.log, append(a, b...), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := n.output(c, "line 199"); out["stdout"] != numbered(200) {
		t.Errorf("both logs together: %q", out["stdout"])
	}
	d := n.container("sleep")
	n.start(d)
	if err := os.Remove(d.log); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(d.log, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := n.ReopenLog(n.context(), d.id); err == nil {
		t.Error("a directory was opened as a log")
	}
}

var shmMount = specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "mode=1777"}}

// TestPodAfterShimAndKeeper kills both: the namespaces that a container is in are taken from it, the rest is made anew.
func TestPodAfterShimAndKeeper(t *testing.T) {
	n := newNode(t)
	r := &api.StartPodRequest{PodId: "pod0", Ipc: true, Uts: true, Hostname: "shared", ShmSize: 1 << 20}
	if _, err := n.StartPod(n.context(), r); err != nil {
		t.Fatal(err)
	}
	start := func() int32 {
		c := n.container("sleep")
		c.request.PodId, c.request.PodNamespaces = "pod0", []string{"ipc", "uts", "shm"}
		c.spec.Hostname = ""
		c.spec.Mounts = append(c.spec.Mounts, shmMount)
		pid := n.start(c).Pid
		n.output(c, "sleeping") // it would get SIGPIPE for what it prints while both are dead
		return pid
	}
	a := start()
	i := n.info()
	n.kill(i.KeeperPid)
	n.kill(i.Pid)
	if _, err := n.StartPod(n.context(), r); err != nil {
		t.Fatal(err)
	}
	b := start()
	for _, ns := range []string{"ipc", "uts"} {
		x, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", a, ns))
		if y, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", b, ns)); x == "" || x != y {
			t.Errorf("%s: %q, %q", ns, x, y)
		}
	}
}

func TestPodNamespaces(t *testing.T) {
	n := newNode(t)
	r, err := n.StartPod(n.context(), &api.StartPodRequest{PodId: "pod0", Ipc: true, Uts: true, Hostname: "shared", Pid: true, ShmSize: 1 << 20, CgroupsPath: n.cgroup("holder")})
	if err != nil {
		t.Fatal(err)
	}
	if r.HolderPid == 0 {
		t.Fatal("no holder")
	}
	c := n.container("sleep")
	c.request.PodId, c.request.PodNamespaces = "pod0", []string{"ipc", "uts", "pid", "shm"}
	c.spec.Hostname = ""
	c.spec.Mounts = append(c.spec.Mounts, shmMount)
	a := n.start(c).Pid
	n.kill(n.info().Pid)
	d := n.container("sleep")
	d.request.PodId, d.request.PodNamespaces = "pod0", []string{"ipc", "uts", "pid", "shm"}
	d.spec.Hostname = ""
	d.spec.Mounts = append(d.spec.Mounts, shmMount)
	b := n.start(d).Pid
	for _, ns := range []string{"ipc", "uts", "pid"} {
		x, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", a, ns))
		y, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", b, ns))
		z, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", r.HolderPid, ns))
		own, _ := os.Readlink("/proc/self/ns/" + ns)
		if x == "" || x != y || x != z || x == own {
			t.Errorf("%s: %q, %q, holder %q, ours %q", ns, x, y, z, own)
		}
	}
	path := fmt.Sprintf("/proc/%d/root/dev/shm/shared", a)
	if err := os.WriteFile(path, []byte("seen"), 0o600); err != nil {
		t.Error(err)
	}
	if seen, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/dev/shm/shared", b)); string(seen) != "seen" {
		t.Errorf("/dev/shm is not shared: %q, %v", seen, err)
	}
	again, err := n.StartPod(n.context(), &api.StartPodRequest{PodId: "pod0", Ipc: true, Uts: true, Pid: true})
	if err != nil || again.HolderPid != r.HolderPid {
		t.Errorf("a repeated StartPod: %v, %v", again, err)
	}
	e := n.container("sleep")
	e.request.PidTarget = c.id
	pid := n.start(e).Pid
	x, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", a))
	if y, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid)); x != y {
		t.Errorf("pid_target: %q, %q", x, y)
	}
	for _, id := range []string{c.id, d.id, e.id} {
		if err := n.Delete(n.context(), &api.DeleteRequest{Id: id}); err != nil {
			t.Error(err)
		}
	}
	for range 2 {
		if err := n.StopPod(n.context(), "pod0"); err != nil {
			t.Error(err)
		}
	}
	if alive(int(r.HolderPid)) {
		t.Error("the holder is left")
	}
}

// BenchmarkStart is a container's start, exit and delete, and BenchmarkExec a command in a container, as a client sees them.
func BenchmarkStart(b *testing.B) {
	n := newNode(b)
	var started time.Duration
	for b.Loop() {
		b.StopTimer()
		c := n.container("sleep")
		data, _ := json.Marshal(c.spec)
		if err := os.WriteFile(filepath.Join(c.dir, "config.json"), data, 0o600); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		began := time.Now()
		if _, err := n.Start(context.Background(), c.request); err != nil {
			b.Fatal(err)
		}
		started += time.Since(began)
		if err := n.Delete(context.Background(), &api.DeleteRequest{Id: c.id}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(started.Microseconds())/float64(b.N), "µs/start")
}

func BenchmarkExec(b *testing.B) {
	n := newNode(b)
	c := n.container("sleep")
	n.start(c)
	p, _ := json.Marshal(process("exit", "0"))
	for b.Loop() {
		if _, err := n.Exec(context.Background(), &api.ExecRequest{Id: c.id, Process: p}, func([]byte, []byte) {}); err != nil {
			b.Fatal(err)
		}
	}
}
