package spec

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden is a file of testdata: what to change of the plain input, and the part of the output that this changes.
type golden struct {
	Pod       json.RawMessage `json:"pod,omitempty"`
	Container json.RawMessage `json:"container,omitempty"`
	Image     json.RawMessage `json:"image,omitempty"`
	User      json.RawMessage `json:"user,omitempty"`
	Host      json.RawMessage `json:"host,omitempty"`
	Devices   json.RawMessage `json:"devices,omitempty"`
	Settings  json.RawMessage `json:"settings,omitempty"`
	Labels    json.RawMessage `json:"labels,omitempty"`
	// Whole has the whole spec written, instead of what differs from that of the plain input.
	Whole bool `json:"whole,omitempty"`

	Output json.RawMessage `json:"output"`
}

var hostCaps = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID",
	"CAP_SYS_ADMIN", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE",
}

func plain() Input {
	return Input{
		Pod:         &Pod{ID: "p1", Name: "pod", Hostname: "pod"},
		Container:   &Container{ID: "c1", Name: "main", Image: "busybox"},
		Image:       v1.ImageConfig{Cmd: []string{"sh"}},
		User:        User{Home: "/root", AdditionalGIDs: []uint32{0}},
		Hostname:    "pod",
		Netns:       "/var/run/netns/criserver-p1",
		CgroupsPath: "/criserver/c1",
		Files:       Files{Hosts: "/s/hosts", ResolvConf: "/s/resolv.conf", Hostname: "/s/hostname"},
		Host:        Host{Capabilities: hostCaps, OOMScoreAdjMin: -1000, SwapAccounting: true},
	}
}

func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files", err)
	}
	base := document(t, plain())
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var g golden
			if err := json.Unmarshal(data, &g); err != nil {
				t.Fatal(err)
			}
			in := plain()
			for part, to := range map[*json.RawMessage]any{
				&g.Pod: in.Pod, &g.Container: in.Container, &g.Image: &in.Image, &g.User: &in.User, &g.Host: &in.Host, &g.Devices: &in.Devices,
				&g.Settings: &in.Settings, &g.Labels: &in.Labels,
			} {
				if len(*part) > 0 {
					if err := json.Unmarshal(*part, to); err != nil {
						t.Fatal(err)
					}
				}
			}
			got := any(document(t, in))
			if !g.Whole {
				got = difference(base, got)
			}
			compare(t, file, g, got)
		})
	}
}

