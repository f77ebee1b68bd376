package cgroup

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// usual is what a container of a Kubernetes pod asks for.
func usual() *specs.LinuxResources {
	return &specs.LinuxResources{
		Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}},
		Memory:  &specs.LinuxMemory{Limit: new(int64(64 << 20)), Swap: new(int64(64 << 20))},
		CPU:     &specs.LinuxCPU{Shares: new(uint64(512)), Quota: new(int64(50000)), Period: new(uint64(100000))},
		Pids:    &specs.LinuxPids{Limit: new(int64(100))},
	}
}

// testRoot names a tree of cgroups for one test and removes it afterwards.
func testRoot(t testing.TB) string {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	root := fmt.Sprintf("/criserver-test-%08x", rand.Uint32())
	t.Cleanup(func() {
		all, err := New(root, nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := all.Kill(ctx); err != nil {
			t.Error(err)
		}
		if err := RemoveTree(ctx, root); err != nil {
			t.Error(err)
		}
		for _, h := range all.layout.all() {
			if h.exists(root[1:]) {
				t.Errorf("%s is left", h.path(root[1:]))
			}
		}
	})
	return root
}

func create(t testing.TB, path string, r *specs.LinuxResources) *Cgroup {
	t.Helper()
	c, err := New(path, r)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Create(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

// run starts a shell script in the cgroup the way the runtime does: cloned into the unified hierarchy, then joining the
// v1 ones by itself. It is killed and reaped at the end of the test.
func run(t testing.TB, c *Cgroup, script string) *exec.Cmd {
	t.Helper()
	join := ""
	for _, file := range c.TasksFiles() {
		join += "echo 0 > '" + file + "' || exit 97\n"
	}
	cmd := exec.Command("/bin/sh", "-c", join+script)
	cmd.Stderr = os.Stderr
	if dir := c.UnifiedDir(); dir != "" {
		d, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(d.Fd())}
	}
	ready, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	cmd.Args[2] = join + "echo x >&3; exec 3>&-\n" + script
	cmd.ExtraFiles = []*os.File{w}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if n, err := ready.Read(make([]byte, 1)); n != 1 {
		t.Fatalf("the process did not join: %v", err)
	}
	return cmd
}

// value reads a file of the cgroup: of the v1 controller where it is on v1, else of the unified hierarchy.
func value(t testing.TB, c *Cgroup, controller, v1File, v2File string) string {
	t.Helper()
	h, file := c.layout.unified, v2File
	if !c.layout.pure() {
		if h, file = c.layout.v1With(controller), v1File; h == nil {
			t.Skipf("the kernel has no v1 controller %s", controller)
		}
	}
	content, err := h.read(c.rel + "/" + file)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func expect(t testing.TB, c *Cgroup, controller, v1File, v1Want, v2File, v2Want string) {
	t.Helper()
	want := v1Want
	if c.layout.pure() {
		want = v2Want
	}
	if got := value(t, c, controller, v1File, v2File); got != want {
		t.Errorf("%s: %s/%s is %q, want %q", controller, v1File, v2File, got, want)
	}
}

func TestCreateSetsLimits(t *testing.T) {
	c := create(t, testRoot(t)+"/pod/c", usual())
	check := func() {
		t.Helper()
		expect(t, c, "memory", "memory.limit_in_bytes", "67108864", "memory.max", "67108864")
		expect(t, c, "cpu", "cpu.shares", "512", "cpu.weight", "59")
		expect(t, c, "cpu", "cpu.cfs_quota_us", "50000", "cpu.max", "50000 100000")
		expect(t, c, "pids", "pids.max", "100", "pids.max", "100")
	}
	check()
	if err := c.Create(t.Context()); err != nil { // again
		t.Fatal(err)
	}
	check()
	if h := c.layout.v1With("cpuset"); h != nil {
		all, err := h.read("cpuset.cpus")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := h.read(c.rel + "/cpuset.cpus"); err != nil || got != all {
			t.Errorf("cpuset.cpus is %q, %v, want %q", got, err, all)
		}
	}
	err := c.Set(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: new(int64(32 << 20))}, CPU: &specs.LinuxCPU{Cpus: "0"}})
	if err != nil {
		t.Fatal(err)
	}
	expect(t, c, "memory", "memory.limit_in_bytes", "33554432", "memory.max", "33554432")
	expect(t, c, "cpuset", "cpuset.cpus", "0", "cpuset.cpus", "0")
	expect(t, c, "pids", "pids.max", "100", "pids.max", "100")
	// Set to a default must be written, although Create would leave it out.
	if err := c.Set(&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: new(int64(-1))}, CPU: &specs.LinuxCPU{Quota: new(int64(-1))}}); err != nil {
		t.Fatal(err)
	}
	expect(t, c, "pids", "pids.max", "max", "pids.max", "max")
	expect(t, c, "cpu", "cpu.cfs_quota_us", "-1", "cpu.max", "max 100000")
}

