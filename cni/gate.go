package cni

import (
	"context"
	"sync"
)

// gate lets many in while it is open, and is closed only when nobody is inside.
type gate struct {
	mu     *sync.Mutex
	inside *int
	opened *chan struct{} // closed while the gate is open
}

func newGate() gate {
	open := make(chan struct{})
	close(open)
	return gate{mu: new(sync.Mutex), inside: new(int), opened: &open}
}

// enter waits while the gate is closed. leave must follow.
func (g gate) enter(ctx context.Context) error {
	for {
		g.mu.Lock()
		opened := *g.opened
		select {
		case <-opened:
			*g.inside++
			g.mu.Unlock()
			return nil
		default:
			g.mu.Unlock()
		}
		select {
		case <-opened:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (g gate) leave() {
	g.mu.Lock()
	*g.inside--
	g.mu.Unlock()
}

// close is false when somebody is inside or it is closed. open must follow when it is true.
func (g gate) close() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-*g.opened:
	default:
		return false
	}
	if *g.inside > 0 {
		return false
	}
	*g.opened = make(chan struct{})
	return true
}

func (g gate) open() {
	g.mu.Lock()
	close(*g.opened)
	g.mu.Unlock()
}
