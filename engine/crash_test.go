package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/criserver/criserver/internal/fsx"
)

// scenario is the whole life of a pod; every step is repeated until it succeeds.
func scenario(t *testing.T, e *Engine) {
	t.Helper()
	var podID, id string
	again := func(what string, step func() error) {
		t.Helper()
		var err error
		for range 4 {
			if err = step(); err == nil {
				return
			}
		}
		t.Fatalf("%s fails again and again: %v", what, err)
	}
	p := aPod("a")
	for attempt := uint32(0); ; attempt++ {
		if attempt > 3 {
			t.Fatal("no container comes to run")
		}
		again("RunPod", func() (err error) {
			if podID, err = e.RunPod(background, p); errdefs.IsAlreadyExists(err) {
				p.Attempt++ // it was stopped before
			}
			return err
		})
		c := aContainer(podID, "main")
		c.Attempt = attempt
		again("CreateContainer", func() (err error) {
			if id, err = e.CreateContainer(background, c); errdefs.IsAlreadyExists(err) {
				c.Attempt++ // it has exited before
			}
			return err
		})
		//lint:ignore SA4000 the second call is the retry
		if e.StartContainer(background, id) == nil || e.StartContainer(background, id) == nil {
			break
		}
		if s, err := e.Container(id); err != nil || s.State != ContainerExited || s.Reason != ReasonStartError {
			t.Fatalf("a container that cannot be started is %s, %s (%v)", s.State, s.Reason, err)
		}
	}
	again("StopContainer", func() error { return e.StopContainer(background, id, time.Second) })
	again("StopPod", func() error { return e.StopPod(background, podID) })
	again("RemoveContainer", func() error { return e.RemoveContainer(background, id) })
	again("RemovePod", func() error { return e.RemovePod(background, podID) })
}

// TestEachCallFailsOnce fails each call at the seams once, with each of three kinds of failure, and repeats.
func TestEachCallFailsOnce(t *testing.T) {
	for _, failure := range []struct {
		name string
		err  error
		late bool
	}{
		{"refused", errors.New("no"), false},
		{"answer lost", errdefs.ErrUnavailable, true},
		{"answer lost and another error", errors.New("no"), true},
	} {
		for k := 1; ; k++ {
			w, dir, done := newWorld(), t.TempDir(), false
			e := open(t, w, dir)
			eventually(t, "the engine follows", func() bool { return count(w, "List") == 2 })
			start := 2
			w.watch(func(n int, name string) (error, bool) {
				if n != start+k {
					return nil, false
				}
				done = true
				return failure.err, failure.late
			})
			t.Run(fmt.Sprintf("%s/%d", failure.name, k), func(t *testing.T) { scenario(t, e) })
			must(t, e.Close())
			nothingLeft(t, w, dir)
			if t.Failed() {
				t.Fatalf("%s: call %d, of %v", failure.name, k, w.calls)
			}
			if !done {
				break
			}
		}
	}
}

// moment is what a kill -9 leaves: the directory and the world as they were.
type moment struct {
	dir   string
	world *world
	call  string
}

// TestKilledAtEveryCall takes what is on disk and in the world before and after each call as what a killed daemon left,
// and opens an engine on it.
func TestKilledAtEveryCall(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	e := open(t, w, dir)
	var mu sync.Mutex
	var moments []moment
	take := func(call string) {
		mu.Lock()
		defer mu.Unlock()
		copied := filepath.Join(t.TempDir(), "state")
		// Records may come and go while the tree is read: a copy may be one that never was as a whole, but it must do.
		_ = copyTree(dir, copied)
		moments = append(moments, moment{copied, w.clone(), call})
	}
	w.watch(func(n int, name string) (error, bool) {
		take(fmt.Sprint(n, " before ", name))
		return nil, false
	})
	w.mu.Lock()
	w.after = func(n int, name string) { take(fmt.Sprint(n, " after ", name)) }
	w.mu.Unlock()
	scenario(t, e)
	must(t, e.Close())
	if len(moments) < 10 {
		t.Fatalf("only %d moments", len(moments))
	}
	for _, m := range moments {
		t.Run(m.call, func(t *testing.T) { recovers(t, m) })
	}
}

// recovers opens an engine on what was left; the same client goes on.
func recovers(t *testing.T, m moment) {
	e := open(t, m.world, m.dir)
	for _, c := range e.Containers(ContainerFilter{}) {
		m.world.mu.Lock()
		p := m.world.procs[c.Container.ID]
		ran := p != nil && p.Exit == nil
		m.world.mu.Unlock()
		if ran != (c.State == ContainerRunning) {
			t.Errorf("a container is %s, its process runs: %t", c.State, ran)
		}
	}
	scenario(t, e) // the client goes on with what it finds
	for _, p := range e.Pods(PodFilter{}) {
		must(t, e.RemovePod(background, p.Pod.ID))
	}
	must(t, e.Close())
	nothingLeft(t, m.world, m.dir)
}

func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // it went while we looked
		}
		rel, _ := filepath.Rel(from, path)
		if entry.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil //nolint:nilerr // it went while we looked
		}
		return os.WriteFile(filepath.Join(to, rel), data, 0o600)
	})
}