// compare compares with the golden file, or writes it.
func compare(t *testing.T, file string, g golden, got any) {
	t.Helper()
	text, err := json.MarshalIndent(got, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		g.Output = text
		whole, err := json.MarshalIndent(g, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, append(whole, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	var want any
	if err := json.Unmarshal(g.Output, &want); err != nil {
		t.Fatal(err)
	}
	wanted, _ := json.MarshalIndent(want, "", "  ")
	if string(wanted) != string(text) {
		t.Errorf("got\n%s\nwant\n%s\n(go test -update writes what is got)", text, wanted)
	}
}

// document is the output of Build, or its error, as plain JSON values.
func document(t *testing.T, in Input) map[string]any {
	t.Helper()
	out, err := Build(in)
	if err != nil {
		return map[string]any{"error": err.Error()}
	}
	data, err := json.Marshal(out)
	if err != nil {
		t.Fatal(err)
	}
	var d map[string]any
	if err := json.Unmarshal(data, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// difference is what got has otherwise than base. Lists are compared as a whole, but for long ones of objects: there it
// is what came and what went.
func difference(base, got any) any {
	b, ok := base.(map[string]any)
	g, ok2 := got.(map[string]any)
	if !ok || !ok2 {
		return listDifference(base, got)
	}
	out := map[string]any{}
	for key, value := range g {
		if old, ok := b[key]; !ok {
			out[key] = value
		} else if !same(old, value) {
			out[key] = difference(old, value)
		}
	}
	for key := range b {
		if _, ok := g[key]; !ok {
			out[key] = "(gone)"
		}
	}
	return out
}

func listDifference(base, got any) any {
	b, ok := base.([]any)
	g, ok2 := got.([]any)
	if !ok || !ok2 || len(b)+len(g) < 16 {
		return got
	}
	missing := func(from, in []any) []any {
		out := []any{}
		for _, x := range from {
			if !slices.ContainsFunc(in, func(y any) bool { return same(x, y) }) {
				out = append(out, x)
			}
		}
		return out
	}
	return map[string]any{"came": missing(g, b), "went": missing(b, g)}
}

func same(a, b any) bool {
	x, _ := json.Marshal(a)
	y, _ := json.Marshal(b)
	return string(x) == string(y)
}

func TestSeccomp(t *testing.T) {
	in := plain()
	in.Container.Security.Seccomp.Kind = RuntimeDefault
	few, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	in.Container.Security.CapAdd = []string{"SYS_ADMIN"}
	many, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	allows := func(s *specs.Spec, call string) bool {
		return slices.ContainsFunc(s.Linux.Seccomp.Syscalls, func(c specs.LinuxSyscall) bool {
			return c.Action == specs.ActAllow && len(c.Args) == 0 && slices.Contains(c.Names, call)
		})
	}
	if few.Spec.Linux.Seccomp.DefaultAction != specs.ActErrno || allows(few.Spec, "mount") || !allows(few.Spec, "read") {
		t.Error("the default profile does not refuse mount and allow read")
	}
	if !allows(many.Spec, "mount") {
		t.Error("the default profile with CAP_SYS_ADMIN refuses mount")
	}
	if few.Spec.Version != "1.1.0" {
		t.Errorf("version %s", few.Spec.Version)
	}

	in = plain()
	in.Container.Security.Seccomp = Profile{Kind: Localhost, Path: "/p.json"}
	in.Seccomp = []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod"],"action":"SCMP_ACT_ERRNO"}]}`)
	out, err := Build(in)
	if err != nil || out.Spec.Linux.Seccomp.Syscalls[0].Names[0] != "chmod" {
		t.Errorf("localhost profile: %v", err)
	}
	in.Seccomp = []byte("{")
	if _, err := Build(in); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "/p.json") {
		t.Errorf("broken profile: %v", err)
	}
	in.Container.Security.Privileged = true
	if out, err := Build(in); err != nil || out.Spec.Linux.Seccomp != nil {
		t.Errorf("a privileged container has a filter (%v)", err)
	}
	in = plain()
	in.Host.UnsetSeccomp = RuntimeDefault
	if out, err := Build(in); err != nil || out.Spec.Linux.Seccomp == nil {
		t.Errorf("unset does not mean what the configuration says (%v)", err)
	}
	in.Host.NoSeccomp = true
	if _, err := Build(in); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a kernel without seccomp: %v", err)
	}
}

// FuzzBuild gives Build what a client may send: it fails with a kind, or the spec is one that can be run.
func FuzzBuild(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.json")
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		var g golden
		if err := json.Unmarshal(data, &g); err != nil {
			f.Fatal(err)
		}
		f.Add([]byte(g.Pod), []byte(g.Container), []byte(g.Image))
	}
	f.Fuzz(func(t *testing.T, pod, container, image []byte) {
		in := plain()
		_ = json.Unmarshal(pod, in.Pod)
		_ = json.Unmarshal(container, in.Container)
		_ = json.Unmarshal(image, &in.Image)
		out, err := Build(in)
		if err != nil {
			if !errors.Is(err, errdefs.ErrInvalidArgument) && !errors.Is(err, errdefs.ErrFailedPrecondition) {
				t.Fatalf("error of no kind: %v", err)
			}
			return
		}
		valid(t, out)
	})
}

func valid(t *testing.T, out Output) {
	t.Helper()
	s := out.Spec
	if len(s.Process.Args) == 0 || s.Process.Args[0] == "" || !filepath.IsAbs(s.Process.Cwd) {
		t.Fatalf("process %+v", s.Process)
	}
	names := map[string]bool{}
	for _, entry := range s.Process.Env {
		name, _, ok := strings.Cut(entry, "=")
		if !ok || name == "" || names[name] || strings.ContainsRune(entry, 0) {
			t.Fatalf("environment %q", s.Process.Env)
		}
		names[name] = true
	}
	places := map[string]bool{}
	for _, m := range s.Mounts {
		if !filepath.IsAbs(m.Destination) || filepath.Clean(m.Destination) != m.Destination || places[m.Destination] {
			t.Fatalf("mount at %q", m.Destination)
		}
		places[m.Destination] = true
	}
	kinds := map[specs.LinuxNamespaceType]bool{}
	for _, n := range s.Linux.Namespaces {
		if kinds[n.Type] {
			t.Fatalf("namespaces %+v", s.Linux.Namespaces)
		}
		kinds[n.Type] = true
	}
	for _, name := range out.PodNamespaces {
		if name == "shm" {
			continue
		}
		if !kinds[specs.LinuxNamespaceType(name)] {
			t.Fatalf("the pod's %s namespace is not in the spec", name)
		}
	}
	caps := s.Process.Capabilities
	for _, set := range [][]string{caps.Effective, caps.Inheritable, caps.Ambient, caps.Permitted} {
		for _, c := range set {
			if !slices.Contains(caps.Bounding, c) || !slices.Contains(hostCaps, c) {
				t.Fatalf("capability %s of %+v", c, caps)
			}
		}
	}
	if _, err := json.Marshal(s); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkBuild(b *testing.B) {
	in := plain()
	in.Container.Security.Seccomp.Kind = RuntimeDefault
	for b.Loop() {
		if _, err := Build(in); err != nil {
			b.Fatal(err)
		}
	}
}
