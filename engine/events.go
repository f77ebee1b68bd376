package engine

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
)

// EventKind says what happened.
type EventKind string

// The kinds of events. A container that could not be started is stopped without having been started.
const (
	EventCreated EventKind = "created"
	EventStarted EventKind = "started"
	EventStopped EventKind = "stopped"
	EventDeleted EventKind = "deleted"
)

// Event is a change of a container, or of a pod, which is created and started at once. Nothing in it may be changed.
type Event struct {
	Kind EventKind
	ID   string // of the container or pod
	At   time.Time
	// Pod is the pod, and Containers are its containers, as they were right after the change. What was deleted is not among
	// the containers; a deleted pod is as it was before.
	Pod        PodStatus
	Containers []ContainerStatus
}

const (
	// feedLength is how many events a feed keeps before it leaves out those that a later one of the same container outdates.
	feedLength = 1024
	// feedEnd is how many containers' last events it keeps then. A consumer that far behind had better list.
	feedEnd = 8192
)

// hub hands events to feeds. Publishing never waits for a consumer, and costs nothing while there is none.
type hub struct {
	count atomic.Int32 // of feeds
	mu    sync.Mutex
	feeds map[*Feed]struct{}
}

// Feed is one consumer's events, in order, from Subscribe on. Next and Close may be called concurrently.
//
// Events are bounded: a consumer that falls behind gets the last event of each container, and not all that came before it.
type Feed struct {
	hub   *hub
	ready chan struct{} // signalled when there is something to take

	mu    sync.Mutex
	queue []Event
	limit int   // length at which the queue is thinned out again
	err   error // ends the feed
}

// Subscribe begins a feed. Close it.
func (e *Engine) Subscribe() *Feed {
	f := &Feed{hub: &e.events, ready: make(chan struct{}, 1), limit: feedLength}
	h := f.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.feeds == nil {
		h.feeds = map[*Feed]struct{}{}
	}
	h.feeds[f] = struct{}{}
	h.count.Store(int32(len(h.feeds)))
	return f
}

// Close ends the feed. It may be repeated.
func (f *Feed) Close() {
	h := f.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.feeds, f)
	h.count.Store(int32(len(h.feeds)))
}

// Next waits for the next event. errdefs.ErrResourceExhausted when the consumer was so slow that events were lost: it must
// subscribe again, and then list.
func (f *Feed) Next(ctx context.Context) (Event, error) {
	for {
		f.mu.Lock()
		if f.err != nil {
			defer f.mu.Unlock()
			return Event{}, f.err
		}
		if len(f.queue) > 0 {
			event := f.queue[0]
			f.queue[0] = Event{} // what it points to is not needed longer
			if f.queue = f.queue[1:]; len(f.queue) == 0 {
				f.queue, f.limit = nil, feedLength
			}
			f.mu.Unlock()
			return event, nil
		}
		f.mu.Unlock()
		select {
		case <-f.ready:
		case <-ctx.Done():
			return Event{}, context.Cause(ctx)
		}
	}
}

func (f *Feed) add(event Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return
	}
	if len(f.queue) >= f.limit {
		f.queue = lastOfEach(f.queue)
		f.limit = max(feedLength, 2*len(f.queue))
		if len(f.queue) >= feedEnd {
			f.queue = nil
			f.err = fmt.Errorf("events of more than %d containers were not taken in time; subscribe again and list: %w", feedEnd, errdefs.ErrResourceExhausted)
		}
	}
	if f.err == nil {
		f.queue = append(f.queue, event)
	}
	select {
	case f.ready <- struct{}{}:
	default:
	}
}

// lastOfEach keeps the last event of each container, in order.
func lastOfEach(queue []Event) []Event {
	last := make(map[string]int, len(queue))
	for i := range queue {
		last[queue[i].ID] = i
	}
	kept := make([]Event, 0, len(last))
	for i := range queue {
		if last[queue[i].ID] == i {
			kept = append(kept, queue[i])
		}
	}
	return kept
}

// publish tells of a change that was just made. Engine.mu is held for writing, so feeds see changes in their order.
func (e *Engine) publish(kind EventKind, id string, p *pod) {
	if e.events.count.Load() == 0 || p == nil {
		return
	}
	event := Event{Kind: kind, ID: id, At: time.Now(), Pod: p.status()}
	for _, c := range e.selectContainers(ContainerFilter{PodID: event.Pod.Pod.ID}) {
		event.Containers = append(event.Containers, e.containerStatus(c))
	}
	h := &e.events
	h.mu.Lock()
	defer h.mu.Unlock()
	for f := range h.feeds {
		f.add(event)
	}
}

// podMoved publishes what a pod's move from a state means. Engine.mu is held.
func (e *Engine) podMoved(id string, p *pod, from phase) {
	switch to := p.record.State; {
	case from == to:
	case to == ready:
		p.announced = true
		e.publish(EventCreated, id, p)
		e.publish(EventStarted, id, p)
	case to == notready:
		e.publish(EventStopped, id, p)
	}
}

// containerMoved publishes what a container's move from a state means. Engine.mu is held.
func (e *Engine) containerMoved(id string, c *container, from phase) {
	p := e.pods[c.record.Container.PodID]
	switch to := c.record.State; {
	case from == to:
	case to == created:
		c.announced = true
		e.publish(EventCreated, id, p)
	case to == running:
		e.publish(EventStarted, id, p)
	case to == exited:
		if from == created && !c.record.StartedAt.IsZero() {
			e.publish(EventStarted, id, p) // its end was heard of before its start
		}
		e.publish(EventStopped, id, p)
	}
}

// forgetContainer takes a container that was torn down out of memory.
func (e *Engine) forgetContainer(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.containers[id]
	c.end()
	delete(e.containers, id)
	if c.announced {
		e.publish(EventDeleted, id, e.pods[c.record.Container.PodID])
	}
}

// forgetPod takes a pod that was torn down out of memory.
func (e *Engine) forgetPod(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	p := e.pods[id]
	delete(e.pods, id)
	if p != nil {
		e.releaseLabels(p.record)
	}
	if p != nil && p.announced {
		e.publish(EventDeleted, id, p)
	}
}
