package runc

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestBundleSpec(t *testing.T) {
	ipc, err := os.Open("/proc/self/ns/ipc")
	if err != nil {
		t.Fatal(err)
	}
	defer ipc.Close()
	spec := &specs.Spec{
		Version: "1.0.2",
		Root:    &specs.Root{Path: "rootfs", Readonly: true},
		Process: &specs.Process{Args: []string{"sh"}, Cwd: "/"},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev/shm/", Type: "tmpfs", Source: "shm", Options: []string{"size=65536k"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: "/pod/c",
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace, Path: "/var/run/netns/x"}, {Type: specs.IPCNamespace}, {Type: specs.PIDNamespace},
			},
		},
	}
	before, _ := json.Marshal(spec)
	c := native.Config{
		Spec: spec, Rootfs: &native.Mount{Type: "overlay"}, Shm: os.Stdin,
		Namespaces: map[specs.LinuxNamespaceType]*os.File{specs.IPCNamespace: ipc},
	}
	got, err := json.MarshalIndent((&Container{dir: "/run/c"}).plan(c).spec(c, 77), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(got), fmt.Sprintf("/fd/%d", ipc.Fd()), "/fd/N") + "\n"
	if after, _ := json.Marshal(spec); string(after) != string(before) {
		t.Errorf("the spec was changed: %s", cmp.Diff(string(before), string(after)))
	}
	file := filepath.Join("testdata", "bundle.json")
	if *update {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), text); diff != "" {
		t.Errorf("not the golden one (go test -update writes it anew):\n%s", diff)
	}
}

// TestBundleSpecInUser is of a container that cannot mount everything by itself.
func TestBundleSpecInUser(t *testing.T) {
	mapping := []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}
	c := native.Config{
		Rootfs: &native.Mount{Type: "overlay"}, Proc: os.Stdin,
		Namespaces: map[specs.LinuxNamespaceType]*os.File{specs.UserNamespace: os.Stdin, specs.PIDNamespace: os.Stdin},
		Spec: &specs.Spec{
			Mounts: []specs.Mount{
				{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
				{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "ro"}},
				{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue"},
				{Destination: "/image", Type: "overlay", Source: "overlay", Options: []string{"lowerdir=/a:/b", "ro"}},
			},
			Linux: &specs.Linux{UIDMappings: mapping, GIDMappings: mapping, Namespaces: []specs.LinuxNamespace{
				{Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.PIDNamespace}, {Type: specs.UserNamespace},
			}},
		},
	}
	b := (&Container{dir: "/run/c", mounts: "/run/mounts/c"}).plan(c)
	got := b.spec(c, 77)
	if got.Root.Path != "/run/mounts/c/rootfs" || got.Linux.UIDMappings != nil || got.Linux.GIDMappings != nil || got.Linux.Namespaces[3].Path != "/proc/77/fd/0" {
		t.Errorf("root %v, linux %+v", got.Root, got.Linux)
	}
	bind := func(to, from string, options ...string) specs.Mount {
		return specs.Mount{Destination: to, Type: "bind", Source: from, Options: append([]string{"rbind", "rprivate"}, options...)}
	}
	want := []specs.Mount{
		bind("/proc", "/run/mounts/c/0", "nosuid", "noexec", "nodev"), bind("/sys", "/run/mounts/c/1", "nosuid", "ro"), c.Spec.Mounts[2],
		bind("/image", "/run/mounts/c/3", "ro"),
	}
	if diff := cmp.Diff(want, got.Mounts); diff != "" {
		t.Error(diff)
	}
	a := b.attachment(c)
	if a.User == nil || a.ProcAt != "/run/mounts/c/0" || !slices.Equal(a.Filesystems, []native.Filesystem{{Type: "sysfs", At: "/run/mounts/c/1"}}) ||
		len(a.Overlays) != 1 || a.Overlays[0].At != "/run/mounts/c/3" {
		t.Errorf("%+v", a)
	}
}

