package engine

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// story is what a feed has to say of some ids, until the last of them is deleted, as "name kind".
func story(t *testing.T, f *Feed, names map[string]string, end string) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var told []string
	for {
		event, err := f.Next(ctx)
		if err != nil {
			t.Fatalf("after %q: %v", told, err)
		}
		told = append(told, names[event.ID]+" "+string(event.Kind))
		if event.ID == end && event.Kind == EventDeleted {
			return told
		}
	}
}

func TestEvents(t *testing.T) {
	w := newWorld()
	e := open(t, w, t.TempDir())
	one, two := e.Subscribe(), e.Subscribe()
	defer two.Close()
	podID, id := runningContainer(t, e, "p")
	w.exit(id, 3)
	eventually(t, "the exit is seen", func() bool { return state(t, e, id) == ContainerExited })
	must(t, e.RemoveContainer(background, id))
	one.Close()
	must(t, e.StopPod(background, podID))
	must(t, e.RemovePod(background, podID))
	got := strings.Join(story(t, two, map[string]string{podID: "pod", id: "c"}, podID), ", ")
	want := "pod created, pod started, c created, c started, c stopped, c deleted, pod stopped, pod deleted"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 6 {
		if _, err := one.Next(ctx); err != nil {
			t.Fatalf("what a closed feed had already: %v", err)
		}
	}
	if event, err := one.Next(ctx); err == nil {
		t.Errorf("a closed feed goes on: %+v", event)
	}
}

func TestEventsShowTheState(t *testing.T) {
	w := newWorld()
	e := open(t, w, t.TempDir())
	f := e.Subscribe()
	defer f.Close()
	podID, id := runningContainer(t, e, "p")
	must(t, e.RemovePod(background, podID))
	for {
		event, err := f.Next(t.Context())
		must(t, err)
		if event.Pod.Pod.ID != podID || event.Pod.Pod.Name != "p" || event.At.IsZero() {
			t.Errorf("%+v", event)
		}
		if event.ID == id {
			want := map[EventKind]ContainerState{EventCreated: ContainerCreated, EventStarted: ContainerRunning, EventStopped: ContainerExited}[event.Kind]
			if event.Kind == EventDeleted && len(event.Containers) == 0 {
				continue
			}
			if len(event.Containers) != 1 || event.Containers[0].State != want {
				t.Errorf("%s: %+v", event.Kind, event.Containers)
			}
		}
		if event.ID == podID && event.Kind == EventDeleted {
			return
		}
	}
}

// A pod that did not come up, and a container that could not be made, were never there.
func TestNoEventsOfWhatFailed(t *testing.T) {
	w := newWorld()
	e := open(t, w, t.TempDir())
	f := e.Subscribe()
	defer f.Close()
	w.watch(func(_ int, name string) (error, bool) {
		if name == "Attach" || name == "Prepare" {
			return errdefs.ErrUnknown, false
		}
		return nil, false
	})
	if _, err := e.RunPod(background, aPod("p")); err == nil {
		t.Fatal("no error")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.queue) > 0 {
		t.Errorf("events %+v", f.queue)
	}
}

func TestSlowConsumer(t *testing.T) {
	e := &Engine{}
	slow := e.Subscribe()
	for i := range 5 * feedLength {
		slow.add(Event{ID: fmt.Sprint(i % 100), Kind: EventStarted})
	}
	slow.add(Event{ID: "1", Kind: EventStopped})
	slow.mu.Lock()
	if len(slow.queue) > feedLength+1 {
		t.Errorf("%d events are kept", len(slow.queue))
	}
	slow.mu.Unlock()
	last := map[string]EventKind{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for {
		event, err := slow.Next(ctx)
		if err != nil {
			break
		}
		last[event.ID] = event.Kind
	}
	if len(last) != 100 || last["1"] != EventStopped || last["99"] != EventStarted {
		t.Errorf("%d containers, %v", len(last), last["1"])
	}
	// So many containers that not even their last events are kept: the consumer is told.
	for i := range 4 * feedEnd {
		slow.add(Event{ID: fmt.Sprint(i)})
	}
	if _, err := slow.Next(t.Context()); !errdefs.IsResourceExhausted(err) {
		t.Errorf("got %v", err)
	}
}
