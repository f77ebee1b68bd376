package image

import (
	"context"
	"sync"
)

// keeper says which committed snapshots are wanted: images hold their chains, and so do pulls from before they make
// theirs. Whoever removes a snapshot asks it, so that none is removed that somebody has begun to rely on.
type keeper struct {
	mu       sync.Mutex
	held     map[string]int
	removing map[string]chan struct{}
}

func newKeeper() *keeper {
	return &keeper{held: map[string]int{}, removing: map[string]chan struct{}{}}
}

// hold keeps the names until they are dropped, each hold by one drop. It waits for removals of them to end.
func (k *keeper) hold(ctx context.Context, names []string) error {
	for {
		k.mu.Lock()
		wait := k.removal(names)
		if wait == nil {
			for _, name := range names {
				k.held[name]++
			}
			k.mu.Unlock()
			return nil
		}
		k.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// removal is that of one of the names, or nil. The mutex is held.
func (k *keeper) removal(names []string) chan struct{} {
	for _, name := range names {
		if wait := k.removing[name]; wait != nil {
			return wait
		}
	}
	return nil
}

func (k *keeper) drop(names []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, name := range names {
		if k.held[name]--; k.held[name] <= 0 {
			delete(k.held, name)
		}
	}
}

// remove calls remove unless the name is held, and says whether it did.
func (k *keeper) remove(name string, remove func() error) (bool, error) {
	k.mu.Lock()
	if k.held[name] > 0 || k.removing[name] != nil {
		k.mu.Unlock()
		return false, nil
	}
	done := make(chan struct{})
	k.removing[name] = done
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		delete(k.removing, name)
		k.mu.Unlock()
		close(done)
	}()
	return true, remove()
}

// holds says whether somebody holds the name.
func (k *keeper) holds(name string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.held[name] > 0
}
