package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/criserver/criserver/engine/spec"
	"github.com/criserver/criserver/internal/fsx"
)

func quiet(testing.TB) *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

var background = context.Background()

func aPod(name string) spec.Pod {
	return spec.Pod{Name: name, Namespace: "default", UID: "u-" + name, Owner: "cri", Hostname: name}
}

func aContainer(podID, name string) spec.Container {
	return spec.Container{PodID: podID, Name: name, Image: "busybox"}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// running makes a pod with one running container.
func runningContainer(t testing.TB, e *Engine, name string) (podID, id string) {
	t.Helper()
	podID, err := e.RunPod(background, aPod(name))
	must(t, err)
	id, err = e.CreateContainer(background, aContainer(podID, "main"))
	must(t, err)
	must(t, e.StartContainer(background, id))
	return podID, id
}

// nothingLeft checks the invariant of every test that removed what it made.
func nothingLeft(t testing.TB, w *world, state string) {
	t.Helper()
	if left := w.leftovers(); len(left) > 0 {
		t.Errorf("left over: %s", strings.Join(left, ", "))
	}
	entries, err := os.ReadDir(filepath.Join(state, "pods"))
	must(t, err)
	for _, entry := range entries {
		t.Errorf("left over: directory %s", entry.Name())
	}
}

func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

func state(t testing.TB, e *Engine, id string) ContainerState {
	t.Helper()
	s, err := e.Container(id)
	must(t, err)
	return s.State
}

func TestLifecycle(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	e := open(t, w, dir)
	podID, id := runningContainer(t, e, "a")

	p, err := e.Pod(podID[:12])
	must(t, err)
	if p.State != PodReady || p.Network.IPs[0].String() != "10.9.0.2" {
		t.Errorf("pod is %+v", p)
	}
	c, err := e.Container(id[:12])
	must(t, err)
	if c.State != ContainerRunning || c.PID != 4242 || c.StartedAt.IsZero() || c.Container.ImageID != imageID || c.StopSignal != "SIGTERM" {
		t.Errorf("container is %+v", c)
	}
	if c.User.UID != 33 || c.User.GID != 34 {
		t.Errorf("user of the image is %+v", c.User)
	}
	hosts, err := os.ReadFile(filepath.Join(dir, "pods", podID, "hosts"))
	must(t, err)
	if !strings.Contains(string(hosts), "10.9.0.2\ta\n") {
		t.Errorf("hosts is %q", hosts)
	}
	must(t, e.StopContainer(background, id, time.Minute))
	if c, _ = e.Container(id); c.State != ContainerExited || c.ExitCode != 143 || c.Reason != ReasonError || c.PID != 0 || c.FinishedAt.IsZero() {
		t.Errorf("stopped container is %+v", c)
	}
	must(t, e.StopPod(background, podID))
	if p, _ = e.Pod(podID); p.State != PodNotReady || p.Network.Netns != "" {
		t.Errorf("stopped pod is %+v", p)
	}
	if len(e.Containers(ContainerFilter{PodID: podID, State: ContainerExited})) != 1 {
		t.Error("the exited container is gone before its removal")
	}
	must(t, e.RemovePod(background, podID))
	nothingLeft(t, w, dir)
	if _, err := e.Pod(podID); !errdefs.IsNotFound(err) {
		t.Errorf("removed pod: %v", err)
	}
}

func TestEverythingMayBeRepeated(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	e := open(t, w, dir)
	podID, id := runningContainer(t, e, "a")
	again, err := e.RunPod(background, aPod("a"))
	if err != nil || again != podID {
		t.Errorf("RunPod again: %s, %v", again, err)
	}
	again, err = e.CreateContainer(background, aContainer(podID, "main"))
	if err != nil || again != id {
		t.Errorf("CreateContainer again: %s, %v", again, err)
	}
	for _, step := range []func() error{
		func() error { return e.StartContainer(background, id) },
		func() error { return e.StopContainer(background, id, 0) },
		func() error { return e.StopPod(background, podID) },
		func() error { return e.RemoveContainer(background, id) },
		func() error { return e.RemovePod(background, podID) },
	} {
		must(t, step())
		if err := step(); err != nil {
			t.Errorf("repeated: %v", err)
		}
	}
	nothingLeft(t, w, dir)
}

func TestReasons(t *testing.T) {
	w := newWorld()
	e := open(t, w, t.TempDir())
	for _, test := range []struct {
		name   string
		code   int32
		oom    bool
		reason string
	}{{"done", 0, false, ReasonCompleted}, {"failed", 7, false, ReasonError}, {"oom", 137, true, ReasonOOMKilled}} {
		_, id := runningContainer(t, e, test.name)
		w.mu.Lock()
		w.exitLocked(id, test.code, test.oom)
		w.mu.Unlock()
		eventually(t, test.name+" has exited", func() bool { return state(t, e, id) == ContainerExited })
		if c, _ := e.Container(id); c.Reason != test.reason || c.ExitCode != int(test.code) {
			t.Errorf("%s: code %d, reason %s", test.name, c.ExitCode, c.Reason)
		}
		eventually(t, "the shim has let go", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.procs[id] == nil })
	}
}

