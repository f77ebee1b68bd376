package engine

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/containerd/errdefs"

	"github.com/criserver/criserver/engine/spec"
)

// Pod answers the status of one pod.
func (e *Engine) Pod(id string) (PodStatus, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	full, err := find(e.pods, "pod", id)
	if err != nil {
		return PodStatus{}, err
	}
	return e.pods[full].status(), nil
}

// Pods answers the status of the pods that the filter selects, oldest first. One that is still being made is left out.
func (e *Engine) Pods(f PodFilter) []PodStatus {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return each(e.selectPods(f), (*pod).status)
}

// ListPods answers what encode made of the items of the pods that the filter selects, in the order of Pods. It is kept until
// the pod changes: clients ask for all pods again and again. So pods of one owner have but one encode, which must not block,
// and nothing of what is answered may be changed.
func (e *Engine) ListPods(f PodFilter, encode func(*PodItem) ([]byte, error)) ([][]byte, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	found := e.selectPods(f)
	forms := make([][]byte, len(found))
	for i, p := range found {
		var err error
		if forms[i], err = p.form.get(func() ([]byte, error) { item := p.item(); return encode(&item) }); err != nil {
			return nil, fmt.Errorf("pod %s: %w", p.record.Pod.ID, err)
		}
	}
	return forms, nil
}

// selectPods is Pods before anything is copied. The caller holds mu.
func (e *Engine) selectPods(f PodFilter) []*pod {
	found := make([]*pod, 0, expected(f.ID, len(e.pods)))
	for id, p := range e.pods {
		state := p.record.State
		if state == creating || f.State != "" && f.State != state.pod() || !strings.HasPrefix(id, f.ID) ||
			f.Owner != "" && f.Owner != p.record.Pod.Owner || !hasLabels(p.record.Pod.Labels, f.Labels) {
			continue
		}
		found = append(found, p)
	}
	slices.SortFunc(found, func(a, b *pod) int { return a.record.CreatedAt.Compare(b.record.CreatedAt) })
	return found
}

// expected is how many of all to make room for: a filter with an id selects few, most others many.
func expected(id string, all int) int {
	if id != "" {
		return 1
	}
	return all
}

// each is nil for nothing.
func each[T, U any](all []T, show func(T) U) []U {
	if len(all) == 0 {
		return nil
	}
	shown := make([]U, len(all))
	for i, one := range all {
		shown[i] = show(one)
	}
	return shown
}

// Container answers the status of one container.
func (e *Engine) Container(id string) (ContainerStatus, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	full, err := find(e.containers, "container", id)
	if err != nil {
		return ContainerStatus{}, err
	}
	return e.containerStatus(e.containers[full]), nil
}

// Containers answers the status of the containers that the filter selects, oldest first. One that is still being made is
// left out.
func (e *Engine) Containers(f ContainerFilter) []ContainerStatus {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return each(e.selectContainers(f), e.containerStatus)
}

// ListContainers is to containers what ListPods is to pods.
func (e *Engine) ListContainers(f ContainerFilter, encode func(*ContainerItem) ([]byte, error)) ([][]byte, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	found := e.selectContainers(f)
	forms := make([][]byte, len(found))
	for i, c := range found {
		var err error
		if forms[i], err = c.form.get(func() ([]byte, error) { item := c.item(); return encode(&item) }); err != nil {
			return nil, fmt.Errorf("container %s: %w", c.record.Container.ID, err)
		}
	}
	return forms, nil
}

// form is what a list shows of a pod or container, encoded. The zero value is ready for use. Who holds Engine.mu for reading
// may get it, several at once; who changes the record drops it.
type form struct{ kept atomic.Pointer[[]byte] }

func (f *form) get(encode func() ([]byte, error)) ([]byte, error) {
	if kept := f.kept.Load(); kept != nil {
		return *kept, nil
	}
	encoded, err := encode()
	if err == nil {
		f.kept.Store(&encoded)
	}
	return encoded, err
}

func (f *form) drop() { f.kept.Store(nil) }

// selectContainers is Containers before anything is copied. The caller holds mu.
func (e *Engine) selectContainers(f ContainerFilter) []*container {
	all := make([]*container, 0, expected(f.ID+f.PodID, len(e.containers)))
	for id, c := range e.containers {
		state := c.record.State
		if state == creating || f.State != "" && f.State != state.container() || !strings.HasPrefix(id, f.ID) ||
			!strings.HasPrefix(c.record.Container.PodID, f.PodID) || !hasLabels(c.record.Container.Labels, f.Labels) ||
			f.Owner != "" && f.Owner != e.ownerOf(c) {
			continue
		}
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b *container) int { return a.record.CreatedAt.Compare(b.record.CreatedAt) })
	return all
}

func (e *Engine) ownerOf(c *container) string {
	if p := e.pods[c.record.Container.PodID]; p != nil {
		return p.record.Pod.Owner
	}
	return ""
}

