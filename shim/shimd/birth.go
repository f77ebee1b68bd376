package shimd

import (
	"context"
	"sync"
)

// birth is how a container or a pod comes to be: the first call that asks for it makes it, and the others wait.
type birth struct {
	ready   chan struct{} // closed when that has succeeded or failed
	failure error         // set before, and never again
}

func newBirth() birth { return birth{ready: make(chan struct{})} }

// run does the work of the first call. When it fails, undo takes away what was made and what others would find.
func (b *birth) run(work func() error, undo func()) error {
	defer close(b.ready)
	if b.failure = work(); b.failure != nil {
		undo()
	}
	return b.failure
}

// wait waits for the end of that work. The error is ctx's: what became of it is in failure.
func (b *birth) wait(ctx context.Context) error {
	select {
	case <-b.ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// reserve enters what fresh makes in a list, or answers with the one that is there.
func reserve[T any](mu *sync.Mutex, all map[string]*T, id string, fresh func() *T) (one *T, mine bool) {
	mu.Lock()
	defer mu.Unlock()
	if one := all[id]; one != nil {
		return one, false
	}
	one = fresh()
	all[id] = one
	return one, true
}

// forget takes one out of a list, unless another is there by now.
func forget[T any](mu *sync.Mutex, all map[string]*T, id string, one *T) {
	mu.Lock()
	defer mu.Unlock()
	if all[id] == one {
		delete(all, id)
	}
}
