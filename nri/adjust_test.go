package nri

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protojson"
)

var update = flag.Bool("update", false, "write the golden files")

// plain is a spec before plugins change it.
func plain() *specs.Spec {
	score, limit, shares := 0, int64(1<<20), uint64(2)
	mode := os.FileMode(0o600)
	return &specs.Spec{
		Process: &specs.Process{
			Args: []string{"sh"}, Env: []string{"PATH=/bin", "A=1", "AB=2"}, OOMScoreAdj: &score,
			Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_CORE", Hard: 1}},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc"}, {Destination: "/dev", Type: "tmpfs"}, {Destination: "/dev/shm", Type: "tmpfs"},
			{Destination: "/data", Type: "bind", Source: "/a"},
		},
		Annotations: map[string]string{"a": "1", "b": "2"},
		Linux: &specs.Linux{
			CgroupsPath: "/criserver/c1",
			Namespaces:  []specs.LinuxNamespace{{Type: "mount"}, {Type: "pid"}, {Type: "ipc"}, {Type: "network", Path: "/n"}},
			Devices:     []specs.LinuxDevice{{Path: "/dev/a", Type: "c", Major: 1, Minor: 1, FileMode: &mode}},
			Sysctl:      map[string]string{"net.a": "1"},
			Resources: &specs.LinuxResources{
				Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}},
				CPU:     &specs.LinuxCPU{Shares: &shares, Cpus: "0"}, Memory: &specs.LinuxMemory{Limit: &limit, Swap: &limit},
				HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 1}}, Unified: map[string]string{"memory.high": "1"},
			},
			Seccomp: &specs.LinuxSeccomp{DefaultAction: specs.ActErrno},
		},
	}
}

var names = resolver{
	devices: func(s *specs.Spec, names []string) error {
		for _, name := range names {
			s.Process.Env = append(s.Process.Env, "CDI="+name)
		}
		return nil
	},
	blockIO: func(class string) (*specs.LinuxBlockIO, error) {
		if class != "slow" {
			return nil, fmt.Errorf("blockio class %q: not configured: %w", class, errdefs.ErrFailedPrecondition)
		}
		return &specs.LinuxBlockIO{Weight: new(uint16(7))}, nil
	},
}

// golden compares what plugins make of the plain spec with testdata/name.out.json; what they want is in name.in.json.
func TestAdjustGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.in.json")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".in.json"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var a api.ContainerAdjustment
			if err := protojson.Unmarshal(data, &a); err != nil {
				t.Fatal(err)
			}
			s := plain()
			adjusted, err := adjust(s, &a, names)
			if err != nil {
				t.Fatal(err)
			}
			got, err := json.MarshalIndent(map[string]any{"spec": s, "adjusted": adjusted}, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			out := strings.TrimSuffix(file, ".in.json") + ".out.json"
			if *update {
				if err := os.WriteFile(out, append(got, '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			if string(got)+"\n" != string(want) {
				t.Errorf("%s differs (go test -update writes it):\n%s", out, got)
			}
		})
	}
}

func TestAdjustErrors(t *testing.T) {
	for want, text := range map[string]string{
		"args":                       `{"args": [""]}`,
		`env: "" is not the name`:    `{"env": [{"key": "", "value": "a"}]}`,
		`env: "A=B" is not the name`: `{"env": [{"key": "A=B"}]}`,
		"env A has a zero byte":      `{"env": [{"key": "A", "value": "\u0000"}]}`,
		"rlimits":                    `{"rlimits": [{"type": "RLIMIT_CORE", "soft": 2, "hard": 1}]}`,
		"hooks.poststop":             `{"hooks": {"poststop": [{"path": "hook"}]}}`,
		`mounts: destination "tmp"`:  `{"mounts": [{"destination": "tmp", "type": "tmpfs"}]}`,
		`mounts: destination "/"`:    `{"mounts": [{"destination": "-/"}]}`,
		"linux.cgroups_path":         `{"linux": {"cgroupsPath": "/a/../../b"}}`,
		"linux.oom_score_adj":        `{"linux": {"oomScoreAdj": {"value": 2000}}}`,
		"linux.devices: path":        `{"linux": {"devices": [{"path": "dev/x", "type": "c"}]}}`,
		"linux.devices: type":        `{"linux": {"devices": [{"path": "/dev/x", "type": "d"}]}}`,
		"linux.namespaces":           `{"linux": {"namespaces": [{"type": "moon"}]}}`,
		"linux.resources: unified":   `{"linux": {"resources": {"unified": {"cgroup.kill": "1"}}}}`,
		"linux.resources: hugepage":  `{"linux": {"resources": {"hugepageLimits": [{"limit": 1}]}}}`,
		"linux.resources: blockio":   `{"linux": {"resources": {"blockioClass": {"value": "fast"}}}}`,
	} {
		var a api.ContainerAdjustment
		if err := protojson.Unmarshal([]byte(text), &a); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		_, err := adjust(plain(), &a, names)
		if err == nil || !strings.HasPrefix(err.Error(), want) || !errdefs.IsInvalidArgument(err) && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: got %v, want %s", text, err, want)
		}
	}
}

