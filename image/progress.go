package image

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// meter counts the bytes that a pull fetches and unpacks, and knows when it waits for something that is no fault of the
// registry's: the disk, another pull, a busy registry that named a time.
type meter struct {
	tally
	moved atomic.Int64
	busy  atomic.Int32
}

// pause says that the pull waits rightly, until what it returns is called.
func (m *meter) pause() func() {
	m.busy.Add(1)
	return sync.OnceFunc(func() {
		m.moved.Add(1) // the time after the pause counts from its end
		m.busy.Add(-1)
	})
}

// unpack counts bytes that are unpacked.
func (m *meter) unpack(n int) {
	m.moved.Add(int64(n))
	m.unpacked.Add(int64(n))
}

// watch cancels when nothing moves for limit. It ends with the context.
func (m *meter) watch(ctx context.Context, cancel context.CancelCauseFunc, limit time.Duration) {
	ticker := time.NewTicker(max(limit/20, time.Millisecond))
	defer ticker.Stop()
	seen, since := m.moved.Load(), time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			if moved := m.moved.Load(); moved != seen || m.busy.Load() > 0 {
				seen, since = moved, now
			} else if now.Sub(since) >= limit {
				cancel(fmt.Errorf("no byte moved for %s after %d bytes fetched and unpacked: %w", limit, moved, context.DeadlineExceeded))
				return
			}
		}
	}
}

// meteredReader counts what is read, into a meter and for itself.
type meteredReader struct {
	r     io.Reader
	meter *meter
	n     int64
}

func (r *meteredReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.n += int64(n)
	r.meter.moved.Add(int64(n))
	r.meter.done.Add(int64(n))
	return n, err
}
