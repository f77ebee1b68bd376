package cni

import (
	"context"
	"sync"
)

// keys are locks by name that a waiter can give up. The zero value is ready.
type keys struct {
	mu   sync.Mutex
	held map[string]*key
}

type key struct {
	token   chan struct{} // holds one value while nobody has the key
	waiters int
}

// lock returns what unlocks.
func (k *keys) lock(ctx context.Context, name string) (func(), error) {
	k.mu.Lock()
	if k.held == nil {
		k.held = make(map[string]*key)
	}
	e := k.held[name]
	if e == nil {
		e = &key{token: make(chan struct{}, 1)}
		e.token <- struct{}{}
		k.held[name] = e
	}
	e.waiters++
	k.mu.Unlock()
	leave := func() {
		k.mu.Lock()
		if e.waiters--; e.waiters == 0 {
			delete(k.held, name)
		}
		k.mu.Unlock()
	}
	select {
	case <-e.token:
		return func() { e.token <- struct{}{}; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
