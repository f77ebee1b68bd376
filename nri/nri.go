// Package nri lets plugins of the Node Resource Interface take part: they are told what becomes of pods and containers,
// change containers before they are made and afterwards, and may refuse them. Plugins connect to a socket, or are started
// from a directory.
//
// Plugins is engine.Plugins. What plugins are shown is made from the engine's statuses (show.go), what they want is checked
// and applied to OCI specs (adjust.go, adjustlinux.go) or answered as the engine's changes (resources.go).
package nri

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	nrilog "github.com/containerd/nri/pkg/log"
	validator "github.com/containerd/nri/plugins/default-validator"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/status"

	"github.com/criserver/criserver/engine"
	"github.com/criserver/criserver/engine/spec"
)

// Config says where plugins come from and what they may do. The paths are absolute.
type Config struct {
	// Name and Version are those of this program, for plugins to see.
	Name, Version string
	// SocketPath is where plugins connect. Its directory is made for root alone, and must be writable by nobody else.
	SocketPath string
	// PluginPath has the programs that are started as plugins, named as 10-name; PluginConfigPath what they are configured with.
	PluginPath, PluginConfigPath string
	// DisableConnections leaves the socket out.
	DisableConnections bool
	// RegistrationTimeout and RequestTimeout bound what a plugin may take. They are those of the whole process.
	RegistrationTimeout, RequestTimeout time.Duration
	// Validator configures the validator that is built in.
	Validator validator.DefaultValidatorConfig
	// Log receives what operators should know; nil is slog.Default.
	Log *slog.Logger
}

// Plugins are the plugins that have joined. Its methods may be called concurrently.
type Plugins struct {
	cfg Config
	log *slog.Logger
	r   *adaptation.Adaptation
	// active counts the plugins that have joined.
	active atomic.Int64
	// starting is held while plugins are started, which the library does not guard against what happens meanwhile.
	starting sync.RWMutex

	engine *engine.Engine // set by Start
	ctx    context.Context
	cancel context.CancelFunc
	behind sync.WaitGroup // what a plugin wants when it joins
}

var _ engine.Plugins = (*Plugins)(nil)

// New makes plugins; none joins before Start. Close lets go of it.
func New(cfg Config) (*Plugins, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	p := &Plugins{cfg: cfg, log: cfg.Log}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	nrilog.Set(logger{cfg.Log})
	adaptation.SetPluginRegistrationTimeout(cfg.RegistrationTimeout)
	adaptation.SetPluginRequestTimeout(cfg.RequestTimeout)
	options := []adaptation.Option{
		adaptation.WithSocketPath(cfg.SocketPath), adaptation.WithPluginPath(cfg.PluginPath),
		adaptation.WithPluginConfigPath(cfg.PluginConfigPath), adaptation.WithDefaultValidator(&cfg.Validator),
		adaptation.WithMetrics(&counter{active: &p.active}), adaptation.WithDeprecationRecorder(deprecations{cfg.Log}),
	}
	if cfg.DisableConnections {
		options = append(options, adaptation.WithDisabledExternalConnections())
	}
	var err error
	if p.r, err = adaptation.New(cfg.Name, cfg.Version, p.synchronize, p.unsolicited, options...); err != nil {
		return nil, fmt.Errorf("nri: %w", err)
	}
	return p, nil
}

