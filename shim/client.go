// Package shim is the client of the shim, and what starts shim and keeper. SHIM.md is the contract.
package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/criserver/criserver/shim/api"
)

// SocketFile is the name of the shim's socket in the state directory.
const SocketFile = "shim.sock"

const (
	// patience is how long a call waits for a shim that does not answer: a dead one is started again within a second.
	patience = 3 * time.Second
	// ensureAfter is when a call that meets no shim looks whether there is a keeper at all.
	ensureAfter = 100 * time.Millisecond
	maxIdle     = 8 // connections kept for further Execs
)

// Client calls the shim. It connects when it has to, again after a shim has died, and may be used concurrently. Errors are
// of errdefs kinds; errdefs.ErrUnavailable means that the shim could not be reached or died during a call that must not be
// repeated. Every call but Exec and Exits is repeated by itself on another connection when the shim dies under it.
type Client struct {
	path   string
	ensure func(context.Context) error // nil: none

	mu     sync.Mutex // guards what follows; nothing blocks while it is held
	main   *ttrpc.Client
	idle   []*ttrpc.Client // for Exec: a connection of its own can be closed, which ends the call on the other side
	closed bool
}

// Dial makes a client of the shim at a socket. It does not connect yet.
func Dial(path string) *Client { return &Client{path: path} }

// Open makes sure that a shim serves c.StateDir, and answers with its client, which makes sure of it again when need be.
func Open(ctx context.Context, c Config) (*Client, error) {
	if err := Ensure(ctx, c); err != nil {
		return nil, err
	}
	client := Dial(filepath.Join(c.StateDir, SocketFile))
	client.ensure = func(ctx context.Context) error { return Ensure(ctx, c) }
	return client, nil
}

// Close closes the connections. Calls in progress end with ErrUnavailable.
func (c *Client) Close() error {
	c.mu.Lock()
	all := c.idle
	if c.main != nil {
		all = append(all, c.main)
	}
	c.idle, c.main, c.closed = nil, nil, true
	c.mu.Unlock()
	var errs []error
	for _, conn := range all {
		errs = append(errs, conn.Close())
	}
	return errors.Join(errs...)
}

