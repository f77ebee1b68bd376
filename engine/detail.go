package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"
)

// Step is a step of an operation and how long it took. Steps of one operation may run at the same time.
type Step struct {
	Name string        `json:"name"`
	Took time.Duration `json:"took"`
}

// steps are those of one pod or container since this process knows it. The zero value is ready for use.
type steps struct {
	mu  sync.Mutex
	all []Step
}

// begin begins a step; what it answers ends it. A repeated step replaces the one before.
func (s *steps) begin(name string) (end func()) {
	start := time.Now()
	return func() {
		took := time.Since(start)
		s.mu.Lock()
		defer s.mu.Unlock()
		for i := range s.all {
			if s.all[i].Name == name {
				s.all[i].Took = took
				return
			}
		}
		s.all = append(s.all, Step{name, took})
	}
}

func (s *steps) list() []Step {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Step(nil), s.all...)
}

// podStep and containerStep begin a step of what may be removed meanwhile.
func (e *Engine) podStep(id, name string) (end func()) {
	e.mu.RLock()
	p := e.pods[id]
	e.mu.RUnlock()
	if p == nil {
		return func() {}
	}
	return p.steps.begin(name)
}

func (e *Engine) containerStep(id, name string) (end func()) {
	e.mu.RLock()
	c := e.containers[id]
	e.mu.RUnlock()
	if c == nil {
		return func() {}
	}
	return c.steps.begin(name)
}

// PodSnapshot is a pod with its containers, oldest first, all as they were at one time, which is answered too.
func (e *Engine) PodSnapshot(id string) (PodStatus, []ContainerStatus, time.Time, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	full, err := find(e.pods, "pod", id)
	if err != nil {
		return PodStatus{}, nil, time.Time{}, err
	}
	found := e.selectContainers(ContainerFilter{PodID: full})
	containers := make([]ContainerStatus, len(found))
	for i, c := range found {
		containers[i] = e.containerStatus(c)
	}
	return e.pods[full].status(), containers, time.Now(), nil
}

// PodSteps are how long making the pod took, in the order in which the steps ended; empty when an earlier process made it.
func (e *Engine) PodSteps(id string) []Step {
	e.mu.RLock()
	p := e.pods[id]
	e.mu.RUnlock()
	if p == nil {
		return nil
	}
	return p.steps.list()
}

// ContainerDetail is what helps to find out what is wrong with a container. Reading it costs a file.
type ContainerDetail struct {
	// Spec is the OCI runtime spec that the container runs with; null when it was not written yet.
	Spec json.RawMessage
	// Layer is the key of the writable layer in Rootfs, and RootOptions are the options of the mount of the root.
	Layer       string
	RootOptions []string
	// Steps are how long creating and starting took, as PodSteps.
	Steps []Step
}

// ContainerDetail answers the detail of a container by its full id.
func (e *Engine) ContainerDetail(id string) (ContainerDetail, error) {
	e.mu.RLock()
	full, err := find(e.containers, "container", id)
	if err != nil {
		e.mu.RUnlock()
		return ContainerDetail{}, err
	}
	c := e.containers[full]
	record := c.record
	e.mu.RUnlock()
	detail := ContainerDetail{Spec: json.RawMessage("null"), Layer: full, RootOptions: record.Rootfs.Options, Steps: c.steps.list()}
	data, err := os.ReadFile(e.specPath(record))
	switch {
	case err == nil && json.Valid(data):
		detail.Spec = data
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return detail, fmt.Errorf("the OCI spec of container %s: %w", full, err)
	}
	return detail, nil
}
