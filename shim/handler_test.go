package shim_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/api"
)

// runcProgram builds the pinned runc, or finds it built.
var runcProgram = sync.OnceValues(func() (string, error) {
	if out, err := exec.Command("../hack/tools/runc/build").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build runc: %w: %s", err, out)
	}
	return filepath.Abs("../hack/cache/bin/runc")
})

// script is a program that does something around a command of runc, in which "$@" are its arguments.
func (n *node) script(command, text string) string {
	n.t.Helper()
	path, err := runcProgram()
	if err != nil {
		n.t.Fatal(err)
	}
	if command == "" {
		return path
	}
	file := filepath.Join(n.state, "runc-script")
	text = fmt.Sprintf("#!/bin/sh\nrunc() { %s \"$@\"; }\ncase \" $* \" in *' %s '*) %s;; *) runc \"$@\";; esac\n", path, command, text)
	if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
		n.t.Fatal(err)
	}
	return file
}

// through prepares a container that a program runs, with its root as a bind mount.
func (n *node) through(program string, args ...string) *container {
	c := n.container(args...)
	c.request.Rootfs = &api.Mount{Type: "bind", Source: c.spec.Root.Path, Options: []string{"rbind"}}
	c.spec.Root.Path = "rootfs"
	c.request.Runtime = &api.Runtime{Path: program, Root: filepath.Join(n.state, "runc")}
	return c
}

// wantNothing asserts that a deleted container has left neither mounts nor files nor a state of runc's.
func (n *node) wantNothing(c *container) {
	n.t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		n.t.Fatal(err)
	}
	if strings.Contains(string(mounts), c.dir+"/") {
		n.t.Errorf("%s: a mount is left", c.id)
	}
	for _, name := range []string{filepath.Join(c.dir, "bundle"), filepath.Join(c.dir, "runtime.json"), filepath.Join(n.state, "runc", c.id)} {
		if _, err := os.Lstat(name); err == nil {
			n.t.Errorf("%s: %s is left", c.id, name)
		}
	}
	if found, _ := filepath.Glob("/sys/fs/cgroup/*" + n.cgroup(c.id)); len(found) > 0 {
		n.t.Errorf("%s: cgroups are left: %v", c.id, found)
	}
}

func (n *node) deleted(c *container) {
	n.t.Helper()
	if err := n.Delete(n.context(), &api.DeleteRequest{Id: c.id, CgroupsPath: n.cgroup(c.id), Dir: c.dir}); err != nil {
		n.t.Errorf("delete %s: %v", c.id, err)
	}
	n.wantNothing(c)
}

func TestHandlerRunsContainers(t *testing.T) {
	n := newNode(t)
	runc := n.script("", "")
	c := n.through(runc, "term")
	n.start(c)
	n.output(c, "ready")
	if r, out, errs, err := n.exec(c.id, process("echo", "out", "err"), 0, 0); err != nil || out != "out\n" || errs != "err\n" || r.ExitCode != 0 {
		t.Errorf("exec: %v, %q, %q, %v", r, out, errs, err)
	}
	if r, _, _, err := n.exec(c.id, process("exit", "77"), 0, 0); err != nil || r.ExitCode != 77 {
		t.Errorf("exit code of an exec: %v, %v", r, err)
	}
	terminal := process("echo", "seen", "")
	terminal.Terminal = true
	if r, out, _, err := n.exec(c.id, terminal, 0, 0); err != nil || r.ExitCode != 0 || !strings.HasPrefix(out, "seen\r\n") {
		t.Errorf("exec with a terminal: %v, %q, %v", r, out, err)
	}
	if r, _, _, err := n.exec(c.id, process("sleep"), 300*time.Millisecond, 0); err != nil || !r.TimedOut {
		t.Errorf("exec with a limit: %v, %v", r, err)
	}
	missing := process()
	missing.Args = []string{"/nonsense"}
	if _, _, _, err := n.exec(c.id, missing, 0, 0); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "/nonsense") {
		t.Errorf("exec of what is not there: %v", err)
	}
	if found, _ := filepath.Glob(filepath.Join(c.dir, "bundle", "*-*")); len(found) > 0 {
		t.Errorf("files of execs are left: %v", found)
	}
	if err := n.Signal(n.context(), &api.SignalRequest{Id: c.id, Signal: 15}); err != nil {
		t.Error(err)
	}
	if e := n.exit(c.id); e.Code != 3 || e.Reason != "" {
		t.Errorf("exit: %v", e)
	}
	n.deleted(c)
	n.deleted(c)
}

