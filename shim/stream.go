package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"

	"github.com/criserver/criserver/shim/api"
)

// ExecStream runs a process in a container to its end, with a client's streams. When the context ends, or an output can no
// longer be written, the process is killed. It is never repeated.
func (c *Client) ExecStream(ctx context.Context, open *api.StreamOpen, s api.Streams) (exitCode int, err error) {
	answer, _, err := c.stream(ctx, open, s, func(ctx context.Context, client api.ShimClient) (wire, error) { return client.ExecStream(ctx) })
	if err != nil {
		return 0, err
	}
	return int(answer.ExitCode), nil
}

// Attach passes on a container's streams until its process has ended. When the context ends it detaches.
// Only while it has not attached yet, it is tried again when the shim dies.
func (c *Client) Attach(ctx context.Context, open *api.StreamOpen, s api.Streams) error {
	began := time.Now()
	for pause := time.Millisecond; ; pause *= 2 {
		_, opened, err := c.stream(ctx, open, s, func(ctx context.Context, client api.ShimClient) (wire, error) { return client.Attach(ctx) })
		if opened || !errdefs.IsUnavailable(err) || time.Since(began) > patience {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// wire is what the streams of both calls have in common.
type wire interface {
	Send(*api.StreamInput) error
	Recv() (*api.StreamOutput, error)
}

// stream makes one of the calls, on a connection of its own: its end ends the call on the other side. It reports as opened
// whether the client's streams may have been used.
func (c *Client) stream(ctx context.Context, open *api.StreamOpen, s api.Streams, call func(context.Context, api.ShimClient) (wire, error)) (last *api.StreamOutput, opened bool, err error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, false, err
	}
	caller := ctx
	ctx, cancel := context.WithCancel(ctx)
	p := &passing{streams: s, credit: api.NewCredit(), output: make(chan *api.StreamOutput, api.Window+1)}
	var receiving sync.WaitGroup
	defer receiving.Wait()
	defer conn.Close()
	defer cancel()
	// A Send waits as long as the shim does not read; closing the connection ends that.
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if p.wire, err = begin(ctx, conn, open, call); err != nil {
		return nil, false, fromWire(caller, err)
	}
	if s.Stdin != nil {
		p.start = func() { go p.sendInput(ctx) } // ends with s.Stdin
	}
	receiving.Go(func() { p.receive() })
	if s.Resize != nil {
		receiving.Go(func() { p.sendSizes(ctx) })
	}
	last, err = p.deliver()
	var theirs *clientError
	switch {
	case err == nil:
		return last, true, nil
	case errors.As(err, &theirs) && caller.Err() == nil:
		return nil, true, err
	}
	return nil, p.opened.Load(), fromWire(caller, err)
}

func begin(ctx context.Context, conn *ttrpc.Client, open *api.StreamOpen, call func(context.Context, api.ShimClient) (wire, error)) (wire, error) {
	w, err := call(ctx, api.NewShimClient(conn))
	if err != nil {
		return nil, err
	}
	return w, w.Send(&api.StreamInput{Open: open})
}

// passing is a call in progress.
type passing struct {
	wire    wire
	streams api.Streams
	credit  api.Credit
	start   func()                 // sends the client's input; nil: there is none
	opened  atomic.Bool            // the first message has come
	output  chan *api.StreamOutput // closed at the end of what is received
	failure error                  // why it ended; read after output is closed
}

// receive takes in what the shim sends, at once: what waits for the client waits in output.
func (p *passing) receive() {
	defer close(p.output)
	for {
		m, err := p.wire.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = fmt.Errorf("the shim ended a stream without an answer: %w", io.ErrUnexpectedEOF)
			}
			p.failure = err
			return
		}
		if !p.opened.Swap(true) && p.start != nil {
			p.start()
		}
		p.credit.Give(m.Taken)
		if len(m.Stdout) == 0 && len(m.Stderr) == 0 && !m.Done {
			continue
		}
		select {
		case p.output <- m:
		default:
			p.failure = errors.New("the shim sent more than it may")
			return
		}
		if m.Done {
			return
		}
	}
}

// clientError is an end of the client's that cannot be used any more.
type clientError struct {
	stream string
	err    error
}

func (e *clientError) Error() string { return "pass on " + e.stream + ": " + e.err.Error() }
func (e *clientError) Unwrap() error { return e.err }

// deliver writes output to the client, and answers with the last message.
func (p *passing) deliver() (*api.StreamOutput, error) {
	var taken api.Taken
	for m := range p.output {
		if m.Done {
			return m, nil
		}
		for _, o := range []struct {
			name string
			to   io.Writer
			data []byte
		}{{"stdout", p.streams.Stdout, m.Stdout}, {"stderr", p.streams.Stderr, m.Stderr}} {
			if len(o.data) == 0 || o.to == nil {
				continue
			}
			if _, err := o.to.Write(o.data); err != nil {
				return nil, &clientError{o.name, err}
			}
		}
		if n := taken.Add(); n > 0 {
			_ = p.wire.Send(&api.StreamInput{Taken: n}) // when that fails, what is received last says why
		}
	}
	return nil, p.failure
}

// sendInput sends the client's input until it ends, or the call has.
func (p *passing) sendInput(ctx context.Context) {
	b := make([]byte, api.Chunk)
	for {
		n, err := p.streams.Stdin.Read(b)
		if n > 0 {
			if !p.credit.Take(ctx) || p.wire.Send(&api.StreamInput{Stdin: b[:n]}) != nil {
				return
			}
		}
		if err != nil {
			if ctx.Err() == nil {
				_ = p.wire.Send(&api.StreamInput{StdinEnd: true})
			}
			return
		}
	}
}

func (p *passing) sendSizes(ctx context.Context) {
	for {
		select {
		case size, ok := <-p.streams.Resize:
			if !ok || p.wire.Send(&api.StreamInput{Width: uint32(size.Width), Height: uint32(size.Height)}) != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}