func TestWrongInputNamesIt(t *testing.T) {
	w := newWorld()
	e := open(t, w, t.TempDir())
	podID, id := runningContainer(t, e, "a")
	for _, test := range []struct {
		name string
		kind error
		say  string
		do   func() error
	}{
		{"no pod name", errdefs.ErrInvalidArgument, "name", func() error { _, err := e.RunPod(background, spec.Pod{}); return err }},
		{"sysctl of the host", errdefs.ErrInvalidArgument, "vm.swappiness", func() error {
			p := aPod("b")
			p.Sysctls = map[string]string{"vm.swappiness": "1"}
			_, err := e.RunPod(background, p)
			return err
		}},
		{"handler", errdefs.ErrInvalidArgument, "kata", func() error {
			p := aPod("b")
			p.Handler = "kata"
			_, err := e.RunPod(background, p)
			return err
		}},
		{"other configuration", errdefs.ErrAlreadyExists, podID, func() error {
			p := aPod("a")
			p.Hostname = "other"
			_, err := e.RunPod(background, p)
			return err
		}},
		{"no such pod", errdefs.ErrNotFound, "nopod", func() error { _, err := e.CreateContainer(background, aContainer("nopod", "x")); return err }},
		{"no such image", errdefs.ErrNotFound, "noimage", func() error {
			c := aContainer(podID, "x")
			c.Image = "noimage"
			_, err := e.CreateContainer(background, c)
			return err
		}},
		{"log outside", errdefs.ErrInvalidArgument, "../x", func() error {
			c := aContainer(podID, "x")
			c.LogPath = "../x"
			_, err := e.CreateContainer(background, c)
			return err
		}},
		{"no such user", errdefs.ErrInvalidArgument, "nobody-here", func() error {
			c := aContainer(podID, "x")
			c.Security.RunAsUsername = "nobody-here"
			_, err := e.CreateContainer(background, c)
			return err
		}},
		{"empty id", errdefs.ErrInvalidArgument, "empty", func() error { return e.StartContainer(background, "") }},
		{"unknown container", errdefs.ErrNotFound, "zzz", func() error { return e.StartContainer(background, "zzz") }},
		{"empty command", errdefs.ErrInvalidArgument, "empty", func() error { _, err := e.Exec(background, id, nil, 0); return err }},
	} {
		err := test.do()
		if !errors.Is(err, test.kind) || !strings.Contains(err.Error(), test.say) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
	if n := len(e.Pods(PodFilter{})); n != 1 {
		t.Errorf("%d pods after refused ones", n)
	}
	if n := len(e.Containers(ContainerFilter{})); n != 1 {
		t.Errorf("%d containers after refused ones", n)
	}
}

func TestExec(t *testing.T) {
	w := newWorld()
	e := open(t, w, t.TempDir())
	_, id := runningContainer(t, e, "a")
	r, err := e.Exec(background, id, []string{"true", "now"}, time.Second)
	must(t, err)
	if string(r.Stdout) != "xxxxxxxxxx" || r.ExitCode != 3 || !strings.Contains(string(r.Stderr), `"args":["true","now"]`) {
		t.Errorf("exec answered %q %q %d", r.Stdout, r.Stderr, r.ExitCode)
	}
	if _, err := e.Exec(background, id, []string{"true"}, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("timed out: %v", err)
	}
	must(t, e.StopContainer(background, id, 0))
	if _, err := e.Exec(background, id, []string{"true"}, 0); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("exec in an exited container: %v", err)
	}
	if err := e.ReopenLog(background, id); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("reopen the log of an exited container: %v", err)
	}
}