func TestParseLog(t *testing.T) {
	for name, tt := range map[string]struct {
		text     string
		warnings []string
		message  string
	}{
		"nothing":    {},
		"last error": {`{"level":"error","msg":"first"}` + "\n" + `{"level":"error","msg":"runc create failed: second\n"}` + "\n", nil, "runc create failed: second"},
		"warning":    {`{"level":"warning","msg":"careful"}` + "\n" + `{"level":"info","msg":"no"}` + "\n" + `{"level":"debug","msg":"no"}`, []string{"careful"}, ""},
		"no JSON":    {"panic: at the disco\n\xff\n", nil, "?"},
	} {
		t.Run(name, func(t *testing.T) {
			warnings, message := parseLog([]byte(tt.text))
			if !slices.Equal(warnings, tt.warnings) || message != tt.message {
				t.Errorf("%q, %q", warnings, message)
			}
		})
	}
}

func TestExplain(t *testing.T) {
	for message, want := range map[string]string{
		`runc create failed: unable to start container process: error during container init: exec: "x": executable file not found in $PATH`: `exec: "x": executable file not found in $PATH: not found`,
		`exec failed: unable to start container process: exec: "/x": stat /x: no such file or directory`:                                    `exec: "/x": stat /x: no such file or directory: not found`,
		"executable file `x` not found in $PATH: No such file or directory":                                                                 "exec: executable file `x` not found in $PATH: No such file or directory: not found",
		`mount /a: no such file or directory`: `runc create: mount /a: no such file or directory`,
	} {
		err := explain("runc create", message)
		if err.Error() != want || errdefs.IsNotFound(err) != strings.HasSuffix(want, ": not found") {
			t.Errorf("%q, want %q", err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"level":"error","msg":"exec: \"x\": executable file not found"}`))
	f.Add([]byte(`{"ociVersionMax":"1.3.0","mountOptions":["rro"]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		parseFeatures(text)
		if _, message := parseLog(text); message != "" && explain("x", message) == nil {
			t.Error("an error that is none")
		}
	})
}

func TestParseFeatures(t *testing.T) {
	for text, want := range map[string]Features{
		"":   {},
		"{":  {},
		"{}": {Known: true},
		`{"ociVersionMin":"1.0.0","ociVersionMax":"1.3.0","mountOptions":["ro","rro"],"linux":{}}`: {Known: true, RecursiveReadonly: true, Version: "1.3.0"},
		`{"ociVersionMax":"1.2.0","linux":{"namespaces":["pid","user"]}}`:                          {Known: true, Version: "1.2.0"},
		`{"linux":{"namespaces":["pid","user"],"mountExtensions":{"idmap":{"enabled":true}}}}`:     {Known: true, UserNamespaces: true, MappedMounts: true},
	} {
		if got := parseFeatures([]byte(text)); got != want {
			t.Errorf("%q: %+v, want %+v", text, got, want)
		}
	}
}

func TestProbe(t *testing.T) {
	if _, err := Probe(t.Context(), "/no/such/program"); err == nil {
		t.Error("a program that is not there has features")
	}
	if _, err := Probe(t.Context(), "/bin/false"); err == nil {
		t.Error("/bin/false has features")
	}
	if f, err := Probe(t.Context(), "/bin/echo"); err != nil || f.Known {
		t.Errorf("a program that says nothing of use: %+v, %v", f, err)
	}
}

// TestRemoveBundle removes what is mounted in a bundle and nothing that lies behind a mount.
func TestRemoveBundle(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("it mounts: run it as root")
	}
	bundle, precious := filepath.Join(t.TempDir(), "bundle"), t.TempDir()
	for _, dir := range []string{bundle, filepath.Join(bundle, rootfsName), filepath.Join(bundle, shmName), filepath.Join(bundle, "exec-1")} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	kept := filepath.Join(precious, "kept")
	if err := os.WriteFile(kept, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // one over the other
		if err := unix.Mount(precious, filepath.Join(bundle, rootfsName), "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := removeMounts(bundle, []string{rootfsName, shmName}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(bundle); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the bundle is left: %v", err)
	}
	if _, err := os.Stat(kept); err != nil {
		t.Error(err)
	}
}

func TestConsole(t *testing.T) {
	s, err := listenConsole(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	sock, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(sock)
	if err := unix.Connect(sock, &unix.SockaddrUnix{Name: s.path}); err != nil {
		t.Fatal(err)
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if err := unix.Sendmsg(sock, []byte("/dev/pts/1"), unix.UnixRights(int(null.Fd())), nil, 0); err != nil {
		t.Fatal(err)
	}
	f, err := s.receive()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if target, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd())); target != "/dev/null" {
		t.Errorf("received %q", target)
	}
	if _, err := s.receive(); err == nil {
		t.Error("nobody sends, and it is received")
	}
}
