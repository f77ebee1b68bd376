package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/engine/spec"
	"github.com/criserver/criserver/shim/api"
)

// Streams are a client's ends of a process's standard streams. WindowSize is the size of a terminal in characters.
type (
	Streams    = api.Streams
	WindowSize = api.WindowSize
)

// Terminal says that a process gets one, and of what size; zero: not known yet.
type Terminal struct{ Size WindowSize }

func (t *Terminal) apply(p *specs.Process) {
	if t.Size.Width > 0 && t.Size.Height > 0 {
		p.ConsoleSize = &specs.Box{Width: uint(t.Size.Width), Height: uint(t.Size.Height)}
	}
	for _, entry := range p.Env {
		if strings.HasPrefix(entry, "TERM=") {
			return
		}
	}
	p.Env = append(p.Env[:len(p.Env):len(p.Env)], "TERM=xterm")
}

// ExecStream runs argv in a running container to its end, with a client's streams and, unless terminal is nil, a terminal,
// whose output is stdout. The process dies with ctx, and when the client's output cannot be written. Stdin may still be read
// from when it returns; see Streams.
func (e *Engine) ExecStream(ctx context.Context, id string, argv []string, terminal *Terminal, s Streams) (exitCode int, err error) {
	if len(argv) == 0 || argv[0] == "" {
		return 0, fmt.Errorf("command to execute is empty: %w", errdefs.ErrInvalidArgument)
	}
	id, err = e.resolveContainer(id)
	if err != nil {
		return 0, err
	}
	process, env, err := e.execProcess(id, argv, terminal)
	if err == nil {
		err = e.awaitShim(ctx)
	}
	if err == nil {
		r := &api.StreamOpen{Id: id, Process: process, Env: env, Stdin: s.Stdin != nil, Stdout: s.Stdout != nil, Stderr: s.Stderr != nil}
		exitCode, err = e.cfg.Shims.ExecStream(ctx, r, s)
	}
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", id, aboutProcess(id, err))
	}
	return exitCode, nil
}

// Attach passes on what a running container prints from now on, and gives it the client's input, until its process has
// ended. When ctx ends, or the client's output cannot be written, it detaches and the container runs on. A client that falls
// too far behind is detached with ErrResourceExhausted.
func (e *Engine) Attach(ctx context.Context, id string, s Streams) error {
	id, err := e.resolveContainer(id)
	if err != nil {
		return err
	}
	record, ok := e.containerRecord(id)
	switch {
	case !ok:
		err = errdefs.ErrNotFound
	case record.State != running:
		err = fmt.Errorf("it is %s: it must run: %w", record.State, errdefs.ErrFailedPrecondition)
	default:
		err = e.awaitShim(ctx)
	}
	if err == nil {
		err = e.cfg.Shims.Attach(ctx, &api.StreamOpen{
			Id: id, Stdin: s.Stdin != nil, Stdout: s.Stdout != nil, Stderr: s.Stderr != nil, StdinOnce: record.Container.StdinOnce,
		}, s)
	}
	if err != nil {
		return fmt.Errorf("attach to container %s: %w", id, err)
	}
	return nil
}

// dialTimeout bounds a connection to a pod's own loopback, which takes microseconds.
const dialTimeout = 10 * time.Second

// DialPod connects to a TCP port of a ready pod, as a process in it would on its loopback addresses.
func (e *Engine) DialPod(ctx context.Context, id string, port uint16) (net.Conn, error) {
	pod, err := e.Pod(id)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var conn net.Conn
	switch {
	case pod.State != PodReady:
		err = fmt.Errorf("it is %s: it must be ready: %w", pod.State, errdefs.ErrFailedPrecondition)
	case pod.Pod.Security.Namespaces.Network == spec.ModeNode:
		conn, err = dialHost(ctx, port)
	default:
		conn, err = e.cfg.Network.Dial(ctx, pod.Pod.ID, port)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to port %d of pod %s: %w", port, pod.Pod.ID, err)
	}
	return conn, nil
}

// dialHost connects to the host's own loopback, for a pod that shares it.
func dialHost(ctx context.Context, port uint16) (net.Conn, error) {
	var errs []error
	for _, host := range []string{"127.0.0.1", "::1"} {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("%w: %w", errors.Join(errs...), errdefs.ErrFailedPrecondition)
}
