package cdi

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
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

var update = flag.Bool("update", false, "write the golden files")

var good = []string{"testdata/etc", "testdata/run", "testdata/absent"}

// plain is the spec of a container before devices are added. The user is not root, who owns nodes by default.
func plain() *specs.Spec {
	major := int64(1)
	return &specs.Spec{
		Process: &specs.Process{Env: []string{"PATH=/bin", "HOME=/"}, User: specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{44}}},
		Mounts:  []specs.Mount{{Destination: "/usr/lib/acme/deep", Type: "tmpfs"}, {Destination: "/proc", Type: "proc"}},
		Linux: &specs.Linux{
			Devices: []specs.LinuxDevice{{Path: "/dev/acme0", Type: "c", Major: 9, Minor: 9}},
			Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{
				{Access: "rwm"}, {Allow: true, Type: "c", Major: &major, Access: "m"},
			}},
		},
	}
}

func TestInjectGolden(t *testing.T) {
	for name, devices := range map[string][]string{
		"whole": {"acme.com/gpu=0"},
		"later": {"acme.com/gpu=1"},
		"two":   {"acme.com/gpu=1", "acme.com/gpu=0"},
	} {
		t.Run(name, func(t *testing.T) {
			s := plain()
			if err := Inject(s, good, devices); err != nil {
				t.Fatal(err)
			}
			got, err := json.MarshalIndent(s, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(file, append(got, '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if string(got)+"\n" != string(want) {
				t.Errorf("%s differs (go test -update writes it):\n%s", file, got)
			}
		})
	}
}

func TestInjectErrors(t *testing.T) {
	for name, test := range map[string]struct {
		dirs   []string
		device string
		kind   error
		says   []string
	}{
		"no name":        {good, "acme.com/gpu", errdefs.ErrInvalidArgument, []string{`"acme.com/gpu"`, "vendor/class=name"}},
		"unknown":        {good, "acme.com/gpu=7", errdefs.ErrFailedPrecondition, []string{"acme.com/gpu=7", "testdata/etc, testdata/run"}},
		"in a torn file": {[]string{"testdata/broken"}, "acme.com/gpu=0", errdefs.ErrFailedPrecondition, []string{"acme.com/gpu=0", "of no use are: testdata/broken/torn.json"}},
		"no such node":   {[]string{"testdata/broken"}, "acme.com/nic=lost", errdefs.ErrFailedPrecondition, []string{"acme.com/nic=lost", "/dev/criserver-no-such-device"}},
		"no node":        {[]string{"testdata/broken"}, "acme.com/nic=file", errdefs.ErrFailedPrecondition, []string{"/etc/passwd", "not a device"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := Inject(plain(), test.dirs, []string{test.device})
			if !errors.Is(err, test.kind) {
				t.Fatalf("got %v, want a %v", err, test.kind)
			}
			for _, text := range test.says {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("%q does not say %q", err, text)
				}
			}
		})
	}
}

// A file that is broken takes nothing from those that are not.
func TestBrokenFileBesideGoodOnes(t *testing.T) {
	dirs := append([]string{"testdata/broken"}, good...)
	if err := Inject(plain(), dirs, []string{"acme.com/gpu=0"}); err != nil {
		t.Fatal(err)
	}
	state, err := Read(dirs)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"acme.com/gpu=0", "acme.com/gpu=1", "acme.com/nic=file", "acme.com/nic=lost"}; !slices.Equal(state.Devices, want) {
		t.Errorf("devices are %q, want %q", state.Devices, want)
	}
	if len(state.Errors) != 1 || len(state.Errors["testdata/broken/torn.json"]) == 0 {
		t.Errorf("errors are %q, want one of torn.json", state.Errors)
	}
}

// The same device may be asked for by many at once; what is read for one must not show through in another.
func TestInjectConcurrently(t *testing.T) {
	done := make(chan error)
	const many = 8
	for range many {
		go func() { done <- Inject(plain(), good, []string{"acme.com/gpu=0", "acme.com/gpu=1"}) }()
	}
	for range many {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestFromAnnotations(t *testing.T) {
	names, _, err := FromAnnotations(map[string]string{
		"cdi.k8s.io/b": "v.com/c=1", "cdi.k8s.io/a": "v.com/c=3,v.com/c=2", "other": "v.com/c=4",
	})
	if want := []string{"v.com/c=3", "v.com/c=2", "v.com/c=1"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("got %q, %v; want %q", names, err, want)
	}
	if _, key, err := FromAnnotations(map[string]string{"cdi.k8s.io/a": "v.com/c=3,"}); err == nil || key != "cdi.k8s.io/a" {
		t.Errorf("an empty name: got %v at %q", err, key)
	}
}

// FuzzInject feeds files of any content. Whatever is in them, there is a spec or an error, and rules allow something.
func FuzzInject(f *testing.F) {
	for _, name := range []string{"etc/acme.yaml", "run/acme.json", "broken/torn.json", "broken/lost.yaml"} {
		data, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, "acme.com/gpu=0")
	}
	f.Fuzz(func(t *testing.T, data []byte, name string) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "a.yaml"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		s := plain()
		if Inject(s, []string{dir}, []string{name}) != nil {
			return
		}
		for _, r := range s.Linux.Resources.Devices {
			if r.Access == "" {
				t.Errorf("a rule without access: %+v", r)
			}
		}
	})
}
