package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/cni"
	"github.com/criserver/criserver/internal/fsx"
	"github.com/criserver/criserver/shim/api"
)

// world stands behind the engine's three seams and outlives engines. It can fail or watch any one call.
type world struct {
	mu       sync.Mutex
	changed  chan struct{} // closed and made anew when the list of exits grows
	layers   map[string]bool
	attached map[string]bool
	pods     map[string]bool // namespaces in the shim
	procs    map[string]*proc
	sequence uint64
	instance string
	down     bool // the shim cannot be reached
	stubborn bool // processes ignore SIGTERM
	hold     chan struct{}

	calls []string
	// before is called ahead of each call, numbered from 1; an error makes the call fail. With late it is the answer
	// that is lost: the call was carried out.
	before func(n int, name string) (err error, late bool)
	// after is called once a call was carried out, before its answer gets back.
	after func(n int, name string)
}

type proc struct {
	api.Container
	dir string
}

func newWorld() *world {
	return &world{
		changed: make(chan struct{}), layers: map[string]bool{}, attached: map[string]bool{}, pods: map[string]bool{},
		procs: map[string]*proc{}, instance: "first",
	}
}

// watch sets what is asked ahead of each call from now on.
func (w *world) watch(before func(n int, name string) (err error, late bool)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.before = before
}

// enter counts a call. The answer is called with the call's own error at its end.
func (w *world) enter(name string) (answer func(error) error, err error) {
	w.mu.Lock()
	w.calls = append(w.calls, name)
	n, before, after, hold := len(w.calls), w.before, w.after, w.hold
	w.mu.Unlock()
	if hold != nil && name != "List" && name != "Exits" {
		<-hold
	}
	var failure error
	var late bool
	if before != nil {
		failure, late = before(n, name)
	}
	if failure != nil && !late {
		return nil, fmt.Errorf("%s was told to fail: %w", name, failure)
	}
	return func(err error) error {
		if after != nil {
			after(n, name)
		}
		if failure != nil {
			return fmt.Errorf("the answer of %s was told to be lost: %w", name, failure)
		}
		return err
	}, nil
}

// clone copies the world as it is now; the copy has no faults.
func (w *world) clone() *world {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := newWorld()
	maps.Copy(c.layers, w.layers)
	maps.Copy(c.attached, w.attached)
	maps.Copy(c.pods, w.pods)
	for id, p := range w.procs {
		c.procs[id] = &proc{dir: p.dir, Container: api.Container{Id: p.Id, PodId: p.PodId, Pid: p.Pid, StartedAt: p.StartedAt, Exit: p.Exit}}
	}
	c.sequence = w.sequence
	return c
}

func (w *world) leftovers() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var left []string
	for _, kind := range []struct {
		name string
		keys map[string]bool
	}{{"layer", w.layers}, {"attachment", w.attached}, {"pod namespaces", w.pods}} {
		for key := range kind.keys {
			left = append(left, kind.name+" "+key)
		}
	}
	for id := range w.procs {
		left = append(left, "process "+id)
	}
	return left
}

// exit ends a container's process as its reaper would.
func (w *world) exit(id string, code int32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.exitLocked(id, code, false)
}

func (w *world) exitLocked(id string, code int32, oom bool) {
	p := w.procs[id]
	if p == nil || p.Exit != nil {
		return
	}
	p.Exit = &api.Exit{Code: code, ExitedAt: time.Now().UnixNano(), OomKilled: oom}
	_ = fsx.ReplaceJSON(filepath.Join(p.dir, "exit.json"), shimExit{Code: code, ExitedAt: p.Exit.ExitedAt, OOMKilled: oom})
	w.news()
}

func (w *world) news() {
	w.sequence++
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *world) setDown(down bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = down
	w.news()
}

// The image store.

type fakeRootfs struct{ *world }

const imageID = "sha256:1111"

func (f fakeRootfs) Image(_ context.Context, ref string) (Image, error) {
	answer, err := f.enter("Image")
	if err != nil {
		return Image{}, err
	}
	if ref != "busybox" {
		return Image{}, answer(errdefs.ErrNotFound)
	}
	return Image{ID: imageID, Ref: "r/busybox@" + imageID, Config: ocispec.ImageConfig{Cmd: []string{"sh"}, User: "web"}}, answer(nil)
}

