package engine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/api"
)

type fakeShims struct{ *world }

// reach is enter for the shim, which may be down.
func (f fakeShims) reach(name string) (func(error) error, error) {
	f.mu.Lock()
	down := f.down
	f.mu.Unlock()
	if down {
		return nil, fmt.Errorf("shim is down: %w", errdefs.ErrUnavailable)
	}
	return f.enter(name)
}

func (f fakeShims) MapsOwners(context.Context, string) error { return nil }

func (f fakeShims) Info(context.Context) (*api.InfoResponse, error) {
	answer, err := f.reach("Info")
	if err != nil {
		return nil, err
	}
	return &api.InfoResponse{Instance: f.instance}, answer(nil)
}

func (f fakeShims) StartPod(_ context.Context, r *api.StartPodRequest) (*api.StartPodResponse, error) {
	answer, err := f.reach("StartPod")
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	f.pods[r.PodId] = true
	f.mu.Unlock()
	return &api.StartPodResponse{}, answer(nil)
}

func (f fakeShims) StopPod(_ context.Context, podID string) error {
	answer, err := f.reach("StopPod")
	if err != nil {
		return err
	}
	f.mu.Lock()
	delete(f.pods, podID)
	f.mu.Unlock()
	return answer(nil)
}

func (f fakeShims) Start(_ context.Context, r *api.StartRequest) (*api.StartResponse, error) {
	answer, err := f.reach("Start")
	if err != nil {
		return nil, err
	}
	p, err := f.start(r)
	if err != nil {
		return nil, answer(err)
	}
	return &api.StartResponse{Pid: p.Pid, StartedAt: p.StartedAt}, answer(nil)
}

func (w *world) start(r *api.StartRequest) (*proc, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, err := os.Stat(filepath.Join(r.Dir, "config.json")); err != nil {
		return nil, err
	}
	if !w.pods[r.PodId] && len(r.PodNamespaces) > 0 {
		return nil, fmt.Errorf("pod %s: %w", r.PodId, errdefs.ErrNotFound)
	}
	p := w.procs[r.Id]
	if p == nil {
		p = &proc{dir: r.Dir, Container: api.Container{Id: r.Id, PodId: r.PodId, Pid: 4242, StartedAt: time.Now().UnixNano()}}
		w.procs[r.Id] = p
	}
	return p, nil
}

func (f fakeShims) Signal(_ context.Context, r *api.SignalRequest) error {
	answer, err := f.reach("Signal")
	if err != nil {
		return err
	}
	f.mu.Lock()
	if f.procs[r.Id] == nil {
		err = fmt.Errorf("container %s: %w", r.Id, errdefs.ErrNotFound)
	} else if r.Signal == int32(unix.SIGKILL) || !f.stubborn {
		f.exitLocked(r.Id, 128+r.Signal, false)
	}
	f.mu.Unlock()
	return answer(err)
}

func (f fakeShims) Delete(_ context.Context, r *api.DeleteRequest) error {
	answer, err := f.reach("Delete")
	if err != nil {
		return err
	}
	f.mu.Lock()
	delete(f.procs, r.Id)
	f.mu.Unlock()
	return answer(nil)
}

func (f fakeShims) Exec(_ context.Context, r *api.ExecRequest, output func(stdout, stderr []byte)) (*api.ExecResponse, error) {
	answer, err := f.reach("Exec")
	if err != nil {
		return nil, err
	}
	output([]byte(strings.Repeat("x", 10)), nil)
	output(nil, r.Process)
	return &api.ExecResponse{Done: true, ExitCode: 3, TimedOut: r.TimeoutNs == 1}, answer(nil)
}

func (f fakeShims) ExecStream(_ context.Context, r *api.StreamOpen, s api.Streams) (int, error) {
	answer, err := f.reach("ExecStream")
	if err != nil {
		return 0, err
	}
	_, _ = s.Stdout.Write(r.Process)
	return 7, answer(nil)
}

func (f fakeShims) Attach(_ context.Context, r *api.StreamOpen, s api.Streams) error {
	answer, err := f.reach("Attach")
	if err != nil {
		return err
	}
	_, _ = s.Stdout.Write([]byte(r.Id))
	return answer(nil)
}

func (f fakeShims) Update(context.Context, *api.UpdateRequest) error {
	answer, err := f.reach("Update")
	if err != nil {
		return err
	}
	return answer(nil)
}

func (f fakeShims) List(context.Context) (*api.ListResponse, error) {
	answer, err := f.reach("List")
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	r := &api.ListResponse{Instance: f.instance, Sequence: f.sequence}
	for _, p := range f.procs {
		r.Containers = append(r.Containers, &api.Container{Id: p.Id, PodId: p.PodId, Pid: p.Pid, StartedAt: p.StartedAt, Exit: p.Exit})
	}
	f.mu.Unlock()
	return r, answer(nil)
}

func (f fakeShims) Exits(ctx context.Context, after uint64) (*api.ExitsResponse, error) {
	for {
		f.mu.Lock()
		changed, sequence, down := f.changed, f.sequence, f.down
		var exits []*api.Container
		for _, p := range f.procs {
			if p.Exit != nil {
				exits = append(exits, &api.Container{Id: p.Id, PodId: p.PodId, Pid: p.Pid, StartedAt: p.StartedAt, Exit: p.Exit})
			}
		}
		f.mu.Unlock()
		if down {
			return nil, errdefs.ErrUnavailable
		}
		if sequence > after {
			return &api.ExitsResponse{Sequence: sequence, Containers: exits}, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (f fakeShims) ReopenLog(context.Context, string) error {
	answer, err := f.reach("ReopenLog")
	if err != nil {
		return err
	}
	return answer(nil)
}

// open opens an engine on a world and a state directory; it is closed when the test ends, if not before.
func open(t testing.TB, w *world, state string) *Engine {
	t.Helper()
	e, err := Open(context.Background(), Config{
		StateDir: state, RootDir: state, Rootfs: fakeRootfs{w}, Network: fakeNetwork{w}, Shims: fakeShims{w},
		ShimWait: 500 * time.Millisecond, Log: quiet(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

// Checkpoints are tested with the real shim (test/e2e): here they are only refused.

func (f fakeShims) Freeze(context.Context, []string) (func(), error) {
	return nil, errdefs.ErrNotImplemented
}
func (f fakeShims) Thaw(context.Context, []string) error { return errdefs.ErrNotImplemented }
func (f fakeShims) Checkpoint(context.Context, *api.CheckpointRequest) error {
	return errdefs.ErrNotImplemented
}
