package engine

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/engine/spec"
	"github.com/criserver/criserver/internal/fsx"
)

// fakePlugins writes down what it is told, fails on order, and wants what a test wants.
type fakePlugins struct {
	mu     sync.Mutex
	events []string
	fail   string // the event that fails
	idle   bool

	create  func(ContainerStatus, *specs.Spec) Adjusted
	update  func(ContainerStatus, spec.Resources) (spec.Resources, Changes)
	stopped func(ContainerStatus) Changes

	joining sync.RWMutex
}

func (f *fakePlugins) Active() bool { return !f.idle }

func (f *fakePlugins) Hold() func() {
	f.joining.RLock()
	return f.joining.RUnlock
}

var errRefused = errors.New("told to refuse")

func (f *fakePlugins) told(event, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events = append(f.events, event+" "+name)
	if f.fail == event {
		return errRefused
	}
	return nil
}

func (f *fakePlugins) list() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.events)
}

func (f *fakePlugins) Pod(_ context.Context, event PodEvent, p PodStatus) error {
	return f.told(string(event), p.Pod.Name)
}

func (f *fakePlugins) UpdatePod(_ context.Context, p PodStatus, _, _ *spec.Resources) error {
	return f.told("update", p.Pod.Name)
}

func (f *fakePlugins) Container(_ context.Context, event ContainerEvent, _ PodStatus, c ContainerStatus) error {
	return f.told(string(event), c.Container.Name)
}

func (f *fakePlugins) Create(_ context.Context, _ PodStatus, c ContainerStatus, s *specs.Spec) (Adjusted, error) {
	err := f.told("create", c.Container.Name)
	if err != nil || f.create == nil {
		return Adjusted{}, err
	}
	return f.create(c, s), nil
}

func (f *fakePlugins) Update(_ context.Context, _ PodStatus, c ContainerStatus, r spec.Resources) (spec.Resources, Changes, error) {
	err := f.told("update", c.Container.Name)
	if err != nil || f.update == nil {
		return r, Changes{}, err
	}
	r, changes := f.update(c, r)
	return r, changes, nil
}

func (f *fakePlugins) Stopped(_ context.Context, _ PodStatus, c ContainerStatus) (Changes, error) {
	err := f.told("stop", c.Container.Name)
	if err != nil || f.stopped == nil {
		return Changes{}, err
	}
	return f.stopped(c), nil
}

func openWith(t testing.TB, w *world, state string, p Plugins) *Engine {
	t.Helper()
	e, err := Open(background, Config{
		StateDir: state, RootDir: t.TempDir(), Rootfs: fakeRootfs{w}, Network: fakeNetwork{w}, Shims: fakeShims{w}, Plugins: p, Log: quiet(t),
	})
	must(t, err)
	t.Cleanup(func() { must(t, e.Close()) })
	return e
}

func wantEvents(t *testing.T, f *fakePlugins, want ...string) {
	t.Helper()
	if got := f.list(); !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
}

func TestPluginsAreToldInOrder(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	f := &fakePlugins{}
	e := openWith(t, w, dir, f)
	podID, id := runningContainer(t, e, "a")
	must(t, e.UpdateContainer(background, id, spec.Resources{CPUShares: 512}))
	must(t, e.StopContainer(background, id, time.Minute))
	must(t, e.StopPod(background, podID))
	must(t, e.StopPod(background, podID))
	must(t, e.RemovePod(background, podID))
	wantEvents(t, f, "run a", "create main", "post-create main", "start main", "post-start main", "update main", "post-update main",
		"stop main", "stop a", "remove main", "remove a")
	nothingLeft(t, w, dir)
}

func TestPluginsAreToldOfAnEndOnce(t *testing.T) {
	w := newWorld()
	f := &fakePlugins{}
	e := openWith(t, w, t.TempDir(), f)
	_, id := runningContainer(t, e, "a")
	w.exit(id, 1)
	eventually(t, "plugins are told", func() bool { return slices.Contains(f.list(), "stop main") })
	must(t, e.StopContainer(background, id, 0))
	must(t, e.RemoveContainer(background, id))
	wantEvents(t, f, "run a", "create main", "post-create main", "start main", "post-start main", "stop main", "remove main")
}

func TestPluginsAreToldOfPodUpdates(t *testing.T) {
	w := newWorld()
	f := &fakePlugins{}
	e := openWith(t, w, t.TempDir(), f)
	podID, err := e.RunPod(background, aPod("a"))
	must(t, err)
	must(t, e.UpdatePod(background, podID, &spec.Resources{Memory: 1 << 30}, nil))
	wantEvents(t, f, "run a", "update a", "post-update a")
	f.fail = "update"
	if err := e.UpdatePod(background, podID, &spec.Resources{Memory: 2 << 30}, nil); !errors.Is(err, errRefused) {
		t.Errorf("got %v", err)
	}
	if p, _ := e.Pod(podID); p.Pod.Resources.Memory != 1<<30 {
		t.Errorf("resources are %+v", p.Pod.Resources)
	}
}

