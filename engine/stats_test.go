package engine

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/criserver/criserver/engine/spec"
	"github.com/criserver/criserver/internal/cgstat"
)

func TestRate(t *testing.T) {
	start := time.Now()
	var r rate
	for _, tt := range []struct {
		after time.Duration
		usage uint64
		want  uint64
	}{
		{2 * time.Second, 1e9, 5e8},         // since the start
		{2500 * time.Millisecond, 3e9, 5e8}, // too near: the last answer
		{4 * time.Second, 5e9, 2e9},
		{5 * time.Second, 4e9, 2e9}, // a counter that ran backwards says nothing
		{6 * time.Second, 4e9, 0},
	} {
		if got := r.observe(start.Add(tt.after), tt.usage, start); got != tt.want {
			t.Errorf("after %v: %d, want %d", tt.after, got, tt.want)
		}
	}
}

// slowRootfs measures only when it is let.
type slowRootfs struct {
	Rootfs
	let   chan error
	calls chan string
}

func (s slowRootfs) Usage(ctx context.Context, key string) (uint64, uint64, error) {
	s.calls <- key
	select {
	case err := <-s.let:
		return 100, 2, err
	case <-ctx.Done():
		return 0, 0, ctx.Err()
	}
}

func TestLayerMeter(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	slow := slowRootfs{let: make(chan error), calls: make(chan string, 10)}
	m := newLayerMeter(ctx, slow, quiet(t))
	s := &layerState{key: "c1"}
	m.want(ctx, time.Millisecond, s)
	if s.last() != nil {
		t.Fatal("measured, though nothing was let through")
	}
	<-slow.calls
	m.want(ctx, time.Millisecond, s) // joins the one under way
	go func() { slow.let <- nil }()
	m.want(ctx, time.Minute, s)
	if got := s.last(); got == nil || got.Bytes != 100 || got.Inodes != 2 {
		t.Fatalf("got %+v", got)
	}
	m.want(ctx, time.Minute, s) // not due
	s.mu.Lock()
	s.next = time.Time{}
	s.mu.Unlock()
	m.want(ctx, time.Minute, s) // due, but there is an answer: it is not waited for
	<-slow.calls
	slow.let <- errors.New("told to fail")
	other := &layerState{key: "c2"}
	m.want(ctx, time.Millisecond, other)
	cancel()
	m.close()
	if got := s.last(); got == nil || got.Bytes != 100 {
		t.Errorf("a failed measurement took the last one away: %+v", got)
	}
	m.want(context.Background(), time.Minute, s, other) // closed: nothing is begun or waited for
	close(slow.calls)
	var keys []string
	for key := range slow.calls {
		keys = append(keys, key)
	}
	if len(keys) != 1 || keys[0] != "c2" {
		t.Errorf("measured besides: %q", keys)
	}
}

func TestOwnCgroups(t *testing.T) {
	e := &Engine{cfg: Config{CgroupParent: "/criserver"}, pods: map[string]*pod{}}
	for id, parent := range map[string]string{
		"default": "/criserver", "own": "/kubepods/pod1", "like": "/kubepods/pod1-b", "twin1": "/t", "twin2": "/t",
		"above": "/a", "beside": "/a-b", "below": "/a/c",
	} {
		e.pods[id] = &pod{record: podRecord{Pod: spec.Pod{ID: id, CgroupParent: parent}}}
	}
	own := e.ownCgroups()
	for id, want := range map[string]bool{
		"default": false, "own": true, "like": true, "twin1": false, "twin2": false, "above": false, "beside": true, "below": true,
	} {
		if own[id] != want {
			t.Errorf("%s: %v, want %v", id, own[id], want)
		}
	}
}

func TestSumOf(t *testing.T) {
	if sumOf(nil) != nil {
		t.Error("a sum of nothing")
	}
	one := ContainerStats{Cgroup: &cgstat.Sample{At: time.Unix(5, 0), CPU: cgstat.CPU{Usage: 3}, Memory: &cgstat.Memory{Usage: 10, InactiveFile: 4, Limit: 100}}}
	two := ContainerStats{Cgroup: &cgstat.Sample{At: time.Unix(4, 0), CPU: cgstat.CPU{Usage: 4}}}
	sum := sumOf([]ContainerStats{two, one})
	if sum.CPU.Usage != 7 || sum.Memory.WorkingSet() != 6 || sum.Memory.Limit != 0 || !sum.At.Equal(time.Unix(5, 0)) {
		t.Errorf("%+v, %+v", sum, sum.Memory)
	}
}

// A container whose cgroup is gone is left out of lists, and has no more than its layer when it is asked for.
func TestVanishedContainer(t *testing.T) {
	w := newWorld()
	e := open(t, w, t.TempDir())
	pod, id := runningContainer(t, e, "p")
	if all := e.ListContainerStats(t.Context(), ContainerFilter{}); len(all) != 0 {
		t.Errorf("listed: %+v", all)
	}
	s, err := e.ContainerStats(t.Context(), id)
	if err != nil || s.Cgroup != nil || s.Layer == nil || s.Layer.Bytes != 4096 {
		t.Errorf("%+v, %v", s, err)
	}
	p, err := e.PodStats(t.Context(), pod)
	if err != nil || p.Cgroup != nil || len(p.Links) != 1 {
		t.Errorf("%+v, %v", p, err)
	}
	if sum := e.LayersUsage(t.Context()); sum.Bytes != 4096 || sum.Inodes != 3 {
		t.Errorf("all layers: %+v", sum)
	}
	for _, err := range []error{
		func() error { _, err := e.ContainerStats(t.Context(), "nope"); return err }(),
		func() error { _, err := e.PodStats(t.Context(), "nope"); return err }(),
	} {
		if !errdefs.IsNotFound(err) {
			t.Errorf("an unknown id: %v", err)
		}
	}
}
