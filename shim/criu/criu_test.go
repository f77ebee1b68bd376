package criu

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

var update = flag.Bool("update", false, "write the golden files")

// table is the mount table of a container as /proc/PID/mountinfo shows it.
const table = `100 90 0:30 / / rw,relatime - overlay overlay rw,lowerdir=/l,upperdir=/u,workdir=/w
101 100 0:31 / /proc rw,nosuid,nodev,noexec - proc proc rw
102 100 0:32 / /dev rw,nosuid - tmpfs tmpfs rw,mode=755
103 102 0:33 / /dev/pts rw - devpts devpts rw
104 102 0:34 / /dev/shm rw - tmpfs shm rw
105 100 0:35 / /sys ro - sysfs sysfs ro
106 105 0:25 / /sys/fs/cgroup ro - cgroup2 cgroup rw
107 100 0:20 /pods/p/hosts /etc/hosts rw - tmpfs tmpfs rw
108 100 8:1 /data /data rw - ext4 /dev/vda rw
109 108 8:2 / /data/below rw - ext4 /dev/vdb rw
110 101 0:5 /null /proc/kcore ro - devtmpfs devtmpfs rw
111 101 0:40 / /proc/acpi ro - tmpfs tmpfs ro,size=4k
112 101 0:31 /sys /proc/sys ro - proc proc rw
`

func testSpec() *specs.Spec {
	return &specs.Spec{
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc"}, {Destination: "/dev", Type: "tmpfs"}, {Destination: "/dev/pts", Type: "devpts"},
			{Destination: "/dev/shm", Type: "tmpfs"}, {Destination: "/sys", Type: "sysfs"}, {Destination: "/sys/fs/cgroup", Type: "cgroup"},
			{Destination: "/etc/hosts", Type: "bind", Source: "/run/p/hosts"},
			{Destination: "/data/", Source: "/srv/data", Options: []string{"rbind"}},
		},
		Linux: &specs.Linux{MaskedPaths: []string{"/proc/kcore", "/proc/acpi"}},
	}
}

func beneath(source, rest string) (string, error) { return source + "/" + rest, nil }

func testMounts(t *testing.T) []*mountinfo.Info {
	t.Helper()
	mounts, err := mountinfo.GetMountsFromReader(strings.NewReader(table), nil)
	if err != nil {
		t.Fatal(err)
	}
	return mounts
}

func TestMounts(t *testing.T) {
	kinds := map[string]string{}
	for _, m := range Mounts(testMounts(t), testSpec(), true) {
		kinds[m.Place] = m.Kind
	}
	want := map[string]string{
		"/dev/shm": KindShm, "/sys/fs/cgroup": KindCgroup, "/etc/hosts": KindBind, "/data": KindBind, "/data/below": KindBind, "/proc/kcore": KindMask,
	}
	if len(kinds) != len(want) {
		t.Errorf("%v, want %v", kinds, want)
	}
	for place, kind := range want {
		if kinds[place] != kind {
			t.Errorf("%s is %q, want %q", place, kinds[place], kind)
		}
	}
	for _, m := range Mounts(testMounts(t), testSpec(), false) {
		if m.Place == "/dev/shm" {
			t.Error("shared memory of its own is taken for the pod's")
		}
	}
}

// TestCommandLines pins what criu is told.
func TestCommandLines(t *testing.T) {
	d := Dump{
		PID: 4711, Images: "/c/checkpoint", Work: "/c", Freezer: "/sys/fs/cgroup/pod/c", Netns: 4026532000,
		Descriptors: Descriptors{
			Version: Version, Network: true, Joined: []string{"ipc", "uts"}, Mounts: Mounts(testMounts(t), testSpec(), true),
			Files: []File{{FileKey(26, 0xbeef), Stdout}, {FileKey(6, 4), Null}},
		},
	}
	r := Restore{
		Images: "/r/checkpoint", Work: "/r/work", Root: "/layers/7/fs", Network: 9, Descriptors: &d.Descriptors,
		Joined: map[string]string{"ipc": "/proc/1/fd/7", "uts": "/proc/1/fd/8"}, Streams: map[string]int{Stdout: 6, Null: 8},
		Sources: Sources{Spec: testSpec(), Shm: "/r/work/shm", Cgroup: map[string]string{"/sys/fs/cgroup": "/sys/fs/cgroup/pod/new"}, Beneath: beneath},
	}
	restore, err := r.Args()
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	for _, line := range [][]string{d.Args(), restore} {
		got.WriteString(strings.ReplaceAll(strings.Join(line, " "), " --", "\n  --") + "\n")
	}
	golden := filepath.Join("testdata", "commands.txt")
	if *update {
		if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil || got.String() != string(want) {
		t.Errorf("got\n%s\nwant\n%s%v", got.String(), want, err)
	}
	for name, change := range map[string]func(*Restore){
		"network":  func(r *Restore) { r.Network = 0 },
		"ipc":      func(r *Restore) { r.Joined = map[string]string{"uts": "x"} },
		"pid":      func(r *Restore) { r.Joined = map[string]string{"ipc": "x", "uts": "x", "pid": "x"} },
		"stdout":   func(r *Restore) { r.Streams = map[string]int{Null: 8} },
		"/dev/shm": func(r *Restore) { r.Sources.Shm = "" },
		"/data":    func(r *Restore) { s := testSpec(); s.Mounts = s.Mounts[:7]; r.Sources.Spec = s },
	} {
		other := r
		change(&other)
		if _, err := other.Args(); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), name) {
			t.Errorf("without %s: %v", name, err)
		}
	}
}

