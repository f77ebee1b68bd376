package shim_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/shim/api"
)

// noteHook is a hook that appends its name and the state that it was told to a file.
func noteHook(file, name string) specs.Hook {
	return specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", fmt.Sprintf(`echo "%s $(cat)" >>%s`, name, file)}, Env: []string{"PATH=/bin:/usr/bin"}}
}

func (n *node) noted(file string) map[string]specs.State {
	n.t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		n.t.Fatal(err)
	}
	noted := map[string]specs.State{}
	for line := range strings.Lines(string(b)) {
		name, rest, _ := strings.Cut(line, " ")
		var s specs.State
		if err := json.Unmarshal([]byte(rest), &s); err != nil {
			n.t.Fatalf("%v: %s", err, line)
		}
		noted[name] = s
	}
	return noted
}

func (n *node) delete(c *container) {
	n.t.Helper()
	if err := n.Delete(n.context(), &api.DeleteRequest{Id: c.id, CgroupsPath: n.cgroup(c.id), Dir: c.dir}); err != nil {
		n.t.Fatal(err)
	}
}

func TestHooks(t *testing.T) {
	n := newNode(t)
	c := n.container("sleep")
	file := filepath.Join(n.state, "hooks")
	c.spec.Annotations = map[string]string{"a": "b"}
	c.spec.Hooks = &specs.Hooks{
		CreateRuntime:   []specs.Hook{noteHook(file, "createRuntime")},
		CreateContainer: []specs.Hook{noteHook(file, "createContainer")},
		StartContainer:  []specs.Hook{{Path: "/workload", Args: []string{"workload", "exit", "0"}}},
		Poststart:       []specs.Hook{noteHook(file, "poststart")},
		Poststop:        []specs.Hook{noteHook(file, "poststop"), {Path: "/bin/false"}},
	}
	pid := int(n.start(c).Pid)
	got := n.noted(file)
	for name, want := range map[string]specs.State{
		"createRuntime": {Status: "creating", Pid: pid}, "createContainer": {Status: "creating", Pid: 1}, "poststart": {Status: "running", Pid: pid},
	} {
		if s := got[name]; s.Status != want.Status || s.Pid != want.Pid || s.ID != c.id || s.Bundle != c.dir || s.Annotations["a"] != "b" {
			t.Errorf("%s: %+v, want %+v", name, s, want)
		}
	}
	// Whoever is killed in between, the end's hooks are not forgotten.
	info := n.info()
	n.kill(info.Pid)
	n.delete(c)
	if s, ran := n.noted(file)["poststop"]; !ran || s.Status != "stopped" || s.Pid != 0 {
		t.Errorf("poststop: %v %+v", ran, s)
	}
	if _, err := os.Lstat(filepath.Join(c.dir, "poststop")); err == nil {
		t.Error("the hooks are still owed")
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	n.delete(c)
	if _, err := os.Lstat(file); err == nil {
		t.Error("the hooks of the end ran twice")
	}
}

// The hook that fails is named, with what it said, and the hooks of the end run.
func TestHookFailsTheStart(t *testing.T) {
	n := newNode(t)
	c := n.container("sleep")
	file := filepath.Join(n.state, "hooks")
	c.spec.Hooks = &specs.Hooks{
		CreateRuntime: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo no such device >&2; exit 4"}}},
		Poststop:      []specs.Hook{noteHook(file, "poststop")},
	}
	_, err := n.tryStart(c)
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "hooks.createRuntime[0] /bin/sh: exit code 4") || !strings.Contains(err.Error(), "no such device") {
		t.Fatalf("%v", err)
	}
	if _, ran := n.noted(file)["poststop"]; !ran {
		t.Error("poststop did not run")
	}
	c.spec.Hooks = nil
	n.start(c)
}

// A start that was cut short by a kill of the shim and never repeated owes its hooks to Delete.
func TestHooksOfAStartThatWasCutShort(t *testing.T) {
	n := newNode(t)
	c := n.container("sleep")
	file := filepath.Join(n.state, "hooks")
	once := filepath.Join(n.state, "once")
	c.spec.Hooks = &specs.Hooks{
		CreateRuntime: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "test -e " + once + " && exit 5; touch " + once + "; exec sleep 3"}, Env: []string{"PATH=/bin:/usr/bin"}}},
		Poststop:      []specs.Hook{noteHook(file, "poststop")},
	}
	shim := n.info().Pid
	go func() {
		for range 500 {
			if _, err := os.Lstat(once); err == nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		n.kill(shim)
	}()
	// The client repeats the start; the second try runs what the first owes, and fails.
	if _, err := n.tryStart(c); err == nil || !strings.Contains(err.Error(), "exit code 5") {
		t.Fatalf("%v", err)
	}
	if s, ran := n.noted(file)["poststop"]; !ran || s.ID != c.id {
		t.Errorf("poststop: %+v", s)
	}
	// One that the shim does not know at all.
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.dir, "poststop"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n.delete(c)
	if _, ran := n.noted(file)["poststop"]; !ran {
		t.Error("poststop of an unknown container did not run")
	}
}