func contains(calls []string, name string) bool {
	for _, c := range calls {
		if c == name {
			return true
		}
	}
	return false
}

func count(w *world, name string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.calls {
		if c == name {
			n++
		}
	}
	return n
}

func TestARetryJoinsWhatIsInFlight(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	e := open(t, w, dir)
	w.mu.Lock()
	w.hold = make(chan struct{})
	w.mu.Unlock()
	ctx, cancel := context.WithCancel(background)
	gone := make(chan error, 1)
	go func() {
		_, err := e.RunPod(ctx, aPod("a"))
		gone <- err
	}()
	eventually(t, "it is under way", func() bool { return count(w, "Attach") == 1 })
	cancel() // the first caller leaves; the pod comes up all the same
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("the caller that left got %v", err)
	}
	if n := len(e.Pods(PodFilter{})); n != 0 {
		t.Errorf("%d pods listed while it is made", n)
	}
	var ids [3]string
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			var err error
			if ids[i], err = e.RunPod(background, aPod("a")); err != nil {
				t.Error(err)
			}
		})
	}
	time.Sleep(20 * time.Millisecond)
	w.mu.Lock()
	close(w.hold)
	w.hold = nil
	w.mu.Unlock()
	wg.Wait()
	if ids[0] != ids[1] || ids[1] != ids[2] || len(e.Pods(PodFilter{})) != 1 || count(w, "Attach") != 1 {
		t.Errorf("ids %v, %d attached", ids, count(w, "Attach"))
	}
	must(t, e.RemovePod(background, ids[0]))
	nothingLeft(t, w, dir)
}

func TestAStoppedPodTakesNoContainers(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	e := open(t, w, dir)
	podID, err := e.RunPod(background, aPod("a"))
	must(t, err)
	id, err := e.CreateContainer(background, aContainer(podID, "early"))
	must(t, err)
	must(t, e.StopPod(background, podID))
	if err := e.StartContainer(background, id); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("start in a stopped pod: %v", err)
	}
	if _, err := e.CreateContainer(background, aContainer(podID, "late")); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("create in a stopped pod: %v", err)
	}
	if _, err := e.RunPod(background, aPod("a")); !errdefs.IsAlreadyExists(err) {
		t.Errorf("run of a stopped pod: %v", err)
	}
	must(t, e.RemovePod(background, podID))
	nothingLeft(t, w, dir)
	_, err = e.RunPod(background, aPod("a"))
	must(t, err)
}

func TestAFailedStartIsAnExit(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	e := open(t, w, dir)
	podID, err := e.RunPod(background, aPod("a"))
	must(t, err)
	id, err := e.CreateContainer(background, aContainer(podID, "main"))
	must(t, err)
	w.watch(func(_ int, name string) (error, bool) {
		if name == "Start" {
			return fmt.Errorf("execve /nope: no such file: %w", errdefs.ErrInvalidArgument), false
		}
		return nil, false
	})
	if err := e.StartContainer(background, id); !errdefs.IsInvalidArgument(err) {
		t.Errorf("start: %v", err)
	}
	c, _ := e.Container(id)
	if c.State != ContainerExited || c.ExitCode != StartErrorCode || c.Reason != ReasonStartError || !strings.Contains(c.Message, "/nope") {
		t.Errorf("container is %+v", c)
	}
	must(t, e.Close())
	w.watch(nil)
	e = open(t, w, dir)
	if c, _ = e.Container(id); c.Reason != ReasonStartError {
		t.Errorf("after a restart it is %+v", c)
	}
	must(t, e.RemovePod(background, podID))
	nothingLeft(t, w, dir)
}

