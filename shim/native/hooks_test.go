package native

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// hookInside is a hook in a container: it writes down what it got and where it is.
func hookInside(file string) int {
	state, _ := io.ReadAll(os.Stdin)
	mount, _ := os.Readlink("/proc/self/ns/mnt")
	cwd, _ := os.Getwd()
	b, _ := json.Marshal(hookView{State: state, Mnt: mount, Cwd: cwd, UID: os.Getuid(), Env: os.Environ()})
	if err := os.WriteFile(file, b, 0o600); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

type hookView struct {
	State    json.RawMessage
	Mnt, Cwd string
	UID      int
	Env      []string
}

// hookScript is a hook that runs on the host: it appends its name, its state, its mount and pid namespace and directory to a file.
func hookScript(t *testing.T, dir, name string) specs.Hook {
	t.Helper()
	log := filepath.Join(dir, "log")
	script := fmt.Sprintf(`{ echo "%s $(cat) $(readlink /proc/self/ns/mnt) $(readlink /proc/self/ns/pid) $PWD $A"; } >>%s`, name, log)
	return specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: []string{"PATH=/bin:/usr/bin", "A=" + name}}
}

// hookedSpec is a container with a bundle in which hooks of all kinds write down that they ran.
func hookedSpec(t *testing.T) (spec *specs.Spec, bundle string, mount *Mount) {
	t.Helper()
	bundle = t.TempDir()
	if err := os.Mkdir(bundle+"/rootfs", 0o755); err != nil {
		t.Fatal(err)
	}
	spec = baseSpec("exit", "0")
	spec.Process.User = specs.User{UID: 0}
	spec.Annotations = map[string]string{"com.example/a": "b"}
	inRoot := hookScript(t, bundle, "createContainer")
	inRoot.Args[2] += fmt.Sprintf("; { cat etc/plain; echo; } >>%s/log; echo made >%s/rootfs/etc/made", bundle, bundle)
	spec.Hooks = &specs.Hooks{
		//lint:ignore SA1019 deprecated, but not gone from specs
		Prestart:        []specs.Hook{hookScript(t, bundle, "prestart")},
		CreateRuntime:   []specs.Hook{hookScript(t, bundle, "createRuntime"), hookScript(t, bundle, "createRuntime2")},
		CreateContainer: []specs.Hook{inRoot},
		StartContainer:  []specs.Hook{{Path: "/bin/inside", Args: []string{"inside", "hook", "/hooked"}, Env: []string{"B=c"}}},
		Poststart:       []specs.Hook{hookScript(t, bundle, "poststart")},
		Poststop:        []specs.Hook{{Path: "/bin/false"}, hookScript(t, bundle, "poststop")},
	}
	return spec, bundle, rootfs(t)
}

func upperdir(m *Mount) string {
	for _, o := range m.Options {
		if d, ok := strings.CutPrefix(o, "upperdir="); ok {
			return d
		}
	}
	return ""
}

type hookLine struct {
	name          string
	state         specs.State
	mnt, pid, cwd string
	env           string
}

func hookLog(t *testing.T, bundle string) (lines []hookLine, rest string) {
	t.Helper()
	b, err := os.ReadFile(bundle + "/log")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(strings.TrimSpace(string(b)), "\n") {
		begin, end := strings.Index(line, "{"), strings.LastIndex(line, "}")
		if begin < 0 {
			rest += line
			continue
		}
		var l hookLine
		l.name = strings.TrimSpace(line[:begin])
		if err := json.Unmarshal([]byte(line[begin:end+1]), &l.state); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		fields := strings.Fields(line[end+1:])
		l.mnt, l.pid, l.cwd, l.env = fields[0], fields[1], fields[2], fields[3]
		lines = append(lines, l)
	}
	return lines, rest
}

func TestHooksRunWhenAndWhereTheSpecSays(t *testing.T) {
	r := newRuntime(t)
	spec, bundle, mount := hookedSpec(t)
	g := group(t)
	p, out, w := create(t, r, Config{ID: "box", Spec: spec, Bundle: bundle, Rootfs: mount, Cgroup: g})
	before, text := hookLog(t, bundle)
	if len(before) != 4 || !strings.Contains(text, "plain") {
		t.Fatalf("hooks of create: %+v %s", before, text)
	}
	printed, code := finish(t, p, out, w)
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, printed)
	}
	warning := r.RunHooks(t.Context(), Poststop, HookConfig{ID: "box", Spec: spec, Bundle: bundle})
	if warning == nil || !strings.Contains(warning.Error(), "hooks.poststop[0] /bin/false: exit code 1") {
		t.Errorf("a poststop hook that fails: %v", warning)
	}
	lines, _ := hookLog(t, bundle)
	ourMnt, _ := os.Readlink("/proc/self/ns/mnt")
	ourPid, _ := os.Readlink("/proc/self/ns/pid")
	for i, want := range []struct {
		name   string
		status specs.ContainerState
		host   bool
	}{
		{"prestart", "creating", true}, {"createRuntime", "creating", true}, {"createRuntime2", "creating", true}, {"createContainer", "creating", false},
		{"poststart", "running", true}, {"poststop", "stopped", true},
	} {
		if i >= len(lines) {
			t.Fatalf("%d hooks ran: %+v", len(lines), lines)
		}
		l := lines[i]
		if l.name != want.name || l.env != want.name || l.state.Status != want.status || l.state.ID != "box" || l.state.Bundle != bundle ||
			l.state.Annotations["com.example/a"] != "b" || l.state.Version != spec.Version {
			t.Errorf("hook %d: %+v, want %+v", i, l, want)
		}
		if (l.mnt == ourMnt) != want.host || (l.pid == ourPid) != want.host {
			t.Errorf("%s ran in %s %s", l.name, l.mnt, l.pid)
		}
		wantPid, wantCwd := p.Pid, bundle
		switch want.name {
		case "createContainer":
			wantPid, wantCwd = 1, bundle+"/rootfs"
		case "poststop":
			wantPid = 0
		}
		if l.state.Pid != wantPid || l.cwd != wantCwd {
			t.Errorf("%s was told pid %d in %s, want %d in %s", l.name, l.state.Pid, l.cwd, wantPid, wantCwd)
		}
	}
	checkInside(t, mount)
	if made, err := os.ReadFile(upperdir(mount) + "/etc/made"); err != nil || string(made) != "made\n" {
		t.Errorf("what createContainer wrote into the root: %q %v", made, err)
	}
	if left, _ := os.ReadDir(bundle + "/rootfs"); len(left) != 0 {
		t.Errorf("the host's root.path has %v", left)
	}
}

