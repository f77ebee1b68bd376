package engine

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/engine/spec"
	"github.com/criserver/criserver/internal/fsx"
)

func specOf(t *testing.T, c ContainerStatus) specs.Spec {
	t.Helper()
	var s specs.Spec
	must(t, fsx.ReadJSON(filepath.Join(c.Dir, "config.json"), &s))
	return s
}

// TestUpdateThatFails changes nothing that is recorded.
func TestUpdateThatFails(t *testing.T) {
	w := newWorld()
	e := open(t, w, t.TempDir())
	_, id := runningContainer(t, e, "a")
	must(t, e.UpdateContainer(background, id, spec.Resources{CPUShares: 512}))
	w.watch(func(_ int, name string) (error, bool) {
		if name == "Update" {
			return errdefs.ErrInvalidArgument, false
		}
		return nil, false
	})
	if err := e.UpdateContainer(background, id, spec.Resources{CPUShares: 7}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v", err)
	}
	c, err := e.Container(id)
	must(t, err)
	if got := *specOf(t, c).Linux.Resources.CPU.Shares; got != 512 || c.Container.Resources.CPUShares != 512 {
		t.Errorf("shares %d, in the spec %d", c.Container.Resources.CPUShares, got)
	}
	record, _ := e.containerRecord(id)
	if record.Update != nil {
		t.Error("the refused update is still to be done")
	}
}

// TestUpdateIsFinished has the daemon die in the midst of an update.
func TestUpdateIsFinished(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	e := open(t, w, dir)
	_, id := runningContainer(t, e, "a")
	ctx, cancel := context.WithCancel(background)
	w.watch(func(_ int, name string) (error, bool) {
		if name == "Update" {
			cancel()
			return errdefs.ErrUnavailable, true
		}
		return nil, false
	})
	if err := e.UpdateContainer(ctx, id, spec.Resources{CPUShares: 512}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	must(t, e.Close())
	w.watch(nil)
	e = open(t, w, dir)
	eventually(t, "the update is carried out", func() bool {
		c, err := e.Container(id)
		return err == nil && c.Container.Resources.CPUShares == 512
	})
	c, err := e.Container(id)
	must(t, err)
	if got := *specOf(t, c).Linux.Resources.CPU.Shares; got != 512 {
		t.Errorf("shares in the spec %d", got)
	}
}

// TestUpdateBeforeStart changes what the container is started with.
func TestUpdateBeforeStart(t *testing.T) {
	w := newWorld()
	e := open(t, w, t.TempDir())
	pod, err := e.RunPod(background, spec.Pod{Name: "p", Namespace: "n", UID: "u"})
	must(t, err)
	id, err := e.CreateContainer(background, spec.Container{PodID: pod, Name: "c", Image: "busybox", Command: []string{"x"}})
	must(t, err)
	must(t, e.UpdateContainer(background, id, spec.Resources{Memory: 1 << 20, OOMScoreAdj: 900}))
	if slices.Contains(w.calls, "Update") {
		t.Error("the shim was asked about a container that it does not know")
	}
	c, err := e.Container(id)
	must(t, err)
	s := specOf(t, c)
	if *s.Linux.Resources.Memory.Limit != 1<<20 || *s.Process.OOMScoreAdj != 900 {
		t.Errorf("limit %d, score %d", *s.Linux.Resources.Memory.Limit, *s.Process.OOMScoreAdj)
	}
}

func TestUpdatePod(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	e := open(t, w, dir)
	theirs, err := e.RunPod(background, spec.Pod{Name: "a", Namespace: "n", UID: "u", CgroupParent: "/kubepods/a", Resources: spec.Resources{Memory: 5}})
	must(t, err)
	ours, err := e.RunPod(background, spec.Pod{Name: "b", Namespace: "n", UID: "u", Resources: spec.Resources{Memory: 5}})
	must(t, err)
	must(t, e.UpdatePod(background, theirs, &spec.Resources{Memory: 7}, nil))
	if slices.Contains(w.calls, "Update") {
		t.Error("a cgroup was set that is the client's")
	}
	must(t, e.UpdatePod(background, ours, nil, &spec.Resources{Memory: 9}))
	if !slices.Contains(w.calls, "Update") {
		t.Error("the pod's own cgroup was not set")
	}
	must(t, e.Close())
	e = open(t, w, dir)
	a, err := e.Pod(theirs)
	must(t, err)
	b, err := e.Pod(ours)
	must(t, err)
	if a.Pod.Resources.Memory != 7 || b.Pod.Resources.Memory != 5 || b.Pod.Overhead.Memory != 9 {
		t.Errorf("recorded are %+v and %+v, %+v", a.Pod.Resources, b.Pod.Resources, b.Pod.Overhead)
	}
	if got := b.Pod.Cgroup(); got != "/criserver/pod"+ours {
		t.Errorf("cgroup %s", got)
	}
	w.watch(func(_ int, name string) (error, bool) {
		if name == "Update" {
			return errdefs.ErrFailedPrecondition, false
		}
		return nil, false
	})
	if err := e.UpdatePod(background, ours, &spec.Resources{Memory: 1}, nil); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("got %v", err)
	}
	if b, err = e.Pod(ours); err != nil || b.Pod.Resources.Memory != 5 {
		t.Errorf("recorded are %+v, %v", b.Pod.Resources, err)
	}
	must(t, e.StopPod(background, ours))
	if err := e.UpdatePod(background, ours, &spec.Resources{Memory: 1}, nil); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a stopped pod: %v", err)
	}
	if err := e.UpdatePod(background, "none", nil, nil); !errdefs.IsNotFound(err) {
		t.Errorf("no pod: %v", err)
	}
}
