package cgstat

import (
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "write the golden files")

// TestGolden reads directories with files as kernels write them: what is asked of all machines cannot be had on one.
func TestGolden(t *testing.T) {
	for _, layout := range []string{"v2", "v2-bare", "v1", "hybrid"} {
		t.Run(layout, func(t *testing.T) {
			h := &Host{v1: map[string]*tree{}, pages: []string{"2MB"}}
			at := func(name string) *tree {
				dir := filepath.Join("testdata", layout, name)
				fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
				if errors.Is(err, unix.ENOENT) {
					return nil
				}
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { unix.Close(fd) })
				return &tree{path: dir, root: fd}
			}
			h.unified = at("unified")
			for _, name := range wanted {
				if found := at(name); found != nil {
					h.v1[name] = found
				}
			}
			for name, detail := range map[string]Detail{"basic": Basic, "full": Full} {
				s, err := h.Read("/c", detail)
				if err != nil {
					t.Fatal(err)
				}
				if time.Since(s.At) > time.Minute {
					t.Errorf("read at %v", s.At)
				}
				s.At = time.Time{}
				got, err := json.MarshalIndent(s, "", "  ")
				if err != nil {
					t.Fatal(err)
				}
				golden := filepath.Join("testdata", layout+"."+name+".json")
				if *update {
					if err := os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(golden)
				if err != nil {
					t.Fatal(err)
				}
				if string(got)+"\n" != string(want) {
					t.Errorf("%s: got %s\nwant %s", golden, got, want)
				}
			}
			if _, err := h.Read("/other", Basic); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a cgroup that is not there: %v", err)
			}
		})
	}
}

// TestKernel reads a cgroup in which something happened.
func TestKernel(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("cgroups are root's")
	}
	h, err := Machine()
	if err != nil {
		t.Fatal(err)
	}
	rel := "cgstat-test-" + strconv.Itoa(os.Getpid())
	trees := []*tree{h.unified}
	for _, one := range h.v1 {
		if !slices.Contains(trees, one) {
			trees = append(trees, one)
		}
	}
	burn := exec.Command("sh", "-c", "read x; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; sleep 100 & read y")
	stdin, err := burn.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	burn.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if err := burn.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Kill(-burn.Process.Pid, unix.SIGKILL)
		_ = burn.Wait()
		for _, one := range trees {
			if one == nil {
				continue
			}
			dir := filepath.Join(one.path, rel)
			for end := time.Now().Add(5 * time.Second); os.Remove(dir) != nil && time.Now().Before(end); {
				if _, err := os.Stat(dir); err != nil {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
		}
	})
	for _, one := range trees {
		if one == nil {
			continue
		}
		dir := filepath.Join(one.path, rel)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Skipf("cgroups cannot be made here: %v", err)
		}
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if data, err := os.ReadFile(filepath.Join(one.path, file)); err == nil {
				_ = os.WriteFile(filepath.Join(dir, file), data, 0)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(burn.Process.Pid)), 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := stdin.Write([]byte("go\n")); err != nil {
		t.Fatal(err)
	}
	var s *Sample
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if s, err = h.Read("/"+rel, Full); err != nil {
			t.Fatal(err)
		}
		pids, err := h.Processes("/" + rel)
		if err != nil {
			t.Fatal(err)
		}
		// The kernel adds small changes to memory.stat every two seconds only.
		if len(pids) == 2 && slices.Contains(pids, burn.Process.Pid) && s.CPU.Usage > 10e6 && s.Memory != nil && s.Memory.PageFaults > 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("processes %v, %+v", pids, s)
		}
	}
	if s.Memory.Usage == 0 || s.Memory.WorkingSet() > s.Memory.Usage {
		t.Errorf("memory %+v", s.Memory)
	}
	if s.Pids == nil || s.Pids.Current != 2 {
		t.Errorf("pids %+v", s.Pids)
	}
	if _, err := os.Stat("/proc/pressure/cpu"); err == nil && h.unified != nil && s.CPUPressure == nil {
		t.Error("no pressure, though the kernel has it")
	}
}

func TestRelative(t *testing.T) {
	for path, want := range map[string]string{
		"/kubepods/pod1/c":                     "kubepods/pod1/c",
		"kubepods-besteffort-pod1.slice:cri:c": "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice/cri-c.scope",
		":cri:c":                               "system.slice/cri-c.scope",
		"-.slice:cri:c":                        "cri-c.scope",
		"a.slice::c":                           "a.slice/c.scope",
		"/a-b.slice":                           "a.slice/a-b.slice",
	} {
		if got, err := Relative(path); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", path, got, err, want)
		}
	}
	for _, path := range []string{"", "/", "a", "a:b", "/a/../b", "/a//b", "a.slice:cri:", "a.slice:cri:../x", "/a\x00"} {
		if got, err := Relative(path); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q is let through as %q, %v", path, got, err)
		}
	}
}

func TestMemory(t *testing.T) {
	m := &Memory{Usage: 100, InactiveFile: 30, Limit: 90}
	if available, ok := m.Available(); m.WorkingSet() != 70 || !ok || available != 20 {
		t.Errorf("working set %d, available %d", m.WorkingSet(), available)
	}
	m.Limit, m.InactiveFile = 50, 10
	if available, ok := m.Available(); !ok || available != 0 {
		t.Errorf("above its limit: %d", available)
	}
	m.Limit, m.InactiveFile = 0, 200
	if _, ok := m.Available(); ok || m.WorkingSet() != 0 {
		t.Error("without a limit, all of it inactive")
	}
}

func TestPageSizes(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"hugepages-2048kB", "hugepages-1048576kB", "hugepages-64kB", "other"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	got := pageSizes(dir)
	slices.Sort(got)
	if want := []string{"1GB", "2MB", "64KB"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// FuzzParse looks for what makes a parser panic or invent numbers. The kernel is trusted, but its formats grow.
func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/*/*/c/*"} {
		files, _ := filepath.Glob(pattern)
		for _, name := range files {
			data, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if n, err := parseNumber(data); err == nil && n != 0 && !strings.Contains(string(data), strconv.FormatUint(n, 10)) {
			t.Errorf("%q is read as %d", data, n)
		}
		_ = parseCPUStat(data, &CPU{})
		_ = parseMemoryStatV1(data, &Memory{})
		_ = parseMemoryStatV2(data, &Memory{})
		_, _ = parsePressure(data)
		if devices, err := parseIOStat(data); err == nil && !slices.IsSortedFunc(devices, func(a, b Device) int { return int(a.Major) - int(b.Major) }) {
			t.Errorf("not in order: %+v", devices)
		}
		_, _ = parseBlkio(data, true, nil)
	})
}

func BenchmarkRead(b *testing.B) {
	h, err := Machine()
	if err != nil {
		b.Fatal(err)
	}
	rel := "cgstat-bench-" + strconv.Itoa(os.Getpid())
	for _, one := range append([]*tree{h.unified}, h.v1["cpuacct"], h.v1["memory"]) {
		if one == nil {
			continue
		}
		dir := filepath.Join(one.path, rel)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			b.Skip(err)
		}
		b.Cleanup(func() { _ = os.Remove(dir) })
	}
	for name, detail := range map[string]Detail{"basic": Basic, "full": Full} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := h.Read("/"+rel, detail); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
