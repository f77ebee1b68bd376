package image

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// leaveWait bounds how long the last caller that gives up waits for the cleaning up.
const leaveWait = 10 * time.Second

// flights are the pulls under way, by key. A call runs as long as one caller waits for it.
type flights struct {
	ctx    context.Context // parent of all calls
	cancel context.CancelCauseFunc

	mu     sync.Mutex
	calls  map[string]*call
	closed bool
}

type call struct {
	done    chan struct{}
	cancel  context.CancelCauseFunc
	waiters int // guarded by flights.mu; 0 means given up, and never grows again
	id      string
	err     error
}

func newFlights(ctx context.Context) *flights {
	f := &flights{calls: map[string]*call{}}
	f.ctx, f.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	return f
}

// do joins the call with that key, or makes it by run in a goroutine of its own. When the last caller's context ends the
// context of run does, and do returns when run has.
func (f *flights) do(ctx context.Context, key string, run func(context.Context) (string, error)) (string, error) {
	c, err := f.join(ctx, key, run)
	if err != nil {
		return "", err
	}
	select {
	case <-c.done:
		return c.id, c.err
	case <-ctx.Done():
	}
	f.mu.Lock()
	c.waiters--
	last := c.waiters == 0
	f.mu.Unlock()
	if last {
		c.cancel(context.Cause(ctx))
		select {
		case <-c.done:
		case <-time.After(leaveWait):
		}
	}
	return "", context.Cause(ctx)
}

func (f *flights) join(ctx context.Context, key string, run func(context.Context) (string, error)) (*call, error) {
	for {
		f.mu.Lock()
		if f.closed {
			f.mu.Unlock()
			return nil, fmt.Errorf("the image store is closing: %w", errdefs.ErrUnavailable)
		}
		c := f.calls[key]
		if c == nil {
			c = &call{done: make(chan struct{}), waiters: 1}
			f.calls[key] = c
			callCtx, cancel := context.WithCancelCause(f.ctx)
			c.cancel = cancel
			go f.run(callCtx, key, c, run)
			f.mu.Unlock()
			return c, nil
		}
		if c.waiters > 0 {
			c.waiters++
			f.mu.Unlock()
			return c, nil
		}
		f.mu.Unlock()
		select { // it was given up: when it has cleaned up we begin anew
		case <-c.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (f *flights) run(ctx context.Context, key string, c *call, run func(context.Context) (string, error)) {
	defer c.cancel(nil)
	c.id, c.err = run(ctx)
	f.mu.Lock()
	delete(f.calls, key)
	f.mu.Unlock()
	close(c.done)
}

// close cancels all calls and waits for them.
func (f *flights) close() {
	f.cancel(fmt.Errorf("the image store is closing: %w", errdefs.ErrUnavailable))
	f.mu.Lock()
	f.closed = true
	var running []*call
	for _, c := range f.calls {
		running = append(running, c)
	}
	f.mu.Unlock()
	for _, c := range running {
		<-c.done
	}
}
