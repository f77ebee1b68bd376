package shim_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/api"
)

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
