package shim_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
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