// What plugins want changes nothing that the spec shares with others.
func TestAdjustSharesNothing(t *testing.T) {
	s := plain()
	env, mounts, resources := s.Process.Env, s.Mounts, s.Linux.Resources
	a := &api.ContainerAdjustment{}
	a.AddEnv("A", "x")
	a.RemoveMount("/data")
	a.SetLinuxCPUShares(9)
	a.AddLinuxUnified("memory.high", "2")
	a.AddAnnotation("a", "x")
	annotations, unified := s.Annotations, resources.Unified
	if _, err := adjust(s, a, names); err != nil {
		t.Fatal(err)
	}
	if env[1] != "A=1" || mounts[3].Destination != "/data" || *resources.CPU.Shares != 2 || unified["memory.high"] != "1" || annotations["a"] != "1" {
		t.Error("what the spec was made of has changed")
	}
}

// The library forgets in its answer what plugins took away.
func TestMarkRemoved(t *testing.T) {
	s := plain()
	shown := &api.Container{
		Env: []string{"PATH=/bin", "AB=3", "NEW=1"}, Mounts: api.FromOCIMounts(s.Mounts[:3]), Linux: &api.LinuxContainer{},
	}
	a := &api.ContainerAdjustment{Linux: &api.LinuxContainerAdjustment{}}
	markRemoved(a, s, shown)
	if len(a.Env) != 1 || a.Env[0].Key != "-A" || len(a.Mounts) != 1 || a.Mounts[0].Destination != "-/data" ||
		len(a.Linux.Devices) != 1 || a.Linux.Devices[0].Path != "-/dev/a" {
		t.Errorf("marked are %v, %v, %v", a.Env, a.Mounts, a.Linux.Devices)
	}
}

func TestResources(t *testing.T) {
	var r api.LinuxResources
	const text = `{"memory": {"limit": {"value": "5"}, "swap": {"value": "6"}}, "cpu": {"shares": {"value": "1"}, "quota": {"value": "2"},
		"period": {"value": "3"}, "cpus": "0", "mems": "1"}, "hugepageLimits": [{"pageSize": "2MB", "limit": "7"}], "unified": {"a.b": "c"}}`
	if err := protojson.Unmarshal([]byte(text), &r); err != nil {
		t.Fatal(err)
	}
	got, err := resourcesOf(&r)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := resourcesOf(showResources(got)); err != nil || !sameJSON(again, got) {
		t.Errorf("shown and taken back: %+v, %v; want %+v", again, err, got)
	}
	for field, text := range map[string]string{
		"memory.reservation": `{"memory": {"reservation": {"value": "1"}}}`, "pids": `{"pids": {"limit": "1"}}`,
		"cpu.realtime_period": `{"cpu": {"realtimePeriod": {"value": "1"}}}`, "rdt_class": `{"rdtClass": {"value": "x"}}`,
	} {
		var r api.LinuxResources
		if err := protojson.Unmarshal([]byte(text), &r); err != nil {
			t.Fatal(err)
		}
		if _, err := resourcesOf(&r); !errdefs.IsNotImplemented(err) || !strings.HasPrefix(err.Error(), field+" ") {
			t.Errorf("%s: got %v", field, err)
		}
	}
}

func sameJSON(a, b any) bool {
	x, err := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return err == nil && err2 == nil && string(x) == string(y)
}

// FuzzAdjust lets plugins want anything. There is an error, or a spec whose places are sound.
func FuzzAdjust(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.in.json")
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var a api.ContainerAdjustment
		if protojson.Unmarshal(data, &a) != nil {
			return
		}
		s := plain()
		if _, err := adjust(s, &a, names); err != nil {
			return
		}
		seen := map[string]bool{}
		for _, m := range s.Mounts {
			if !filepath.IsAbs(m.Destination) || seen[m.Destination] {
				t.Errorf("a mount at %q", m.Destination)
			}
			seen[m.Destination] = true
		}
		for _, e := range s.Process.Env {
			if strings.ContainsRune(e, 0) {
				t.Errorf("a variable with a zero byte: %q", e)
			}
		}
		if slices.Contains(s.Process.Args[:1], "") {
			t.Error("no program is named")
		}
	})
}
