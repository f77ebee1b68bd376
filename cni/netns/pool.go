package netns

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Pool keeps namespaces ready and makes new ones behind. They are held by descriptors only, so none is left when the
// process is killed.
type Pool struct {
	ready  chan *NS
	refill chan struct{}
	cancel context.CancelFunc
	done   sync.WaitGroup
	owner  string
	log    *slog.Logger
}

// NewPool starts to fill a pool of size namespaces; a size of 0 or less makes each when it is asked for. Close it.
func NewPool(size int, owner string, log *slog.Logger) *Pool {
	ctx, cancel := context.WithCancel(context.Background())
	p := &Pool{ready: make(chan *NS, max(size, 0)), refill: make(chan struct{}, 1), cancel: cancel, owner: owner, log: log}
	if size > 0 {
		p.done.Go(func() { p.fill(ctx, size) })
	}
	return p
}

// Get takes a namespace from the pool, or makes one when the pool is empty. The caller closes it.
func (p *Pool) Get() (*NS, error) {
	defer func() {
		select {
		case p.refill <- struct{}{}:
		default:
		}
	}()
	select {
	case ns := <-p.ready:
		return ns, nil
	default:
		return New(p.owner)
	}
}

// Close drops the namespaces that are ready and waits for the one being made. Get keeps working, without the pool.
func (p *Pool) Close() {
	p.cancel()
	p.done.Wait()
	for {
		select {
		case ns := <-p.ready:
			ns.Close()
		default:
			return
		}
	}
}

// quiet is how long nothing must have been taken before the pool is filled: making a namespace takes the kernel's RTNL
// lock, which a request that has just taken one is about to need. In a longer rush each request makes its own.
const quiet = 10 * time.Millisecond

func (p *Pool) fill(ctx context.Context, size int) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.refill:
			timer.Reset(quiet)
			continue
		case <-timer.C:
		}
		if len(p.ready) >= size {
			continue
		}
		ns, err := New(p.owner)
		if err != nil {
			p.log.Warn("no network namespace for the pool; the next request makes its own", "err", err)
			continue
		}
		p.ready <- ns // only this goroutine sends, so there is room
		timer.Reset(0)
	}
}