func TestHandlerErrors(t *testing.T) {
	n := newNode(t)
	c := n.through(n.script("", ""), "exit", "0")
	c.spec.Process.Args = []string{"nonsense"}
	if _, err := n.tryStart(c); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), `exec: "nonsense"`) {
		t.Errorf("a command that is not there: %v", err)
	}
	n.wantNothing(c)
	c = n.through("/no/such/runc", "exit", "0")
	if _, err := n.tryStart(c); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "/no/such/runc") {
		t.Errorf("a program that is not there: %v", err)
	}
	n.wantNothing(c)
	c = n.through("/bin/false", "exit", "0")
	if _, err := n.tryStart(c); err == nil || !strings.Contains(err.Error(), "does not say why") {
		t.Errorf("a program that fails: %v", err)
	}
	n.wantNothing(c)
	c = n.through(n.script("start", "exit 3"), "exit", "0")
	if _, err := n.tryStart(c); err == nil {
		t.Error("a start that fails is none")
	}
	n.wantNothing(c)
	if c = n.through(n.script("", ""), "exit", "5"); n.start(c).Pid == 0 {
		t.Error("no pid")
	}
	if e := n.exit(c.id); e.Code != 5 {
		t.Errorf("exit: %v", e)
	}
	n.deleted(c)
}

// TestKillDuringHandlerStart kills the shim at a random moment of each start. The client tries again, and each container runs once.
func TestKillDuringHandlerStart(t *testing.T) {
	n := newNode(t)
	runc := n.script("", "")
	var all []*container
	for range 8 {
		c := n.through(runc, "term")
		pid := n.info().Pid
		killed := make(chan struct{})
		go func() {
			time.Sleep(rand.N(150 * time.Millisecond))
			_ = unix.Kill(int(pid), unix.SIGKILL)
			close(killed)
		}()
		n.start(c)
		<-killed
		all = append(all, c)
	}
	for _, c := range all {
		n.output(c, "ready")
		if pids := n.pids(c.id); pids != 1 {
			t.Errorf("%s: %d processes", c.id, pids)
		}
		if err := n.Signal(n.context(), &api.SignalRequest{Id: c.id, Signal: 15}); err != nil {
			t.Error(err)
		}
		if e := n.exit(c.id); e.Code != 3 {
			t.Errorf("%s: %v", c.id, e)
		}
		n.deleted(c)
	}
}

// TestKillBetweenCreateAndStart has the shim, or shim and keeper, die when the container is made and does not run. The
// caller does not come again but deletes it.
func TestKillBetweenCreateAndStart(t *testing.T) {
	for name, tt := range map[string]struct {
		command, text string
		keeper        bool
	}{
		"create still runs":             {command: "create", text: `runc "$@"; touch "$0.reached"; exec sleep 100`},
		"create still runs, keeper too": {command: "create", text: `runc "$@"; touch "$0.reached"; exec sleep 100`, keeper: true},
		"before start":                  {command: "start", text: `touch "$0.reached"; exec sleep 100`},
		"after start":                   {command: "start", text: `runc "$@"; touch "$0.reached"; exec sleep 100`},
		"after start, keeper too":       {command: "start", text: `runc "$@"; touch "$0.reached"; exec sleep 100`, keeper: true},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			c := n.through(n.script(tt.command, tt.text), "sleep")
			writeSpec(t, c)
			before := n.info()
			ctx, cancel := context.WithCancel(n.context())
			done := make(chan struct{})
			go func() {
				defer close(done)
				_, _ = n.Start(ctx, c.request)
			}()
			reached := filepath.Join(n.state, "runc-script.reached")
			for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
				if _, err := os.Stat(reached); err == nil {
					break
				}
				if time.Now().After(deadline) {
					t.Fatal("the program is not called")
				}
			}
			cancel()
			<-done
			if tt.keeper {
				n.kill(before.KeeperPid)
			}
			n.kill(before.Pid)
			n.ready()
			n.deleted(c)
		})
	}
}

// ready waits for a shim, and starts shim and keeper when both are dead, as the daemon does.
func (n *node) ready() {
	n.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		_, err := n.Info(n.context())
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			n.t.Fatal(err)
		}
	}
}

func writeSpec(t *testing.T, c *container) {
	t.Helper()
	b, err := json.Marshal(c.spec)
	if err == nil {
		err = os.WriteFile(filepath.Join(c.dir, "config.json"), b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}