func TestPluginsThatRefuse(t *testing.T) {
	for event, want := range map[string][]string{
		"run":    {"run a", "stop a", "remove a"},
		"create": {"run a", "create main", "stop main", "remove main"},
		"start":  {"run a", "create main", "post-create main", "start main", "stop main"},
	} {
		t.Run(event, func(t *testing.T) {
			w, dir := newWorld(), t.TempDir()
			f := &fakePlugins{fail: event}
			e := openWith(t, w, dir, f)
			podID, err := e.RunPod(background, aPod("a"))
			var id string
			if err == nil {
				id, err = e.CreateContainer(background, aContainer(podID, "main"))
			}
			if err == nil {
				err = e.StartContainer(background, id)
			}
			if !errors.Is(err, errRefused) || !strings.Contains(err.Error(), "a plugin refuses") {
				t.Fatalf("got %v", err)
			}
			wantEvents(t, f, want...)
			if event == "start" && state(t, e, id) != ContainerExited {
				t.Errorf("the container is %s", state(t, e, id))
			}
			if event == "create" && len(e.Containers(ContainerFilter{})) > 0 {
				t.Error("there is a container that was refused")
			}
			f.fail = ""
			must(t, e.RemovePod(background, podID+"none")) // an unknown pod is no error
			if podID != "" {
				must(t, e.RemovePod(background, podID))
			}
			nothingLeft(t, w, dir)
			if _, err := e.RunPod(background, aPod("a")); err != nil {
				t.Errorf("once nobody refuses: %v", err)
			}
		})
	}
}

// What a plugin cannot keep from happening happens although it fails.
func TestPluginsThatFailAfterwards(t *testing.T) {
	for _, event := range []string{"post-create", "post-start", "post-update", "stop", "remove"} {
		t.Run(event, func(t *testing.T) {
			w, dir := newWorld(), t.TempDir()
			e := openWith(t, w, dir, &fakePlugins{fail: event})
			podID, id := runningContainer(t, e, "a")
			must(t, e.UpdateContainer(background, id, spec.Resources{CPUShares: 512}))
			must(t, e.StopPod(background, podID))
			must(t, e.RemovePod(background, podID))
			nothingLeft(t, w, dir)
		})
	}
}

func TestPluginsAdjust(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	shares := uint64(77)
	f := &fakePlugins{create: func(_ ContainerStatus, s *specs.Spec) Adjusted {
		s.Linux.Resources.CPU = &specs.LinuxCPU{Shares: &shares}
		s.Linux.CgroupsPath = "/elsewhere/x"
		return Adjusted{Namespaces: []specs.LinuxNamespaceType{specs.IPCNamespace}, Shm: true}
	}}
	e := openWith(t, w, dir, f)
	podID, err := e.RunPod(background, aPod("a"))
	must(t, err)
	id, err := e.CreateContainer(background, aContainer(podID, "main"))
	must(t, err)
	c, err := e.Container(id)
	must(t, err)
	if c.Container.Resources.CPUShares != shares || c.CgroupsPath != "/elsewhere/x" {
		t.Errorf("the status says %+v in %s", c.Container.Resources, c.CgroupsPath)
	}
	r, _ := e.containerRecord(id)
	if !slices.Equal(r.PodNamespaces, []string{"uts"}) {
		t.Errorf("the pod's namespaces are %q", r.PodNamespaces)
	}
	var s specs.Spec
	must(t, fsx.ReadJSON(filepath.Join(c.Dir, "config.json"), &s))
	if *s.Linux.Resources.CPU.Shares != shares {
		t.Error("config.json has not what the plugin wants")
	}
	again, err := e.CreateContainer(background, aContainer(podID, "main"))
	if err != nil || again != id {
		t.Errorf("asked for again: %s, %v", again, err)
	}
}