func checkInside(t *testing.T, mount *Mount) {
	t.Helper()
	b, err := os.ReadFile(upperdir(mount) + "/hooked")
	if err != nil {
		t.Fatal(err)
	}
	var v hookView
	var state specs.State
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(v.State, &state); err != nil {
		t.Fatal(err)
	}
	if state.Pid != 1 || state.Status != "created" || v.Cwd != "/" || fmt.Sprint(v.Env) != "[B=c]" {
		t.Errorf("startContainer: %+v %+v", v, state)
	}
}

func TestFailingHooksEndTheContainer(t *testing.T) {
	r := newRuntime(t)
	for _, kind := range []HookKind{Prestart, CreateRuntime, CreateContainer, StartContainer, Poststart} {
		for name, c := range map[string]struct {
			hook specs.Hook
			want string
		}{
			"exit code": {specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "echo out; echo why >&2; exit 3"}}, "exit code 3: failed precondition: it said: out\nwhy"},
			"missing":   {specs.Hook{Path: "/no/such/hook"}, `exec: "/no/such/hook": no such file or directory`},
			"timeout":   {specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "sleep 20 & sleep 10"}, Timeout: new(int)}, "timeout of 1s"},
		} {
			if kind == StartContainer && c.hook.Path == "/bin/sh" { // there is no shell in the container
				c.hook = specs.Hook{Path: "/bin/inside", Args: []string{"inside", "exit", "3"}, Timeout: c.hook.Timeout}
				if name == "timeout" {
					c.hook.Args = []string{"inside", "sleep"}
				} else {
					c.want = "exit code 3"
				}
			}
			if c.hook.Timeout != nil {
				*c.hook.Timeout = 1
			}
			t.Run(string(kind)+" "+name, func(t *testing.T) {
				spec := baseSpec("sleep")
				spec.Hooks = hooksWith(kind, c.hook)
				bundle := t.TempDir()
				if err := os.Mkdir(bundle+"/rootfs", 0o755); err != nil {
					t.Fatal(err)
				}
				g := group(t)
				p, err := r.Create(t.Context(), Config{ID: "x", Spec: spec, Bundle: bundle, Rootfs: rootfs(t), Cgroup: g})
				late := kind == StartContainer || kind == Poststart
				if late {
					if err != nil {
						t.Fatal(err)
					}
					err = p.Start(t.Context())
				}
				if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), fmt.Sprintf("hooks.%s[0] %s", kind, c.hook.Path)) {
					t.Fatalf("%v, want %q", err, c.want)
				}
				if name == "missing" != errdefs.IsNotFound(err) {
					t.Errorf("kind of %v", err)
				}
				gone(t, g.Pids)
			})
		}
	}
}

func hooksWith(kind HookKind, h specs.Hook) *specs.Hooks {
	list := []specs.Hook{h}
	switch kind {
	case Prestart:
		//lint:ignore SA1019 deprecated, but not gone from specs
		return &specs.Hooks{Prestart: list}
	case CreateRuntime:
		return &specs.Hooks{CreateRuntime: list}
	case CreateContainer:
		return &specs.Hooks{CreateContainer: list}
	case StartContainer:
		return &specs.Hooks{StartContainer: list}
	case Poststart:
		return &specs.Hooks{Poststart: list}
	}
	return &specs.Hooks{Poststop: list}
}

// gone waits until a cgroup has no process.
func gone(t *testing.T, pids func() ([]int, error)) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		left, err := pids()
		if err != nil {
			t.Fatal(err)
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("left: %v", left)
		}
	}
}

// A hook does not outlive the context that it was started for.
func TestHooksEndWithTheirContext(t *testing.T) {
	r := newRuntime(t)
	spec := baseSpec("sleep")
	spec.Hooks = hooksWith(CreateRuntime, specs.Hook{Path: "/bin/sleep", Args: []string{"sleep", "100"}})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err := r.Create(ctx, Config{ID: "x", Spec: spec, Rootfs: rootfs(t)})
	if err == nil || time.Since(began) > 5*time.Second {
		t.Fatalf("%v after %v", err, time.Since(began))
	}
}

func TestHooksAreChecked(t *testing.T) {
	for want, h := range map[string]specs.Hook{
		"hooks.poststop[0].path":    {Path: "relative"},
		"hooks.poststop[0].timeout": {Path: "/x", Timeout: new(int)},
	} {
		spec := baseSpec("x")
		spec.Hooks = hooksWith(Poststop, h)
		err := validate(goldenInput(spec, newKernel))
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
