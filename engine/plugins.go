package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/engine/spec"
)

// Plugins are told what becomes of pods and containers, and may change it. *nri.Plugins is the one; tests have another.
// The engine holds no lock during a call, and expects each to end in a bounded time whatever a plugin does. An error of
// a call before something happens keeps it from happening; one of a call after it is only logged.
type Plugins interface {
	// Active says that somebody wants to be told. Nothing is called when it does not.
	Active() bool
	// Hold keeps plugins from joining until release is called, so that one that joins is shown everything that it was
	// not told of. It waits for one that is joining.
	Hold() (release func())
	// Pod tells of a pod. PodRun comes before it is ready, PodStop when its containers have ended, PodRemove at last.
	Pod(ctx context.Context, event PodEvent, p PodStatus) error
	// UpdatePod tells of what the containers of a pod may use together, and of its overhead, that are about to be changed;
	// nil does not change.
	UpdatePod(ctx context.Context, p PodStatus, resources, overhead *spec.Resources) error
	// Create tells of a container that is about to be created with s, and changes s.
	Create(ctx context.Context, p PodStatus, c ContainerStatus, s *specs.Spec) (Adjusted, error)
	// Container tells of a container. ContainerStart comes before its process is made.
	Container(ctx context.Context, event ContainerEvent, p PodStatus, c ContainerStatus) error
	// Update tells of limits that are about to be changed and answers what to change instead.
	Update(ctx context.Context, p PodStatus, c ContainerStatus, r spec.Resources) (spec.Resources, Changes, error)
	// Stopped tells that a container has ended.
	Stopped(ctx context.Context, p PodStatus, c ContainerStatus) (Changes, error)
}

// PodEvent is what becomes of a pod.
type PodEvent string

// The events of a pod.
const (
	PodRun    PodEvent = "run"
	PodStop   PodEvent = "stop"
	PodRemove PodEvent = "remove"
	// PodPostUpdate comes after UpdatePod, when it is done.
	PodPostUpdate PodEvent = "post-update"
)

// ContainerEvent is what becomes of a container, besides what has a method of Plugins for itself.
type ContainerEvent string

// The events of a container.
const (
	ContainerPostCreate ContainerEvent = "post-create"
	ContainerStart      ContainerEvent = "start"
	ContainerPostStart  ContainerEvent = "post-start"
	ContainerPostUpdate ContainerEvent = "post-update"
	ContainerRemove     ContainerEvent = "remove"
)

// Changes are what a plugin wants of other containers than the one it was told of.
type Changes struct {
	Updates []ResourceUpdate
	Evict   []Eviction
}

// ResourceUpdate changes the limits of a container.
type ResourceUpdate struct {
	ContainerID string
	Resources   spec.Resources
	// Optional updates may fail.
	Optional bool
}

// Eviction kills a container.
type Eviction struct{ ContainerID, Reason string }

// Adjusted says what plugins did besides changing a spec.
type Adjusted struct {
	Changes
	// Namespaces are the types of those that were set or taken away.
	Namespaces []specs.LinuxNamespaceType
	// Shm says that the mount at /dev/shm was set or taken away.
	Shm bool
}

// told is what plugins know of a pod or container. It only grows.
type told int

const (
	toldNothing told = iota
	toldOfIt
	toldOfItsEnd
)

func (e *Engine) pluginsListen() bool { return e.cfg.Plugins != nil && e.cfg.Plugins.Active() }

// holdPlugins keeps plugins from joining until the answer is called.
func (e *Engine) holdPlugins() func() {
	if e.cfg.Plugins == nil {
		return func() {}
	}
	return e.cfg.Plugins.Hold()
}

// Shown lists what a plugin that joins is shown: pods and containers whose beginning it was not told of, and whose end it
// will be.
func (e *Engine) Shown() ([]PodStatus, []ContainerStatus) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	var pods []PodStatus
	for _, p := range e.pods {
		if p.record.State == ready || p.record.State == notready {
			pods = append(pods, p.status())
		}
	}
	var containers []ContainerStatus
	for _, c := range e.containers {
		if c.record.State == created || c.record.State == running {
			containers = append(containers, e.containerStatus(c))
		}
	}
	return pods, containers
}

// tellOfPod asks plugins whether a pod that is made may be ready. From now on they know of it, those that join as well.
func (e *Engine) tellOfPod(ctx context.Context, r podRecord) error {
	e.mu.Lock()
	if p := e.pods[r.Pod.ID]; p != nil {
		p.told = toldOfIt
	}
	e.mu.Unlock()
	if !e.pluginsListen() {
		return nil
	}
	if err := e.cfg.Plugins.Pod(ctx, PodRun, r.status()); err != nil {
		return fmt.Errorf("a plugin refuses the pod: %w", err)
	}
	return nil
}