func TestPluginsChangeOthers(t *testing.T) {
	w := newWorld()
	f := &fakePlugins{}
	e := openWith(t, w, t.TempDir(), f)
	podID, first := runningContainer(t, e, "a")
	wants := func(shares uint64) Changes {
		return Changes{Updates: []ResourceUpdate{
			{ContainerID: first, Resources: spec.Resources{CPUShares: shares}}, {ContainerID: newID(), Resources: spec.Resources{CPUShares: 1}},
		}}
	}
	has := func(shares uint64) func() bool {
		return func() bool {
			c, err := e.Container(first)
			must(t, err)
			return c.Container.Resources.CPUShares == shares
		}
	}
	f.create = func(ContainerStatus, *specs.Spec) Adjusted { return Adjusted{Changes: wants(10)} }
	second, err := e.CreateContainer(background, aContainer(podID, "second"))
	must(t, err)
	if !has(10)() {
		t.Error("an update at a creation is not done before it")
	}
	f.create = nil
	must(t, e.StartContainer(background, second))
	f.update = func(c ContainerStatus, r spec.Resources) (spec.Resources, Changes) {
		r.CPUs = "0"
		return r, wants(20)
	}
	must(t, e.UpdateContainer(background, second, spec.Resources{CPUShares: 99}))
	if c, _ := e.Container(second); !has(20)() || c.Container.Resources.CPUShares != 99 || c.Container.Resources.CPUs != "0" {
		t.Errorf("an update is %+v", c.Container.Resources)
	}
	f.stopped = func(ContainerStatus) Changes { return wants(30) }
	must(t, e.StopContainer(background, second, 0))
	eventually(t, "what is wanted at a stop is done", has(30))
	f.create = func(ContainerStatus, *specs.Spec) Adjusted {
		return Adjusted{Changes: Changes{Evict: []Eviction{{ContainerID: first, Reason: "room"}}}}
	}
	_, err = e.CreateContainer(background, aContainer(podID, "third"))
	must(t, err)
	if state(t, e, first) != ContainerExited {
		t.Errorf("the evicted container is %s", state(t, e, first))
	}
}

// An update that cannot be done keeps the container from being created, unless it may fail.
func TestPluginsChangeOthersInVain(t *testing.T) {
	for optional, kind := range map[bool]error{false: errdefs.ErrInvalidArgument, true: nil} {
		w, dir := newWorld(), t.TempDir()
		f := &fakePlugins{}
		e := openWith(t, w, dir, f)
		podID, first := runningContainer(t, e, "a")
		f.create = func(ContainerStatus, *specs.Spec) Adjusted {
			return Adjusted{Changes: Changes{Updates: []ResourceUpdate{{
				ContainerID: first, Resources: spec.Resources{Memory: 2 << 20, MemorySwap: 1 << 20}, Optional: optional,
			}}}}
		}
		_, err := e.CreateContainer(background, aContainer(podID, "second"))
		if !errors.Is(err, kind) {
			t.Errorf("optional %t: got %v", optional, err)
		}
		if n := len(e.Containers(ContainerFilter{})); n != 1 && !optional {
			t.Errorf("there are %d containers", n)
		}
	}
}

// Two containers whose updates want something of each other do not wait for each other.
func TestPluginsCrossUpdates(t *testing.T) {
	w := newWorld()
	f := &fakePlugins{}
	e := openWith(t, w, t.TempDir(), f)
	podID, first := runningContainer(t, e, "a")
	second, err := e.CreateContainer(background, aContainer(podID, "second"))
	must(t, err)
	must(t, e.StartContainer(background, second))
	f.update = func(c ContainerStatus, r spec.Resources) (spec.Resources, Changes) {
		other := first
		if c.Container.ID == first {
			other = second
		}
		return r, Changes{Updates: []ResourceUpdate{{ContainerID: other, Resources: spec.Resources{CPUPeriod: 1000}}}}
	}
	done := make(chan error)
	const rounds = 20
	for _, id := range []string{first, second} {
		go func() {
			var err error
			for range rounds {
				err = errors.Join(err, e.UpdateContainer(background, id, spec.Resources{CPUShares: 10}))
			}
			done <- err
		}()
	}
	for range 2 {
		select {
		case err := <-done:
			must(t, err)
		case <-time.After(20 * time.Second):
			t.Fatal("they wait for each other")
		}
	}
}

// Whatever is created while a plugin joins is shown to it or told, and not lost.
func TestPluginsThatJoin(t *testing.T) {
	w := newWorld()
	f := &fakePlugins{}
	e := openWith(t, w, t.TempDir(), f)
	podID, err := e.RunPod(background, aPod("a"))
	must(t, err)
	f.joining.Lock()
	done := make(chan error)
	go func() {
		_, err := e.CreateContainer(background, aContainer(podID, "main"))
		done <- err
	}()
	time.Sleep(20 * time.Millisecond)
	_, containers := e.Shown()
	told := slices.Contains(f.list(), "create main")
	f.joining.Unlock()
	must(t, <-done)
	if len(containers) > 0 || told {
		t.Errorf("while a plugin joins: shown %d containers, told %t", len(containers), told)
	}
	if !slices.Contains(f.list(), "create main") {
		t.Error("the container was lost")
	}
	if pods, containers := e.Shown(); len(pods) != 1 || len(containers) != 1 {
		t.Errorf("shown %d pods and %d containers", len(pods), len(containers))
	}
}

func TestNoPluginIsCalledInVain(t *testing.T) {
	w := newWorld()
	f := &fakePlugins{idle: true}
	e := openWith(t, w, t.TempDir(), f)
	podID, id := runningContainer(t, e, "a")
	must(t, e.UpdateContainer(background, id, spec.Resources{CPUShares: 512}))
	must(t, e.RemovePod(background, podID))
	wantEvents(t, f)
}