func TestAMissingProgramIsNotAMissingContainer(t *testing.T) {
	w := newWorld()
	e := open(t, w, t.TempDir())
	_, id := runningContainer(t, e, "a")
	w.watch(func(_ int, name string) (error, bool) {
		if name == "Exec" {
			return fmt.Errorf("exec: /nope: no such file or directory: %w", errdefs.ErrNotFound), false
		}
		return nil, false
	})
	_, err := e.Exec(background, id, []string{"/nope"}, 0)
	if !errdefs.IsFailedPrecondition(err) || errdefs.IsNotFound(err) || !strings.HasSuffix(err.Error(), "/nope: no such file or directory") {
		t.Errorf("exec of a missing program: %v", err)
	}
	if err := aboutProcess("c1", fmt.Errorf("container c1: it broke: %w", errdefs.ErrUnavailable)); !errdefs.IsUnavailable(err) || err.Error() != "it broke: unavailable" {
		t.Errorf("got %v", err)
	}
}

func TestUpdateIsKept(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	e := open(t, w, dir)
	_, id := runningContainer(t, e, "a")
	must(t, e.UpdateContainer(background, id, spec.Resources{CPUShares: 512}))
	must(t, e.UpdateContainer(background, id, spec.Resources{Memory: 1 << 20}))
	must(t, e.Close())
	e = open(t, w, dir)
	c, err := e.Container(id)
	must(t, err)
	if c.Container.Resources.CPUShares != 512 || c.Container.Resources.Memory != 1<<20 {
		t.Errorf("resources are %+v", c.Container.Resources)
	}
	var s struct {
		Linux struct {
			Resources struct{ Devices []any }
		}
	}
	must(t, fsx.ReadJSON(filepath.Join(c.Dir, "config.json"), &s))
	if len(s.Linux.Resources.Devices) == 0 {
		t.Error("the update lost the rules for devices")
	}
}

func TestManyAtOnce(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	e := open(t, w, dir)
	var wg sync.WaitGroup
	for i := range 24 {
		wg.Go(func() {
			podID, id := runningContainer(t, e, fmt.Sprint("pod-", i))
			go w.exit(id, int32(i))
			switch i % 4 {
			case 0:
				must(t, e.StopContainer(background, id, time.Second))
			case 1:
				go func() { _ = e.RemoveContainer(background, id) }()
			case 2:
				must(t, e.StopPod(background, podID))
			}
			for range 2 {
				wg.Go(func() { must(t, e.RemovePod(background, podID)) })
			}
			_ = e.Containers(ContainerFilter{})
		})
	}
	wg.Wait()
	eventually(t, "all are gone", func() bool { return len(e.Pods(PodFilter{})) == 0 })
	must(t, e.Close())
	nothingLeft(t, w, dir)
}

func TestOnlyRootLooksIntoPods(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	e := open(t, w, dir)
	podID, id := runningContainer(t, e, "a")
	for _, path := range []string{"pods", "pods/" + podID, "pods/" + podID + "/" + id} {
		info, err := os.Stat(filepath.Join(dir, path))
		must(t, err)
		if info.Mode().Perm() != 0o700 {
			t.Errorf("%s has mode %s: what a container's root does there reaches anyone", path, info.Mode())
		}
	}
}

// BenchmarkPodCycle is what the engine itself costs: the seams answer at once.
func BenchmarkPodCycle(b *testing.B) {
	e := open(b, newWorld(), b.TempDir())
	for i := 0; b.Loop(); i++ {
		podID, _ := runningContainer(b, e, fmt.Sprint("pod-", i))
		must(b, e.StopPod(background, podID))
		must(b, e.RemovePod(background, podID))
	}
}
