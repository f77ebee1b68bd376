package engine

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func TestStopWaitsForTheGraceAndNoLonger(t *testing.T) {
	w := newWorld()
	w.stubborn = true
	e := open(t, w, t.TempDir())
	_, id := runningContainer(t, e, "a")
	began := time.Now()
	must(t, e.StopContainer(background, id, 80*time.Millisecond))
	if took := time.Since(began); took < 80*time.Millisecond || took > 2*time.Second {
		t.Errorf("a stop with 80 ms of grace took %s", took)
	}
	if c, _ := e.Container(id); c.ExitCode != 137 {
		t.Errorf("exit code %d", c.ExitCode)
	}
}

func TestAShorterGraceShortensAStopInFlight(t *testing.T) {
	for name, hurry := range map[string]func(*Engine, string, string) error{
		"stop":       func(e *Engine, _, id string) error { return e.StopContainer(background, id, 0) },
		"remove":     func(e *Engine, _, id string) error { return e.RemoveContainer(background, id) },
		"stop pod":   func(e *Engine, pod, _ string) error { return e.StopPod(background, pod) },
		"remove pod": func(e *Engine, pod, _ string) error { return e.RemovePod(background, pod) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.stubborn = true
			e := open(t, w, t.TempDir())
			podID, id := runningContainer(t, e, "a")
			first := make(chan error, 1)
			go func() { first <- e.StopContainer(background, id, time.Hour) }()
			eventually(t, "the stop signal is sent", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return contains(w.calls, "Signal") })
			must(t, hurry(e, podID, id))
			select {
			case err := <-first:
				must(t, err)
			case <-time.After(5 * time.Second):
				t.Fatal("the long stop goes on")
			}
		})
	}
}

func TestAStopOfALostContainerEnds(t *testing.T) {
	w := newWorld()
	e := open(t, w, t.TempDir())
	_, id := runningContainer(t, e, "a")
	w.mu.Lock()
	delete(w.procs, id)
	w.mu.Unlock()
	must(t, e.StopContainer(background, id, time.Hour))
	if c, _ := e.Container(id); c.Reason != ReasonExitUnknown || c.ExitCode != 255 {
		t.Errorf("container is %+v", c)
	}
}

func TestDrain(t *testing.T) {
	w := newWorld()
	e := open(t, w, t.TempDir())
	for i := range 5 {
		runningContainer(t, e, fmt.Sprint("pod-", i))
	}
	must(t, e.Drain(background, time.Second))
	if n := len(e.Pods(PodFilter{State: PodReady})); n != 0 {
		t.Errorf("%d pods are ready", n)
	}
	for _, c := range e.Containers(ContainerFilter{}) {
		if c.State != ContainerExited || c.ExitCode != 143 {
			t.Errorf("a container is %s with code %d: it was not asked to end first", c.State, c.ExitCode)
		}
	}
}

func TestCloseEndsEverything(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 3 {
		e := open(t, newWorld(), t.TempDir())
		podID, _ := runningContainer(t, e, "a")
		must(t, e.StopPod(background, podID))
		must(t, e.Close())
		if _, err := e.RunPod(background, aPod("late")); !errdefs.IsUnavailable(err) {
			t.Errorf("a call after Close: %v", err)
		}
	}
	eventually(t, "all goroutines have ended", func() bool { return runtime.NumGoroutine() <= before })
}