func TestErrorsNameTheField(t *testing.T) {
	root := testRoot(t)
	c := create(t, root, nil)
	err := c.Set(&specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "4095"}})
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), root) {
		t.Errorf("a cpu that does not exist: %v", err)
	}
	gone, err := New(root+"/gone", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := gone.Set(usual()); !errdefs.IsNotFound(err) {
		t.Errorf("Set of an absent cgroup: %v", err)
	}
	if _, err := gone.OOMKills(); !errdefs.IsNotFound(err) {
		t.Errorf("OOMKills of an absent cgroup: %v", err)
	}
	if _, err := gone.Pids(); !errdefs.IsNotFound(err) {
		t.Errorf("Pids of an absent cgroup: %v", err)
	}
	if err := gone.Kill(t.Context()); err != nil {
		t.Errorf("Kill of an absent cgroup: %v", err)
	}
	if err := gone.Remove(t.Context()); err != nil {
		t.Errorf("Remove of an absent cgroup: %v", err)
	}
	if !c.layout.hasHugetlb() {
		none := &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB"}}}
		if _, err := New(root, none); err != nil && poolEmpty("2MB") {
			t.Errorf("no huge pages on a machine without any: %v", err)
		}
		none.HugepageLimits[0].Limit = 2 << 20
		if _, err := New(root, none); !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "hugepageLimits") {
			t.Errorf("huge pages without a controller: %v", err)
		}
	}
}

func TestKillEmptiesTheTree(t *testing.T) {
	root := testRoot(t)
	c := create(t, root+"/pod/c", usual())
	// Two cgroups that a workload made: on v2 one with children that have limits has no processes of its own.
	below, beside := create(t, root+"/pod/c/below", nil), create(t, root+"/pod/c/beside/deep", nil)
	run(t, beside, "sleep 1000 & sleep 1000 & wait")
	cmd := run(t, below, "trap '' TERM INT HUP; while :; do sleep 0.01; done")
	deadline := time.Now().Add(5 * time.Second)
	for {
		pids, err := c.Pids()
		if err != nil {
			t.Fatal(err)
		}
		if len(pids) >= 4 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("processes are %v, want 4", pids)
		}
		time.Sleep(time.Millisecond)
	}
	if err := RemoveTree(t.Context(), root+"/pod"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("RemoveTree of a populated cgroup: %v", err)
	}
	if err := c.Remove(t.Context()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Remove of a populated cgroup: %v", err)
	}
	start := time.Now()
	if err := c.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("Kill took %v", time.Since(start))
	_ = cmd.Wait()
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signal() != syscall.SIGKILL {
		t.Errorf("the process ended with %v", status)
	}
	if pids, err := c.Pids(); err != nil || len(pids) != 0 {
		t.Errorf("after Kill: %v, %v", pids, err)
	}
	if err := c.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	if err := c.Remove(t.Context()); err != nil {
		t.Errorf("the second time: %v", err)
	}
	if !c.main().exists(root[1:] + "/pod") {
		t.Error("Remove took the parent")
	}
	if err := RemoveTree(t.Context(), root+"/pod"); err != nil {
		t.Error(err)
	}
}

func TestKillOutrunsForks(t *testing.T) {
	c := create(t, testRoot(t), &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: new(int64(60))}})
	if !c.layout.pure() {
		// Without the unified hierarchy, so that the loop over pids and the freezer are what is tested.
		c = &Cgroup{layout: &layout{v1: c.layout.v1}, rel: c.rel, resources: c.resources}
	}
	run(t, c, `f() { while :; do f & f; done; }; f 2>/dev/null`)
	time.Sleep(100 * time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	start := time.Now()
	if err := c.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("Kill took %v", time.Since(start))
}

func TestKillFrozen(t *testing.T) {
	c := create(t, testRoot(t), nil)
	cmd := run(t, c, "exec sleep 1000")
	if h := c.layout.v1With("freezer"); h != nil {
		if err := h.write(c.rel+"/freezer.state", "FROZEN"); err != nil {
			t.Fatal(err)
		}
	} else if err := c.layout.unified.write(c.rel+"/cgroup.freeze", "1"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := c.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
}

func TestKillRefusesItsOwnCgroup(t *testing.T) {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		_, path, _ := strings.Cut(strings.TrimSpace(line), ":/")
		if path == "" {
			continue
		}
		c, err := New("/"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		// refuseOwn, not Kill: the test must not kill its machine when it fails.
		if err := c.refuseOwn(); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %v", path, err)
		}
		return
	}
	t.Skip("this process is in the root cgroup of every hierarchy")
}

