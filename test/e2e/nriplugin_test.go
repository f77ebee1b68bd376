package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
)

// plugin is an NRI plugin in this process. It writes down what it is told of the pods of one test.
type plugin struct {
	stub stub.Stub

	mu                 sync.Mutex
	events             []string // with the name of the pod or container
	shown              []string // ids that it was shown when it joined
	last               map[string]*api.Container
	joined, gone       chan struct{} // closed when it was shown what there is, and when it was disconnected
	joinedOne, goneOne sync.Once

	// What it wants, each may be nil.
	sync   func([]*api.Container) []*api.ContainerUpdate
	run    func(*api.PodSandbox) error
	create func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error)
	update func(*api.Container, *api.LinuxResources) []*api.ContainerUpdate
}

// join has a plugin connect, and leave when the test ends.
func (n *node) join(t testing.TB, p *plugin) *plugin {
	t.Helper()
	p.last, p.joined, p.gone = map[string]*api.Container{}, make(chan struct{}), make(chan struct{})
	var err error
	p.stub, err = stub.New(p, stub.WithPluginName("test"), stub.WithPluginIdx("10"), stub.WithSocketPath(n.d.NRISocket),
		stub.WithOnClose(func() { p.goneOne.Do(func() { close(p.gone) }) }))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.stub.Start(context.WithoutCancel(t.Context())); err != nil {
		t.Fatalf("the plugin cannot join: %v", err)
	}
	t.Cleanup(p.stub.Stop)
	select {
	case <-p.joined:
	case <-time.After(callTimeout):
		t.Fatal("the plugin is not shown what there is")
	}
	return p
}

func (p *plugin) told(event, name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, event+" "+name)
}

func (p *plugin) list() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.events)
}

func (p *plugin) seen(event string, c *api.Container) {
	p.mu.Lock()
	p.last[event] = c
	p.mu.Unlock()
	p.told(event, c.GetName())
}

func (p *plugin) lastOf(event string) *api.Container {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last[event]
}

// wantEvents waits for all that a plugin should be told.
func (p *plugin) wantEvents(t testing.TB, want ...string) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		if got := p.list(); !slices.Equal(got, want) {
			return fmt.Errorf("the plugin was told\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
		}
		return nil
	})
}

func (p *plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	p.mu.Lock()
	for _, pod := range pods {
		p.shown = append(p.shown, pod.GetId())
	}
	for _, c := range containers {
		p.shown = append(p.shown, c.GetId())
	}
	p.mu.Unlock()
	p.joinedOne.Do(func() { close(p.joined) })
	if p.sync == nil {
		return nil, nil
	}
	return p.sync(containers), nil
}

func (p *plugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.told("run", pod.GetName())
	if p.run == nil {
		return nil
	}
	return p.run(pod)
}

func (p *plugin) StopPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.told("stop", pod.GetName())
	return nil
}

func (p *plugin) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.told("remove", pod.GetName())
	return nil
}

func (p *plugin) CreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	p.seen("create", c)
	if p.create == nil {
		return nil, nil, nil
	}
	return p.create(c)
}

func (p *plugin) PostCreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.seen("post-create", c)
	return nil
}

func (p *plugin) StartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.seen("start", c)
	return nil
}

func (p *plugin) PostStartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.seen("post-start", c)
	return nil
}

func (p *plugin) UpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container, r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	p.seen("update", c)
	if p.update == nil {
		return nil, nil
	}
	return p.update(c, r), nil
}

func (p *plugin) PostUpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.seen("post-update", c)
	return nil
}

func (p *plugin) StopContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	p.seen("stop", c)
	return nil, nil
}

func (p *plugin) RemoveContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.seen("remove", c)
	return nil
}
