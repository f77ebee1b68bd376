package snapshotter

import "sync"

// behind does one thing after the other while others go on. The zero value is ready for use.
type behind struct {
	working sync.WaitGroup

	mu     sync.Mutex
	queue  []func()
	busy   bool // somebody works on the queue
	closed bool
}

// do has something done soon, or not at all once close was called.
func (b *behind) do(what func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	b.queue = append(b.queue, what)
	if !b.busy {
		b.busy = true
		b.working.Go(b.work)
	}
}

// work ends when there is nothing to do.
func (b *behind) work() {
	for {
		b.mu.Lock()
		if len(b.queue) == 0 || b.closed {
			b.queue, b.busy = nil, false
			b.mu.Unlock()
			return
		}
		next := b.queue[0]
		b.queue = b.queue[1:]
		b.mu.Unlock()
		next()
	}
}

// close waits for what is being done, and drops the rest.
func (b *behind) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.working.Wait()
}