func TestKillHonoursContext(t *testing.T) {
	c := create(t, testRoot(t), nil)
	run(t, c, "exec sleep 1000")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	// A process that is killed may be gone before the context is looked at, so both answers are right; what is wrong is
	// to hang.
	if err := c.Kill(ctx); err != nil && !strings.Contains(err.Error(), "are left") {
		t.Error(err)
	}
}

func TestOOMKills(t *testing.T) {
	c := create(t, testRoot(t), &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: new(int64(8 << 20)), Swap: new(int64(8 << 20))}})
	if n, err := c.OOMKills(); err != nil || n != 0 {
		t.Fatalf("before: %d, %v", n, err)
	}
	cmd := run(t, c, `head -c 100000000 /dev/zero | tail -c 90000000`)
	_ = cmd.Wait()
	if n, err := c.OOMKills(); err != nil || n == 0 {
		t.Errorf("after an OOM kill: %d, %v (process %v)", n, err, cmd.ProcessState)
	}
}

func TestDeviceRules(t *testing.T) {
	root := testRoot(t)
	c, err := New(root, usual())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Create(t.Context()); err != nil {
		t.Fatal(err)
	}
	node := filepath.Join(t.TempDir(), "kmsg")
	if err := unix.Mknod(node, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 11))); err != nil {
		t.Fatal(err)
	}
	read := func() int {
		cmd := run(t, c, "true < /dev/null && true > /dev/zero || exit 3; (: < '"+node+"') 2>/dev/null || exit 4")
		_ = cmd.Wait()
		return cmd.ProcessState.ExitCode()
	}
	if code := read(); code != 4 {
		t.Errorf("with kmsg denied the script ended with %d, want 4", code)
	}
	allow := []specs.LinuxDeviceCgroup{{Access: "rwm"}, {Allow: true, Type: "c", Major: new(int64(1)), Minor: new(int64(11)), Access: "rw"}}
	if err := c.Set(&specs.LinuxResources{Devices: allow}); err != nil {
		t.Fatal(err)
	}
	if code := read(); code != 0 {
		t.Errorf("with kmsg allowed the script ended with %d", code)
	}
}

func TestConcurrent(t *testing.T) {
	root := testRoot(t)
	errs := make(chan error)
	const n = 24
	for i := range n {
		go func() {
			c, err := New(fmt.Sprintf("%s/pod%d/c%d", root, i%3, i), usual())
			if err == nil {
				err = c.Create(context.Background())
			}
			if err == nil {
				err = c.Remove(context.Background())
			}
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func BenchmarkCreateRemove(b *testing.B) {
	root := testRoot(b)
	create(b, root+"/pod", nil)
	var creating, removing time.Duration
	for i := 0; b.Loop(); i++ {
		start := time.Now()
		c := create(b, fmt.Sprintf("%s/pod/c%d", root, i), usual())
		created := time.Now()
		if err := c.Remove(b.Context()); err != nil {
			b.Fatal(err)
		}
		creating, removing = creating+created.Sub(start), removing+time.Since(created)
	}
	b.ReportMetric(float64(creating.Microseconds())/float64(b.N), "us/create")
	b.ReportMetric(float64(removing.Microseconds())/float64(b.N), "us/remove")
}

func TestFreezeAndThaw(t *testing.T) {
	c := create(t, testRoot(t), nil)
	count := filepath.Join(t.TempDir(), "count")
	run(t, c, "while :; do echo x >> "+count+"; sleep 0.01; done")
	size := func() int64 {
		info, err := os.Stat(count)
		if err != nil {
			return 0
		}
		return info.Size()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	for range 2 { // what is frozen can be frozen
		if err := c.Freeze(ctx); err != nil {
			t.Fatal(err)
		}
	}
	frozen := size()
	time.Sleep(100 * time.Millisecond)
	if now := size(); now != frozen {
		t.Errorf("a frozen process wrote %d bytes", now-frozen)
	}
	for range 2 {
		if err := c.Thaw(); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(5 * time.Second); size() == frozen; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a thawed process does not go on")
		}
	}
	absent, err := New(c.Path()+"/absent", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := absent.Freeze(ctx); !errdefs.IsNotFound(err) {
		t.Errorf("freeze of a cgroup that is not there: %v, want not found", err)
	}
	if err := absent.Thaw(); err != nil {
		t.Errorf("thaw of a cgroup that is not there: %v", err)
	}
}
