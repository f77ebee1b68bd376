package shimd

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/containerd/errdefs"

	"github.com/criserver/criserver/internal/fsx"
	"github.com/criserver/criserver/shim/api"
)

// tapLimit is how many bytes may wait for a client that is attached, beside those on the way to it (api.Window). One that falls
// further behind is let go: neither the log nor the workload waits for it.
const tapLimit = 8 << 20

// errLagging tells such a client what happened.
var errLagging = fmt.Errorf("detached: the client fell more than %d MiB behind the container's output (the log has all of it): %w",
	tapLimit>>20, errdefs.ErrResourceExhausted)

// tapList is the clients that are attached to a stream. While there are none it costs a load.
type tapList struct {
	all atomic.Pointer[[]*tap]
}

func (l *tapList) any() bool { return l.all.Load() != nil }

// write passes a chunk on to all. It never blocks and keeps nothing of b.
func (l *tapList) write(b []byte) {
	if all := l.all.Load(); all != nil {
		for _, t := range *all {
			t.offer(b)
		}
	}
}

func (l *tapList) add(t *tap) {
	l.change(func(all []*tap) []*tap { return append(all, t) })
}

func (l *tapList) remove(t *tap) {
	l.change(func(all []*tap) []*tap {
		for i := range all {
			if all[i] == t {
				return append(all[:i], all[i+1:]...)
			}
		}
		return all
	})
}

func (l *tapList) change(f func([]*tap) []*tap) {
	for {
		old := l.all.Load()
		var all []*tap
		if old != nil {
			all = append(all, *old...) // readers have the old one
		}
		next := &all
		if all = f(all); len(all) == 0 {
			next = nil
		}
		if l.all.CompareAndSwap(old, next) {
			return
		}
	}
}

// tap is one stream of a client that is attached.
type tap struct {
	queue  *tapQueue
	stream int // 0 stdout, 1 stderr
}

func (t *tap) offer(b []byte) { t.queue.add(t.stream, b) }

// tapQueue is what waits for a client, of both streams in their order.
type tapQueue struct {
	news chan struct{} // has one when there is something to take
	lags func()        // called once the client has fallen behind

	mu      sync.Mutex // guards what follows; nothing blocks while it is held
	chunks  []tapChunk
	size    int
	lagging bool
}

type tapChunk struct {
	stream int
	data   []byte
}

func (q *tapQueue) add(stream int, b []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.lagging:
		return
	case q.size+len(b) > tapLimit:
		q.lagging, q.chunks, q.size = true, nil, 0
		q.lags()
	default:
		q.size += len(b)
		// Small pieces are joined, so that what is kept for them besides is bounded too.
		if n := len(q.chunks); n > 0 && q.chunks[n-1].stream == stream && len(q.chunks[n-1].data)+len(b) <= api.Chunk {
			q.chunks[n-1].data = append(q.chunks[n-1].data, b...)
		} else {
			q.chunks = append(q.chunks, tapChunk{stream, append([]byte(nil), b...)})
		}
	}
	select {
	case q.news <- struct{}{}:
	default:
	}
}

// take answers with what waits.
func (q *tapQueue) take() []tapChunk {
	q.mu.Lock()
	defer q.mu.Unlock()
	all := q.chunks
	q.chunks, q.size = nil, 0
	return all
}

// Attach passes a container's streams on to a caller. See shim.proto.
func (s *Server) Attach(ctx context.Context, wire api.Shim_AttachServer) error {
	session, open, err := newSession(ctx, wire)
	if err != nil {
		return toStatus(err)
	}
	defer session.end()
	if err := s.attach(session, open); err != nil {
		return toStatus(err)
	}
	return wire.Send(&api.StreamOutput{Done: true})
}

// attach is Attach without the transport; it ends when the container's process has ended.
func (s *Server) attach(session *session, open *api.StreamOpen) error {
	c, err := s.find(session.ctx, open.Id)
	if err != nil {
		return err
	}
	if s.stateOf(c) != running {
		return fmt.Errorf("container %q does not run: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	queue := &tapQueue{news: make(chan struct{}, 1), lags: func() { session.cancel(errLagging) }}
	for _, st := range c.streams {
		t := &tap{queue: queue}
		if st.name == "stderr" {
			t.stream = 1
		}
		if session.wants[t.stream] {
			st.taps.add(t)
			defer st.taps.remove(t)
		}
	}
	if err := s.attachInput(session, c, open); err != nil {
		return err
	}
	if err := session.wire.Send(&api.StreamOutput{}); err != nil {
		return err
	}
	for ended := false; ; {
		chunks := queue.take()
		for _, chunk := range chunks {
			session.write(chunk.stream, chunk.data)
		}
		if session.ctx.Err() != nil {
			return session.cause()
		}
		if len(chunks) > 0 {
			continue
		}
		if ended {
			return nil
		}
		select {
		case <-queue.news:
		case <-c.ended: // its output has been read by then
			ended = true
		case <-session.ctx.Done():
		}
	}
}

// attachInput joins the caller's input with the container's terminal, or with its standard input. The goroutines end with the
// session.
func (s *Server) attachInput(session *session, c *container, open *api.StreamOpen) error {
	if c.record.Terminal {
		console, err := c.held.copy("console")
		if err != nil {
			return err
		}
		if console == nil {
			return fmt.Errorf("the terminal of container %q was lost when shim and keeper were killed together: %w", c.id, errdefs.ErrFailedPrecondition)
		}
		go func() {
			defer console.Close()
			session.pumpSizes(console)
		}()
		if open.Stdin {
			go session.pumpInput(console)
		}
		return nil
	}
	if !open.Stdin {
		return nil
	}
	stdin, err := c.held.copy("stdin")
	if err != nil {
		return err
	}
	if stdin == nil {
		return fmt.Errorf("stdin: container %q has none, or it was closed: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	go func() {
		session.pumpInput(stdin)
		_ = stdin.Close()
		if !open.StdinOnce {
			return
		}
		if err := s.closeStdin(c); err != nil {
			s.note.Error("the standard input of a container is not closed", "container", c.id, "error", err)
		}
	}()
	return nil
}

// closeStdin ends a container's standard input for good: on record first, then with the keeper, then here.
func (s *Server) closeStdin(c *container) error {
	c.puts <- struct{}{}
	defer func() { <-c.puts }()
	stdin := c.held.remove("stdin")
	if stdin == nil {
		return nil
	}
	defer stdin.Close()
	if s.stateOf(c) != running {
		return nil
	}
	record := c.record
	record.Stdin = false
	err := fsx.ReplaceJSON(filepath.Join(c.dir, stateFile), record)
	err = errors.Join(err, s.link.put(c.entry()))
	if s.stateOf(c) == deleting { // the drop of teardown may have been before this put
		err = errors.Join(err, s.link.drop(c.key()))
	}
	return err
}
