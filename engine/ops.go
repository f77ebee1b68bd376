package engine

import (
	"context"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
)

// operations runs what is done to an object (a key) one after the other, in goroutines of its own, so that an operation
// ends even when the caller that wanted it has left. It owns the order; it holds no lock while an operation runs.
//
// A call that asks for what was asked for last joins that operation, whether it runs or waits: the answer is the same.
type operations struct {
	mu     sync.Mutex
	last   map[string]*operation // the youngest unfinished operation of each key
	closed bool
	wg     sync.WaitGroup
}

type operation struct {
	kind string
	done chan struct{} // closed when err is set
	err  error
}

func newOperations() *operations { return &operations{last: map[string]*operation{}} }

// do runs fn with ctx base after all earlier operations of the key, or joins the last one when it is of the same kind. It
// returns fn's error, or that of ctx as soon as that ends; the operation then goes on.
func (o *operations) do(ctx, base context.Context, key, kind string, fn func(context.Context) error) error {
	op, err := o.enqueue(base, key, kind, fn)
	if err != nil {
		return err
	}
	return op.wait(ctx, key)
}

// within is do for an operation that is part of another one, which has been let in before close.
func (o *operations) within(ctx, base context.Context, key, kind string, fn func(context.Context) error) error {
	o.mu.Lock()
	op := o.add(base, key, kind, fn)
	o.mu.Unlock()
	return op.wait(ctx, key)
}

func (op *operation) wait(ctx context.Context, key string) error {
	select {
	case <-op.done:
		return op.err
	case <-ctx.Done():
		return fmt.Errorf("%s %s goes on without its caller: %w", op.kind, key, context.Cause(ctx))
	}
}

func (o *operations) enqueue(base context.Context, key, kind string, fn func(context.Context) error) (*operation, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return nil, fmt.Errorf("%s %s: the engine is closing: %w", kind, key, errdefs.ErrUnavailable)
	}
	return o.add(base, key, kind, fn), nil
}

// add queues an operation or finds the one to join. The caller holds mu.
func (o *operations) add(base context.Context, key, kind string, fn func(context.Context) error) *operation {
	before := o.last[key]
	if before != nil && before.kind == kind {
		return before
	}
	op := &operation{kind: kind, done: make(chan struct{})}
	o.last[key] = op
	o.wg.Go(func() {
		if before != nil {
			<-before.done
		}
		op.err = fn(base)
		o.mu.Lock()
		if o.last[key] == op {
			delete(o.last, key)
		}
		o.mu.Unlock()
		close(op.done)
	})
	return op
}

// close refuses further operations. Those that were accepted go on; wait for wg.
func (o *operations) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
}