func (f fakeRootfs) ReadFile(_ context.Context, _, path string, _ int64) ([]byte, error) {
	answer, err := f.enter("ReadFile")
	if err != nil {
		return nil, err
	}
	if path != "/etc/passwd" {
		return nil, answer(fs.ErrNotExist)
	}
	return []byte("root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n"), answer(nil)
}

func (f fakeRootfs) Prepare(_ context.Context, key, _ string) ([]mount.Mount, error) {
	answer, err := f.enter("Prepare")
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	f.layers[key] = true
	f.mu.Unlock()
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=/l", "upperdir=/u", "workdir=/w"}}}, answer(nil)
}

func (f fakeRootfs) Scratch(context.Context, string, int, string, string) (mount.Mount, error) {
	return mount.Mount{Type: "bind", Source: "/l"}, nil
}

func (f fakeRootfs) Volume(_ context.Context, key string, _ int, _, _ string) (mount.Mount, error) {
	answer, err := f.enter("Volume")
	if err != nil {
		return mount.Mount{}, err
	}
	f.mu.Lock()
	f.layers[key] = true
	f.mu.Unlock()
	return mount.Mount{Type: "overlay", Source: "overlay", Options: []string{"ro", "lowerdir=/l:/m"}}, answer(nil)
}

func (f fakeRootfs) Release(_ context.Context, key string) error {
	answer, err := f.enter("Release")
	if err != nil {
		return err
	}
	f.mu.Lock()
	if p := f.procs[key]; p != nil && p.Exit == nil {
		err = errors.New("release of the root of a running container")
	} else {
		delete(f.layers, key)
	}
	f.mu.Unlock()
	return answer(err)
}

func (f fakeRootfs) Usage(_ context.Context, key string) (bytes, inodes uint64, err error) {
	answer, err := f.enter("Usage")
	if err != nil {
		return 0, 0, err
	}
	f.mu.Lock()
	known := f.layers[key]
	f.mu.Unlock()
	if !known {
		return 0, 0, answer(errdefs.ErrNotFound)
	}
	return 4096, 3, answer(nil)
}

func (f fakeRootfs) Changes(context.Context, string, io.Writer) error {
	return errdefs.ErrNotImplemented
}
func (f fakeRootfs) Apply(context.Context, string, io.Reader) error { return errdefs.ErrNotImplemented }
func (f fakeRootfs) Directories(context.Context, string) ([]string, error) {
	return nil, errdefs.ErrNotImplemented
}

func (f fakeRootfs) Keys(context.Context) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Keys(f.layers)), nil
}

// The network.

type fakeNetwork struct{ *world }

func (f fakeNetwork) Attach(_ context.Context, r cni.Request) (cni.Result, error) {
	f.mu.Lock()
	f.attached[r.PodID] = true // what a failing Attach leaves is Detach's to clean up
	f.mu.Unlock()
	answer, err := f.enter("Attach")
	if err != nil {
		return cni.Result{}, err
	}
	return cni.Result{Netns: "/var/run/netns/criserver-" + r.PodID, IPs: []netip.Addr{netip.MustParseAddr("10.9.0.2")}}, answer(nil)
}

func (f fakeNetwork) Detach(_ context.Context, podID string) error {
	answer, err := f.enter("Detach")
	if err != nil {
		return err
	}
	f.mu.Lock()
	delete(f.attached, podID)
	f.mu.Unlock()
	return answer(nil)
}

func (f fakeNetwork) Attached(context.Context) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Keys(f.attached)), nil
}

func (f fakeNetwork) SetPodCIDRs([]netip.Prefix) error { return nil }

func (f fakeNetwork) Links(_ context.Context, podID string) ([]cni.LinkStats, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.attached[podID] {
		return nil, errdefs.ErrNotFound
	}
	return []cni.LinkStats{{Name: "eth0", RxBytes: 10, TxBytes: 20}}, nil
}

func (f fakeNetwork) Dial(context.Context, string, uint16) (net.Conn, error) {
	answer, err := f.enter("Dial")
	if err != nil {
		return nil, err
	}
	return nil, answer(nil)
}

func (f fakeNetwork) Ready(context.Context) error { return nil }

// The shim.