// askPodUpdate asks plugins whether a pod's resources may change.
func (e *Engine) askPodUpdate(ctx context.Context, r podRecord, resources, overhead *spec.Resources) error {
	if !e.pluginsListen() {
		return nil
	}
	if err := e.cfg.Plugins.UpdatePod(ctx, r.status(), resources, overhead); err != nil {
		return fmt.Errorf("a plugin refuses it: %w", err)
	}
	return nil
}

// tellPodUpdated tells plugins that a pod's resources have changed.
func (e *Engine) tellPodUpdated(ctx context.Context, id string) {
	if !e.pluginsListen() {
		return
	}
	if r, ok := e.podRecord(id); ok {
		e.logPlugin(e.cfg.Plugins.Pod(ctx, PodPostUpdate, r.status()), PodPostUpdate, "pod", id)
	}
}

// tellPodEnd tells plugins, once, that a pod is stopped.
func (e *Engine) tellPodEnd(ctx context.Context, r podRecord) {
	e.mu.Lock()
	p := e.pods[r.Pod.ID]
	first := p != nil && p.told == toldOfIt
	if first {
		p.told = toldOfItsEnd
	}
	e.mu.Unlock()
	if first && e.pluginsListen() {
		e.logPlugin(e.cfg.Plugins.Pod(ctx, PodStop, r.status()), PodStop, "pod", r.Pod.ID)
	}
}

// tellPodRemoved tells plugins, once, that a pod is gone.
func (e *Engine) tellPodRemoved(ctx context.Context, r podRecord) {
	e.mu.Lock()
	p := e.pods[r.Pod.ID]
	known := p != nil && p.told != toldNothing
	if known {
		p.told = toldNothing
	}
	e.mu.Unlock()
	if known && e.pluginsListen() {
		e.logPlugin(e.cfg.Plugins.Pod(ctx, PodRemove, r.status()), PodRemove, "pod", r.Pod.ID)
	}
}

func (e *Engine) logPlugin(err error, event any, what, id string) {
	if err != nil {
		e.log.Warn("a plugin failed at an event that it cannot keep from happening", "event", event, what, id, "error", err)
	}
}

// adjust lets plugins change what a container is about to be created with, and other containers before that. What s
// means to the engine is brought in line in made.
func (e *Engine) adjust(ctx context.Context, pod *podRecord, r containerRecord, s *specs.Spec, made *madeSpec) error {
	e.setTold(r.Container.ID, toldOfIt)
	if !e.pluginsListen() {
		return nil
	}
	status := e.statusOf(r)
	status.User = made.user
	before := resourcesIn(s)
	adjusted, err := e.cfg.Plugins.Create(ctx, pod.status(), status, s)
	if err != nil {
		return fmt.Errorf("a plugin refuses the container: %w", err)
	}
	if _, err := e.change(ctx, adjusted.Changes, e.ops.within); err != nil {
		return fmt.Errorf("what a plugin wants of other containers before this one is created: %w", err)
	}
	for _, warning := range made.adjust(s, adjusted, e.host) {
		e.log.Warn(warning, "container", r.Container.ID, "name", r.Container.Name)
	}
	if after := resourcesIn(s); !sameJSON(before, after) {
		made.resources = &after
	}
	return nil
}

func (e *Engine) setTold(id string, to told) (before told) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.containers[id]
	if c == nil {
		return toldNothing
	}
	before, c.told = c.told, to
	return before
}

// tellContainer tells plugins of a container.
func (e *Engine) tellContainer(ctx context.Context, event ContainerEvent, id string) error {
	if !e.pluginsListen() {
		return nil
	}
	pod, c, ok := e.statuses(id)
	if !ok {
		return nil
	}
	return e.cfg.Plugins.Container(ctx, event, pod, c)
}

// statuses are those of a container and of its pod, of which only the id may be known.
func (e *Engine) statuses(id string) (PodStatus, ContainerStatus, bool) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	c := e.containers[id]
	if c == nil {
		return PodStatus{}, ContainerStatus{}, false
	}
	pod := PodStatus{Pod: spec.Pod{ID: c.record.Container.PodID}}
	if p := e.pods[c.record.Container.PodID]; p != nil {
		pod = p.status()
	}
	return pod, e.containerStatus(c), true
}