func hasLabels(labels, wanted map[string]string) bool {
	for key, value := range wanted {
		if have, ok := labels[key]; !ok || have != value {
			return false
		}
	}
	return true
}

func (p *pod) status() PodStatus { return p.record.status() }

func (r *podRecord) status() PodStatus {
	return PodStatus{Pod: r.Pod, State: r.State.pod(), CreatedAt: r.CreatedAt, Network: r.Network, HolderPID: r.HolderPID}
}

func (p *pod) item() PodItem {
	r := &p.record
	return PodItem{
		ID: r.Pod.ID, Name: r.Pod.Name, Namespace: r.Pod.Namespace, UID: r.Pod.UID, Attempt: r.Pod.Attempt, State: r.State.pod(),
		CreatedAt: r.CreatedAt, Labels: r.Pod.Labels, Annotations: r.Pod.Annotations, Handler: r.Pod.Handler,
	}
}

func (c *container) item() ContainerItem {
	r := &c.record
	return ContainerItem{
		ID: r.Container.ID, PodID: r.Container.PodID, Name: r.Container.Name, Attempt: r.Container.Attempt,
		Image: r.Container.Image, UserImage: r.Container.UserImage, ImageID: r.Container.ImageID, ImageRef: r.Container.ImageRef,
		State: r.State.container(), CreatedAt: r.CreatedAt, Labels: r.Container.Labels, Annotations: r.Container.Annotations,
	}
}

func (e *Engine) containerStatus(c *container) ContainerStatus { return e.statusOf(c.record) }

func (e *Engine) statusOf(r containerRecord) ContainerStatus {
	s := ContainerStatus{
		Container: r.Container, State: r.State.container(), CreatedAt: r.CreatedAt, StartedAt: r.StartedAt, User: r.User,
		LogPath: r.LogPath, CgroupsPath: r.CgroupsPath, Dir: e.store.containerDir(r.Container.PodID, r.Container.ID),
		StopSignal: spec.SignalName(syscall.Signal(r.StopSignal)),
	}
	if r.State == running {
		s.PID = r.PID
	}
	if x := r.Exit; x != nil {
		s.FinishedAt, s.ExitCode, s.Reason, s.Message = x.FinishedAt, x.Code, x.Reason, x.Message
	}
	return s
}

// find resolves an id or a unique beginning of one.
func find[T any](all map[string]T, what, id string) (string, error) {
	if id == "" {
		return "", fmt.Errorf("%s id is empty: %w", what, errdefs.ErrInvalidArgument)
	}
	if _, ok := all[id]; ok {
		return id, nil
	}
	var found []string
	if len(id) < idLength {
		for full := range maps.Keys(all) {
			if strings.HasPrefix(full, id) {
				found = append(found, full)
			}
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return "", fmt.Errorf("%s %s: %w", what, id, errdefs.ErrNotFound)
	}
	return "", fmt.Errorf("%s id %s is the beginning of %d: give more of it: %w", what, id, len(found), errdefs.ErrInvalidArgument)
}

func ignoreNotFound(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

func (e *Engine) resolvePod(id string) (string, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return find(e.pods, "pod", id)
}

func (e *Engine) resolveContainer(id string) (string, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return find(e.containers, "container", id)
}

// podRecord answers a copy of a pod's record. What it points to is not changed by anyone.
func (e *Engine) podRecord(id string) (podRecord, bool) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if p := e.pods[id]; p != nil {
		return p.record, true
	}
	return podRecord{}, false
}

func (e *Engine) containerRecord(id string) (containerRecord, bool) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if c := e.containers[id]; c != nil {
		return c.record, true
	}
	return containerRecord{}, false
}

// changePod moves a pod and changes the rest of its record in memory.
func (e *Engine) changePod(id string, to phase, change func(*podRecord)) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	p := e.pods[id]
	if p == nil {
		return fmt.Errorf("pod %s: %w", id, errdefs.ErrNotFound)
	}
	from := p.record.State
	if err := move(&p.record.State, to); err != nil {
		return fmt.Errorf("pod %s: %w", id, err)
	}
	if change != nil {
		change(&p.record)
	}
	p.form.drop()
	e.podMoved(id, p, from)
	return nil
}

// changeContainer moves a container and changes the rest of its record in memory.
func (e *Engine) changeContainer(id string, to phase, change func(*containerRecord)) (containerRecord, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.containers[id]
	if c == nil {
		return containerRecord{}, fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
	}
	from := c.record.State
	if err := move(&c.record.State, to); err != nil {
		return c.record, fmt.Errorf("container %s: %w", id, err)
	}
	if change != nil {
		change(&c.record)
	}
	c.form.drop()
	if to == exited {
		c.end()
	}
	e.containerMoved(id, c, from)
	return c.record, nil
}
