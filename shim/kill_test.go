package shim_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/api"
)

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