// tellEnd tells plugins, once, that a container has ended. What they want of others for that is done behind: an
// operation must not wait for one of another container, which may wait for this one.
func (e *Engine) tellEnd(ctx context.Context, id string) {
	if !e.pluginsListen() || e.setToldOfEnd(id) {
		return
	}
	pod, c, ok := e.statuses(id)
	if !ok {
		return
	}
	changes, err := e.cfg.Plugins.Stopped(ctx, pod, c)
	e.logPlugin(err, "stop", "container", id)
	if len(changes.Updates)+len(changes.Evict) == 0 {
		return
	}
	e.loops.Go(func() {
		if _, err := e.Change(e.ctx, changes); err != nil {
			e.log.Warn("what a plugin wants of other containers when one has ended failed", "container", id, "error", err)
		}
	})
}

// setToldOfEnd is true when it need not be told: it is done, or the beginning was not told either.
func (e *Engine) setToldOfEnd(id string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.containers[id]
	if c == nil || c.told != toldOfIt {
		return true
	}
	c.told = toldOfItsEnd
	return false
}

// tellRemoved tells plugins that a container that is being removed has ended and is gone. Its process is ended first.
func (e *Engine) tellRemoved(ctx context.Context, r containerRecord) error {
	id := r.Container.ID
	e.mu.RLock()
	c := e.containers[id]
	known := c != nil && c.told != toldNothing
	e.mu.RUnlock()
	if !known || !e.pluginsListen() {
		return nil
	}
	if err := e.releaseProcess(ctx, r); err != nil {
		return err
	}
	e.tellEnd(ctx, id)
	e.logPlugin(e.tellContainer(ctx, ContainerRemove, id), ContainerRemove, "container", id)
	e.setTold(id, toldNothing)
	return nil
}

// askUpdate lets plugins change an update, and do what they want of other containers before it.
func (e *Engine) askUpdate(ctx context.Context, id string, r spec.Resources) (spec.Resources, error) {
	if !e.pluginsListen() {
		return r, nil
	}
	pod, c, ok := e.statuses(id)
	if !ok || c.State != ContainerCreated && c.State != ContainerRunning {
		return r, nil // the operation says so
	}
	r, changes, err := e.cfg.Plugins.Update(ctx, pod, c, r)
	if err != nil {
		return r, fmt.Errorf("a plugin refuses it: %w", err)
	}
	if _, err := e.Change(ctx, changes); err != nil {
		return r, fmt.Errorf("what a plugin wants of other containers before it: %w", err)
	}
	return r, nil
}

// Change does what a plugin wants of containers: first it evicts, then it updates, without asking plugins again. It goes
// on past errors and answers the updates that failed; an error is one of those that may not. Containers that are gone are
// no error.
func (e *Engine) Change(ctx context.Context, c Changes) (failed []ResourceUpdate, err error) {
	return e.change(ctx, c, e.ops.do)
}

// runner is how an operation is run: operations.do, or operations.within as part of another one. Only the creation of a
// container may have others as a part: no operation of another container ever waits for it.
type runner func(ctx, base context.Context, key, kind string, fn func(context.Context) error) error

func (e *Engine) change(ctx context.Context, c Changes, run runner) (failed []ResourceUpdate, err error) {
	var errs []error
	for _, v := range c.Evict {
		id, err := e.resolveMade(v.ContainerID)
		if err == nil {
			e.log.Info("a plugin evicts a container", "container", id, "reason", v.Reason)
			e.shorten(id, time.Now())
			err = run(ctx, e.ctx, containerKey(id), "stop", func(ctx context.Context) error { return e.stopContainer(ctx, id) })
		}
		if ignoreNotFound(err) != nil {
			errs = append(errs, fmt.Errorf("evict container %s: %w", v.ContainerID, err))
		}
	}
	for _, u := range c.Updates {
		id, err := e.resolveMade(u.ContainerID)
		if err == nil {
			err = run(ctx, e.ctx, containerKey(id), updateKind(), func(ctx context.Context) error {
				return e.updateContainer(ctx, id, u.Resources)
			})
		}
		if ignoreNotFound(err) == nil {
			continue
		}
		failed = append(failed, u)
		if u.Optional {
			e.log.Info("an update that a plugin wants and that may fail failed", "container", u.ContainerID, "error", err)
			continue
		}
		errs = append(errs, fmt.Errorf("update container %s: %w", u.ContainerID, err))
	}
	return failed, errors.Join(errs...)
}

// resolveMade finds a container by its whole id. One that is being made is not there yet.
func (e *Engine) resolveMade(id string) (string, error) {
	r, ok := e.containerRecord(id)
	if !ok || r.State == creating || r.State == removing {
		return "", fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
	}
	return id, nil
}
