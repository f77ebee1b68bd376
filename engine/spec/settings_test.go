package spec

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestCheckBase(t *testing.T) {
	for text, want := range map[string]string{
		`{}`:                                                        "",
		`{"process":{"user":{"umask":7}}}`:                          "",
		`{"hostname":"a"}`:                                          "hostname",
		`{"domainname":"a"}`:                                        "domainname",
		`{"root":{"path":"/srv"}}`:                                  "root.path",
		`{"process":{"args":["a"]}}`:                                "process.args",
		`{"process":{"terminal":true}}`:                             "process.terminal",
		`{"process":{"user":{"uid":1}}}`:                            "process.user",
		`{"process":{"capabilities":{}}}`:                           "process.capabilities",
		`{"process":{"selinuxLabel":"a"}}`:                          "process.selinuxLabel",
		`{"linux":{"cgroupsPath":"/a"}}`:                            "linux.cgroupsPath",
		`{"linux":{"sysctl":{"a":"b"}}}`:                            "workload.default_sysctls",
		`{"linux":{"uidMappings":[{}]}}`:                            "linux.uidMappings",
		`{"linux":{"namespaces":[{"type":"network","path":"/a"}]}}`: "linux.namespaces",
		`{"mounts":[{"destination":"a"}]}`:                          "mounts",
		`{"windows":{}}`:                                            "windows",
	} {
		var s specs.Spec
		if err := json.Unmarshal([]byte(text), &s); err != nil {
			t.Fatal(err)
		}
		err := CheckBase(&s)
		if want == "" && err != nil || want != "" && (!errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
}

// TestBaseIsNotChanged: what Build answers with is edited by others.
func TestBaseIsNotChanged(t *testing.T) {
	base := &specs.Spec{Hooks: &specs.Hooks{Poststop: make([]specs.Hook, 1, 9)}, Annotations: map[string]string{"a": "b"}}
	in := plain()
	in.Settings.Base = base
	in.Settings.PodAnnotations, in.Pod.Annotations = []string{"*"}, map[string]string{"a": "c"}
	out, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	out.Spec.Hooks.Poststop[0].Path = "/changed"
	if base.Hooks.Poststop[0].Path != "" || base.Annotations["a"] != "b" || out.Spec.Annotations["a"] != "c" {
		t.Errorf("base %+v, %v", base.Hooks, base.Annotations)
	}
}

func TestClasses(t *testing.T) {
	in := plain()
	in.BlockIO, in.RDTClass = &specs.LinuxBlockIO{Weight: new(uint16(7))}, "gold"
	out, err := Build(in)
	if err != nil || *out.Spec.Linux.Resources.BlockIO.Weight != 7 || out.Spec.Linux.IntelRdt.ClosID != "gold" {
		t.Errorf("%+v, %v", out.Spec.Linux, err)
	}
}

func TestParseRlimit(t *testing.T) {
	for text, want := range map[string]Rlimit{
		"nofile=1024:524288":   {"RLIMIT_NOFILE", 1024, 524288},
		"core=0":               {"RLIMIT_CORE", 0, 0},
		"memlock=64:unlimited": {"RLIMIT_MEMLOCK", 64, math.MaxUint64},
		"stack=unlimited":      {"RLIMIT_STACK", math.MaxUint64, math.MaxUint64},
		"NPROC=1:2":            {"RLIMIT_NPROC", 1, 2},
	} {
		if got, err := ParseRlimit(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "nofile", "nofile=", "nofile=2:1", "files=1", "nofile=-1", "nofile=1:2:3", "nofile=a"} {
		if got, err := ParseRlimit(text); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
}