// Start starts the plugins of the plugin directory and lets others connect. They are shown what e has.
func (p *Plugins) Start(e *engine.Engine) error {
	if err := p.checkPaths(); err != nil {
		return err
	}
	p.starting.Lock()
	defer p.starting.Unlock()
	p.engine = e
	if err := p.r.Start(); err != nil {
		return fmt.Errorf("nri: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// Close disconnects plugins and ends those that were started. It comes after the engine's, whose operations in flight may
// still need plugins.
func (p *Plugins) Close() error {
	p.cancel()
	p.r.Stop()
	p.behind.Wait()
	return nil
}

// Active implements engine.Plugins.
func (p *Plugins) Active() bool { return p.active.Load() > 0 }

// Hold implements engine.Plugins.
func (p *Plugins) Hold() func() {
	p.starting.RLock()
	block := p.r.BlockPluginSync()
	return func() {
		block.Unblock()
		p.starting.RUnlock()
	}
}

// Pod implements engine.Plugins.
func (p *Plugins) Pod(ctx context.Context, event engine.PodEvent, pod engine.PodStatus) error {
	shown := showPod(pod)
	switch event {
	case engine.PodRun:
		return refusal(p.r.RunPodSandbox(ctx, &api.RunPodSandboxRequest{Pod: shown}))
	case engine.PodStop:
		return refusal(p.r.StopPodSandbox(ctx, &api.StopPodSandboxRequest{Pod: shown}))
	case engine.PodRemove:
		return refusal(p.r.RemovePodSandbox(ctx, &api.RemovePodSandboxRequest{Pod: shown}))
	case engine.PodPostUpdate:
		return refusal(p.r.PostUpdatePodSandbox(ctx, &api.PostUpdatePodSandboxRequest{Pod: shown}))
	}
	return fmt.Errorf("event %q of a pod: %w", event, errdefs.ErrNotImplemented)
}

// UpdatePod implements engine.Plugins.
func (p *Plugins) UpdatePod(ctx context.Context, pod engine.PodStatus, resources, overhead *spec.Resources) error {
	request := &api.UpdatePodSandboxRequest{Pod: showPod(pod)}
	if resources != nil {
		request.LinuxResources = showResources(*resources)
	}
	if overhead != nil {
		request.OverheadLinuxResources = showResources(*overhead)
	}
	_, err := p.r.UpdatePodSandbox(ctx, request)
	return refusal(err)
}

// Container implements engine.Plugins.
func (p *Plugins) Container(ctx context.Context, event engine.ContainerEvent, pod engine.PodStatus, c engine.ContainerStatus) error {
	shown, container := showPod(pod), p.show(c)
	switch event {
	case engine.ContainerPostCreate:
		return refusal(p.r.PostCreateContainer(ctx, &api.PostCreateContainerRequest{Pod: shown, Container: container}))
	case engine.ContainerStart:
		return refusal(p.r.StartContainer(ctx, &api.StartContainerRequest{Pod: shown, Container: container}))
	case engine.ContainerPostStart:
		return refusal(p.r.PostStartContainer(ctx, &api.PostStartContainerRequest{Pod: shown, Container: container}))
	case engine.ContainerPostUpdate:
		return refusal(p.r.PostUpdateContainer(ctx, &api.PostUpdateContainerRequest{Pod: shown, Container: container}))
	case engine.ContainerRemove:
		return refusal(p.r.RemoveContainer(ctx, &api.RemoveContainerRequest{Pod: shown, Container: container}))
	}
	return fmt.Errorf("event %q of a container: %w", event, errdefs.ErrNotImplemented)
}

// Create implements engine.Plugins.
func (p *Plugins) Create(ctx context.Context, pod engine.PodStatus, c engine.ContainerStatus, s *specs.Spec) (engine.Adjusted, error) {
	shown := showContainer(c, s)
	answer, err := p.r.CreateContainer(ctx, &api.CreateContainerRequest{Pod: showPod(pod), Container: shown})
	if err != nil {
		return engine.Adjusted{}, refusal(err)
	}
	markRemoved(answer.GetAdjust(), s, shown)
	adjusted, err := adjust(s, answer.GetAdjust(), resolver{p.engine.InjectDevices, p.engine.BlockIOClass})
	if err != nil {
		return engine.Adjusted{}, fmt.Errorf("what a plugin makes of it: %w", err)
	}
	adjusted.Changes, err = changes(answer.GetUpdate(), answer.GetEvict())
	return adjusted, err
}

// Update implements engine.Plugins. Of the updates in an answer the last is that of the container itself.
func (p *Plugins) Update(ctx context.Context, pod engine.PodStatus, c engine.ContainerStatus, r spec.Resources) (spec.Resources, engine.Changes, error) {
	answer, err := p.r.UpdateContainer(ctx, &api.UpdateContainerRequest{
		Pod: showPod(pod), Container: p.show(c), LinuxResources: showResources(r),
	})
	if err != nil {
		return r, engine.Changes{}, refusal(err)
	}
	updates := answer.GetUpdate()
	if n := len(updates); n > 0 && updates[n-1].GetContainerId() == c.Container.ID {
		score := r.OOMScoreAdj // plugins are not shown it, and do not change it
		if r, err = resourcesOf(updates[n-1].GetLinux().GetResources()); err != nil {
			return r, engine.Changes{}, err
		}
		r.OOMScoreAdj = score
		updates = updates[:n-1]
	}
	all, err := changes(updates, answer.GetEvict())
	return r, all, err
}

// Stopped implements engine.Plugins.
func (p *Plugins) Stopped(ctx context.Context, pod engine.PodStatus, c engine.ContainerStatus) (engine.Changes, error) {
	answer, err := p.r.StopContainer(ctx, &api.StopContainerRequest{Pod: showPod(pod), Container: p.show(c)})
	if err != nil {
		return engine.Changes{}, refusal(err)
	}
	return changes(answer.GetUpdate(), nil)
}

// refusal is the error of a plugin as one of this program. Codes of its own would look like ours to a client.
func refusal(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	if s, ok := status.FromError(err); ok {
		text = s.Message()
	}
	return fmt.Errorf("%s: %w", text, errdefs.ErrFailedPrecondition)
}

// synchronize shows a plugin that joins what there is. What it wants of that is done behind, since operations that are
// in flight may be waiting for the plugin to have joined.
func (p *Plugins) synchronize(ctx context.Context, show adaptation.SyncCB) error {
	pods, containers := p.engine.Shown()
	shownPods := make([]*api.PodSandbox, 0, len(pods))
	for _, pod := range pods {
		shownPods = append(shownPods, showPod(pod))
	}
	shownContainers := make([]*api.Container, 0, len(containers))
	for _, c := range containers {
		shownContainers = append(shownContainers, p.show(c))
	}
	updates, err := show(ctx, shownPods, shownContainers)
	if err != nil || len(updates) == 0 {
		return err
	}
	p.behind.Go(func() {
		_, err := p.unsolicited(p.ctx, updates)
		if err != nil {
			p.log.Warn("what a plugin wants of containers as it joins failed", "error", err)
		}
	})
	return nil
}

// unsolicited does what a plugin wants at a time of its own choosing, and answers the updates that failed.
func (p *Plugins) unsolicited(ctx context.Context, updates []*api.ContainerUpdate) ([]*api.ContainerUpdate, error) {
	byID := map[string]*api.ContainerUpdate{}
	var all engine.Changes
	var failed []*api.ContainerUpdate
	var errs []error
	for _, u := range updates {
		one, err := changes([]*api.ContainerUpdate{u}, nil)
		if err != nil {
			failed, errs = append(failed, u), append(errs, err)
			continue
		}
		byID[u.GetContainerId()] = u
		all.Updates = append(all.Updates, one.Updates...)
	}
	notDone, err := p.engine.Change(ctx, all)
	for _, u := range notDone {
		failed = append(failed, byID[u.ContainerID])
	}
	if err := errors.Join(append(errs, err)...); err != nil {
		p.log.Warn("updates that a plugin wants failed", "error", err)
	}
	return failed, nil
}