// connect opens a connection, waiting for a shim that is being started.
func (c *Client) connect(ctx context.Context) (*ttrpc.Client, error) {
	began, ensured := time.Now(), false
	var dialer net.Dialer
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		conn, err := dialer.DialContext(ctx, "unix", c.path)
		if err == nil {
			return ttrpc.NewClient(conn), nil
		}
		c.mu.Lock()
		closed := c.closed
		c.mu.Unlock()
		switch waited := time.Since(began); {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case closed:
			return nil, fmt.Errorf("the client of the shim is closed: %w", errdefs.ErrUnavailable)
		case waited > patience:
			return nil, fmt.Errorf("the shim does not answer (is criserver-keeper running?): %w: %w", err, errdefs.ErrUnavailable)
		case waited > ensureAfter && c.ensure != nil && !ensured:
			ensured = true
			if err := c.ensure(ctx); err != nil {
				return nil, err
			}
			continue
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// shared answers with the connection for all short calls.
func (c *Client) shared(ctx context.Context) (*ttrpc.Client, error) {
	c.mu.Lock()
	conn := c.main
	c.mu.Unlock()
	if conn != nil {
		return conn, nil
	}
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	other, closed := c.main, c.closed
	if other == nil && !closed {
		c.main = conn
	}
	c.mu.Unlock()
	switch {
	case closed:
		_ = conn.Close()
		return nil, fmt.Errorf("the client of the shim is closed: %w", errdefs.ErrUnavailable)
	case other != nil: // somebody was faster
		_ = conn.Close()
		return other, nil
	}
	return conn, nil
}

func (c *Client) discard(conn *ttrpc.Client) {
	c.mu.Lock()
	if c.main == conn {
		c.main = nil
	}
	c.mu.Unlock()
	_ = conn.Close()
}

// call makes a call that may be repeated.
func call[Answer any](ctx context.Context, c *Client, f func(context.Context, api.ShimClient) (Answer, error)) (Answer, error) {
	var none Answer
	began := time.Now()
	for pause := time.Millisecond; ; pause *= 2 {
		conn, err := c.shared(ctx)
		if err != nil {
			return none, err
		}
		answer, err := f(ctx, api.NewShimClient(conn))
		if err == nil {
			return answer, nil
		}
		if !broken(ctx, err) {
			return none, fromWire(ctx, err)
		}
		c.discard(conn)
		if time.Since(began) > patience {
			return none, unavailable(err)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return none, ctx.Err()
		}
	}
}

// Info says which shim answers.
func (c *Client) Info(ctx context.Context) (*api.InfoResponse, error) {
	return call(ctx, c, func(ctx context.Context, s api.ShimClient) (*api.InfoResponse, error) {
		return s.Info(ctx, &api.InfoRequest{})
	})
}

// MapsOwners is nil when containers can have user namespaces, with layers in the directory.
func (c *Client) MapsOwners(ctx context.Context, layers string) error {
	info, err := call(ctx, c, func(ctx context.Context, s api.ShimClient) (*api.InfoResponse, error) {
		return s.Info(ctx, &api.InfoRequest{Layers: layers})
	})
	if err == nil && !info.UserNamespaces {
		err = fmt.Errorf("%s: %w", info.NoUserNamespaces, errdefs.ErrFailedPrecondition)
	}
	return err
}

// StartPod makes the namespaces that a pod's containers share.
func (c *Client) StartPod(ctx context.Context, r *api.StartPodRequest) (*api.StartPodResponse, error) {
	return call(ctx, c, func(ctx context.Context, s api.ShimClient) (*api.StartPodResponse, error) { return s.StartPod(ctx, r) })
}

// StopPod lets go of them. An unknown pod is no error.
func (c *Client) StopPod(ctx context.Context, podID string) error {
	_, err := call(ctx, c, func(ctx context.Context, s api.ShimClient) (*api.StopPodResponse, error) {
		return s.StopPod(ctx, &api.StopPodRequest{PodId: podID})
	})
	return err
}

// Start makes a container and runs its process.
func (c *Client) Start(ctx context.Context, r *api.StartRequest) (*api.StartResponse, error) {
	return call(ctx, c, func(ctx context.Context, s api.ShimClient) (*api.StartResponse, error) { return s.Start(ctx, r) })
}

// Signal sends a signal to a container's process, or to everything in its cgroup.
func (c *Client) Signal(ctx context.Context, r *api.SignalRequest) error {
	_, err := call(ctx, c, func(ctx context.Context, s api.ShimClient) (*api.SignalResponse, error) { return s.Signal(ctx, r) })
	return err
}

// Delete ends a container, removes its cgroup and forgets it. An unknown one is no error.
func (c *Client) Delete(ctx context.Context, r *api.DeleteRequest) error {
	_, err := call(ctx, c, func(ctx context.Context, s api.ShimClient) (*api.DeleteResponse, error) { return s.Delete(ctx, r) })
	return err
}

// Update sets the resources of a container.
func (c *Client) Update(ctx context.Context, r *api.UpdateRequest) error {
	_, err := call(ctx, c, func(ctx context.Context, s api.ShimClient) (*api.UpdateResponse, error) { return s.Update(ctx, r) })
	return err
}

// List answers with every container that the shim knows.
func (c *Client) List(ctx context.Context) (*api.ListResponse, error) {
	return call(ctx, c, func(ctx context.Context, s api.ShimClient) (*api.ListResponse, error) {
		return s.List(ctx, &api.ListRequest{})
	})
}

// ReopenLog opens a container's log anew, for rotation.
func (c *Client) ReopenLog(ctx context.Context, id string) error {
	_, err := call(ctx, c, func(ctx context.Context, s api.ShimClient) (*api.ReopenLogResponse, error) {
		return s.ReopenLog(ctx, &api.ReopenLogRequest{Id: id})
	})
	return err
}

// Exits blocks until there is news after the sequence, the context ends, or the connection breaks (ErrUnavailable).
func (c *Client) Exits(ctx context.Context, after uint64) (*api.ExitsResponse, error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close() // the shim stops waiting, too
	answer, err := api.NewShimClient(conn).Exits(ctx, &api.ExitsRequest{After: after})
	if err != nil {
		return nil, fromWire(ctx, err)
	}
	return answer, nil
}

// Exec runs a process in a container to its end. It calls output, never concurrently, with each piece of output; the answer
// carries the exit code and no output. When the context ends the process is killed.
func (c *Client) Exec(ctx context.Context, r *api.ExecRequest, output func(stdout, stderr []byte)) (*api.ExecResponse, error) {
	conn, reused, err := c.own(ctx)
	if err != nil {
		return nil, err
	}
	answer, started, err := runExec(ctx, conn, r, output)
	if err != nil && reused && !started && broken(ctx, err) { // an idle connection to a shim that is dead
		_ = conn.Close()
		if conn, err = c.connect(ctx); err != nil {
			return nil, err
		}
		answer, _, err = runExec(ctx, conn, r, output)
	}
	if err != nil && (broken(ctx, err) || ctx.Err() != nil) {
		_ = conn.Close()
		return nil, fromWire(ctx, err)
	}
	c.giveBack(conn)
	if err != nil {
		return nil, fromWire(ctx, err)
	}
	return answer, nil
}

// runExec reports as started whether the shim may have seen the request.
func runExec(ctx context.Context, conn *ttrpc.Client, r *api.ExecRequest, output func(stdout, stderr []byte)) (answer *api.ExecResponse, started bool, err error) {
	stream, err := api.NewShimClient(conn).Exec(ctx, r)
	if err != nil {
		return nil, false, err
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return nil, true, err
		}
		if m.Done {
			_, err := stream.Recv() // the end of the stream; then the connection may be used again
			if err == nil || errors.Is(err, io.EOF) {
				return m, true, nil
			}
			return nil, true, err
		}
		output(m.Stdout, m.Stderr)
	}
}

// own takes an idle connection, or opens one.
func (c *Client) own(ctx context.Context) (conn *ttrpc.Client, reused bool, err error) {
	c.mu.Lock()
	if n := len(c.idle); n > 0 {
		conn = c.idle[n-1]
		c.idle = c.idle[:n-1]
	}
	c.mu.Unlock()
	if conn != nil {
		return conn, true, nil
	}
	conn, err = c.connect(ctx)
	return conn, false, err
}

func (c *Client) giveBack(conn *ttrpc.Client) {
	c.mu.Lock()
	keep := !c.closed && len(c.idle) < maxIdle
	if keep {
		c.idle = append(c.idle, conn)
	}
	c.mu.Unlock()
	if !keep {
		_ = conn.Close()
	}
}

// broken reports whether an error is the connection's, not the shim's answer and not the caller's context's.
func broken(ctx context.Context, err error) bool {
	if ctx.Err() != nil {
		return false
	}
	_, answered := status.FromError(err)
	return !answered && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
}

func unavailable(err error) error {
	return fmt.Errorf("the connection to the shim broke: %w: %w", err, errdefs.ErrUnavailable)
}

var kinds = map[codes.Code]error{
	codes.NotFound:           errdefs.ErrNotFound,
	codes.InvalidArgument:    errdefs.ErrInvalidArgument,
	codes.AlreadyExists:      errdefs.ErrAlreadyExists,
	codes.FailedPrecondition: errdefs.ErrFailedPrecondition,
	codes.Unavailable:        errdefs.ErrUnavailable,
	codes.Unimplemented:      errdefs.ErrNotImplemented,
	codes.PermissionDenied:   errdefs.ErrPermissionDenied,
	codes.ResourceExhausted:  errdefs.ErrResourceExhausted,
	codes.Canceled:           context.Canceled,
	codes.DeadlineExceeded:   context.DeadlineExceeded,
}

// wireError has the shim's text and the kind that its code stands for.
type wireError struct {
	text string
	kind error
}

func (e *wireError) Error() string { return e.text }
func (e *wireError) Unwrap() error { return e.kind }

func fromWire(ctx context.Context, err error) error {
	if broken(ctx, err) {
		return unavailable(err)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	kind := kinds[s.Code()]
	if kind == nil {
		kind = errdefs.ErrInternal
	}
	return &wireError{s.Message(), kind}
}