func TestARestartSeesWhatHappenedMeanwhile(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	e := open(t, w, dir)
	_, on := runningContainer(t, e, "on")
	_, off := runningContainer(t, e, "off")
	_, lost := runningContainer(t, e, "lost")
	_, gone := runningContainer(t, e, "gone")
	must(t, e.Close())
	w.exit(off, 5)
	w.exit(gone, 6)
	w.mu.Lock()
	delete(w.procs, lost)
	delete(w.procs, gone) // but its exit.json is there
	w.mu.Unlock()

	e = open(t, w, dir)
	for id, want := range map[string]struct {
		state  ContainerState
		code   int
		reason string
	}{
		on: {ContainerRunning, 0, ""}, off: {ContainerExited, 5, ReasonError},
		lost: {ContainerExited, 255, ReasonExitUnknown}, gone: {ContainerExited, 6, ReasonError},
	} {
		c, err := e.Container(id)
		must(t, err)
		if c.State != want.state || c.ExitCode != want.code || c.Reason != want.reason {
			t.Errorf("%s: %s, code %d, %s; want %+v", id[:6], c.State, c.ExitCode, c.Reason, want)
		}
	}
	w.exit(on, 9)
	eventually(t, "its exit is seen after the restart", func() bool { return state(t, e, on) == ContainerExited })
}

func TestWhatIsNotOursOrBrokenIsRemoved(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	e := open(t, w, dir)
	keptPod, kept := runningContainer(t, e, "kept")
	_, broken := runningContainer(t, e, "broken")
	brokenPod, _ := runningContainer(t, e, "brokenpod")
	oldPod, _ := runningContainer(t, e, "old")
	must(t, e.Close())

	c, err := e.Container(broken)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(c.Dir, "container.json"), []byte("{half"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "pods", brokenPod, "pod.json"), nil, 0o600))
	var r podRecord
	must(t, fsx.ReadJSON(filepath.Join(dir, "pods", oldPod, "pod.json"), &r))
	r.BootID = "another"
	must(t, fsx.ReplaceJSON(filepath.Join(dir, "pods", oldPod, "pod.json"), r))
	must(t, os.Mkdir(filepath.Join(dir, "pods", newID()), 0o700))
	w.layers[newID()], w.attached[newID()] = true, true
	stray := newID()
	w.procs[stray] = &proc{}
	w.procs[stray].Id = stray

	e = open(t, w, dir)
	if state(t, e, kept) != ContainerRunning {
		t.Error("the good container is not running")
	}
	if _, err := e.Container(broken); !errdefs.IsNotFound(err) {
		t.Errorf("broken container: %v", err)
	}
	if n := len(e.Pods(PodFilter{})); n != 2 { // kept, and the pod whose container was broken
		t.Errorf("%d pods", n)
	}
	eventually(t, "the stray process is ended", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.procs[stray] == nil })
	for _, p := range e.Pods(PodFilter{}) {
		must(t, e.RemovePod(background, p.Pod.ID))
	}
	_ = keptPod
	must(t, e.Close())
	nothingLeft(t, w, dir)
}

func TestADeadShimIsWaitedFor(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	e := open(t, w, dir)
	podID, id := runningContainer(t, e, "a")
	w.setDown(true)
	time.AfterFunc(100*time.Millisecond, func() { w.setDown(false) })
	must(t, e.StopContainer(background, id, time.Second))
	if c, _ := e.Container(id); c.ExitCode != 143 {
		t.Errorf("exit code %d", c.ExitCode)
	}
	w.setDown(true)
	if err := e.RemovePod(background, podID); !errdefs.IsUnavailable(err) {
		t.Errorf("removal with a shim that stays dead: %v", err)
	}
	if p, err := e.Pod(podID); err != nil || p.State != PodNotReady {
		t.Errorf("the pod that could not be removed is %+v, %v", p.State, err)
	}
	w.setDown(false)
	must(t, e.RemovePod(background, podID))
	must(t, e.Close())
	nothingLeft(t, w, dir)
}

func TestLostNamespacesAreMadeAnew(t *testing.T) {
	w := newWorld()
	e := open(t, w, t.TempDir())
	podID, err := e.RunPod(background, aPod("a"))
	must(t, err)
	id, err := e.CreateContainer(background, aContainer(podID, "main"))
	must(t, err)
	w.mu.Lock()
	delete(w.pods, podID) // shim and keeper died together
	w.mu.Unlock()
	must(t, e.StartContainer(background, id))
	if state(t, e, id) != ContainerRunning {
		t.Error("it does not run")
	}
}

func TestOpenWithoutAShimWaitsForItBehind(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	e := open(t, w, dir)
	_, id := runningContainer(t, e, "a")
	must(t, e.Close())
	w.setDown(true)
	w.exit(id, 4)
	e = open(t, w, dir)
	if state(t, e, id) != ContainerRunning {
		t.Error("a container is not what its record says while the shim is away")
	}
	if shim, _ := e.Ready(context.Background()); !errdefs.IsUnavailable(shim) {
		t.Errorf("ready without a shim: %v", shim)
	}
	w.setDown(false)
	eventually(t, "the exit is seen", func() bool { return state(t, e, id) == ContainerExited })
}