func TestParse(t *testing.T) {
	good, err := json.Marshal(Descriptors{Version: Version, Mounts: []Mount{{"m0", "/a", KindBind}}, Files: []File{{FileKey(1, 2), Null}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Parse(good); err != nil {
		t.Errorf("%s: %v", good, err)
	}
	for _, bad := range []string{
		`{`, `{}`, `{"version":2}`,
		`{"version":1,"mounts":[{"key":"m0]:/","place":"/a","kind":"bind"}]}`,
		`{"version":1,"mounts":[{"key":"m0","place":"a","kind":"bind"}]}`,
		`{"version":1,"mounts":[{"key":"m0","place":"/a/../b","kind":"bind"}]}`,
		`{"version":1,"mounts":[{"key":"m0","place":"/a","kind":"host"}]}`,
		`{"version":1,"files":[{"key":"file[1:2]:x","stream":"stdout"}]}`,
		`{"version":1,"files":[{"key":"tty[1:2]","stream":"stdout"}]}`,
		`{"version":1,"files":[{"key":"file[1:2]","stream":"/etc/shadow"}]}`,
		`{"version":1,"joined":["mnt"]}`,
	} {
		if _, err := Parse([]byte(bad)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v, want invalid", bad, err)
		}
	}
}

// FuzzParse: whatever comes, what a restore tells criu of it stays within what was asked for.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"version":1,"network":true,"joined":["ipc"],"mounts":[{"key":"m0","place":"/data/x","kind":"bind"}],"files":[{"key":"file[1:2]","stream":"null"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := Parse(data)
		if err != nil {
			return
		}
		r := Restore{
			Images: "/i", Work: "/w", Root: "/r", Network: 9, Descriptors: d, Joined: map[string]string{"ipc": "/proc/1/fd/7"},
			Streams: map[string]int{Null: 8}, Sources: Sources{Spec: testSpec(), Beneath: beneath},
		}
		args, err := r.Args()
		if err != nil {
			return
		}
		for i, a := range args {
			if i == 0 || args[i-1] != "--external" {
				continue
			}
			_, source, ok := strings.Cut(a, "]:")
			if !ok || source != "/dev/null" && !strings.HasPrefix(source, "/srv/data") && !strings.HasPrefix(source, "/run/p/hosts") {
				t.Errorf("%s is none of the container's mounts", a)
			}
			if filepath.Clean(source) != source {
				t.Errorf("%s is not a clean path", a)
			}
		}
	})
}

func TestExplain(t *testing.T) {
	log := "(00.01) Dumping\n(00.02) Error (criu/mount.c:1): mnt: no proper root\n(00.03) Warn  (x): y\n(00.04) Error (criu/cr-dump.c:2): Dumping FAILED.\n"
	if got, want := Explain(log), "mnt: no proper root; Dumping FAILED."; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := Explain("all is well\n"); got != "" {
		t.Errorf("%q", got)
	}
}

func TestSharedMemory(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	sparse := filepath.Join(from, "d", "sparse")
	if err := os.MkdirAll(filepath.Dir(sparse), 0o711); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(sparse, []byte("begin"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(sparse, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("d/sparse", filepath.Join(from, "link")); err != nil {
		t.Fatal(err)
	}
	a, b := root(t, from), root(t, to)
	var tarball bytes.Buffer
	if err := PackShm(a, &tarball); err != nil {
		t.Fatal(err)
	}
	for range 2 { // what is not empty stays as it is
		if err := UnpackShm(b, bytes.NewReader(tarball.Bytes())); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(filepath.Join(to, "link"))
	if err != nil || info.Size() != 1<<20 || info.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", info, err)
	}
	if got, _ := os.ReadFile(filepath.Join(to, "d", "sparse")); !bytes.HasPrefix(got, []byte("begin\x00")) {
		t.Errorf("content %q", got[:min(8, len(got))])
	}
}

func root(t *testing.T, dir string) *os.Root {
	t.Helper()
	r, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}
