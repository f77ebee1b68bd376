package cri

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"github.com/criserver/criserver/engine"
)

const (
	// createTimeout is how long a client may take to open the streams of a session.
	createTimeout = 30 * time.Second
	// sizeWait is how long an exec with a terminal waits for the client to say its size, so that the process never sees another.
	sizeWait = 200 * time.Millisecond
)

// Exec implements RuntimeService. The session runs when the client opens the URL.
func (s *runtimeService) Exec(_ context.Context, r *runtime.ExecRequest) (*runtime.ExecResponse, error) {
	c, err := s.streamable(r)
	if err != nil {
		return nil, err
	}
	if len(r.GetCmd()) == 0 {
		return nil, required("cmd")
	}
	if err := texts("cmd", r.GetCmd()); err != nil {
		return nil, err
	}
	url, err := s.offer("exec", r, func(ctx context.Context, streams engine.Streams) error {
		return s.runExec(ctx, c.Container.ID, r, streams)
	})
	return &runtime.ExecResponse{Url: url}, err
}

// Attach implements RuntimeService.
func (s *runtimeService) Attach(_ context.Context, r *runtime.AttachRequest) (*runtime.AttachResponse, error) {
	c, err := s.streamable(r)
	switch {
	case err != nil:
		return nil, err
	case r.GetTty() != c.Container.TTY:
		return nil, invalid("tty", "%t, but container %s was created with tty %t", r.GetTty(), c.Container.ID, c.Container.TTY)
	case r.GetStdin() && !c.Container.Stdin:
		return nil, &fieldError{"stdin", "container " + c.Container.ID + " was created without stdin", errdefs.ErrFailedPrecondition}
	}
	url, err := s.offer("attach", r, func(ctx context.Context, streams engine.Streams) error {
		return s.engine.Attach(ctx, c.Container.ID, streams)
	})
	return &runtime.AttachResponse{Url: url}, err
}

// streamRequest is what requests for Exec and Attach have in common.
type streamRequest interface {
	GetContainerId() string
	GetTty() bool
	GetStdin() bool
	GetStdout() bool
	GetStderr() bool
}

// streamable checks a request and answers with its container, which runs.
func (s *runtimeService) streamable(r streamRequest) (engine.ContainerStatus, error) {
	var none engine.ContainerStatus
	switch {
	case r.GetContainerId() == "":
		return none, required("container_id")
	case r.GetTty() && r.GetStderr():
		return none, invalid("stderr", "a terminal has one output, stdout: tty and stderr exclude each other")
	case !r.GetStdin() && !r.GetStdout() && !r.GetStderr():
		return none, invalid("stdout", "one of stdin, stdout and stderr is needed")
	}
	c, err := s.engine.Container(r.GetContainerId())
	if err != nil {
		return none, err
	}
	if c.State != engine.ContainerRunning {
		return none, fmt.Errorf("container %s is %s: it must run: %w", c.Container.ID, c.State, errdefs.ErrFailedPrecondition)
	}
	return c, nil
}

// command runs a session's exec or attach with the client's streams.
type command func(ctx context.Context, streams engine.Streams) error

// offer makes the URL of a session.
func (s *runtimeService) offer(kind string, r streamRequest, run command) (string, error) {
	if s.streams == nil {
		return "", errNoStreams
	}
	options := &remotecommand.Options{Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(), TTY: r.GetTty()}
	id := r.GetContainerId()
	return s.streams.Offer(kind, func(w http.ResponseWriter, req *http.Request) {
		began := time.Now()
		logged := func(ctx context.Context, streams engine.Streams) error {
			err := run(ctx, streams)
			s.log.DebugContext(ctx, "streaming session", "kind", kind, "container", id, "took", time.Since(began), "result", err)
			return err
		}
		session := &session{options: options, run: logged}
		switch {
		case closesStreams(req):
			serveV5(w, req, session, s.idle)
		case kind == "exec":
			remotecommand.ServeExec(w, req, session, "", "", "", nil, options, s.idle, createTimeout, remotecommand.SupportedStreamingProtocols)
		default:
			remotecommand.ServeAttach(w, req, session, "", "", "", options, s.idle, createTimeout, remotecommand.SupportedStreamingProtocols)
		}
	})
}

var errNoStreams = fmt.Errorf("this server has no streaming server: %w", errdefs.ErrFailedPrecondition)

// runExec is a session of Exec.
func (s *runtimeService) runExec(ctx context.Context, id string, r *runtime.ExecRequest, streams engine.Streams) error {
	var terminal *engine.Terminal
	if r.GetTty() {
		terminal = &engine.Terminal{Size: firstSize(ctx, streams.Resize)}
	}
	code, err := s.engine.ExecStream(ctx, id, r.GetCmd(), terminal, streams)
	if err != nil {
		return err
	}
	if code != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("exit code %d", code), Code: code}
	}
	return nil
}

func firstSize(ctx context.Context, sizes <-chan engine.WindowSize) engine.WindowSize {
	timer := time.NewTimer(sizeWait)
	defer timer.Stop()
	select {
	case size := <-sizes:
		return size
	case <-timer.C:
	case <-ctx.Done():
	}
	return engine.WindowSize{}
}

// session is what the library that speaks the clients' protocols calls.
type session struct {
	options *remotecommand.Options
	run     command
}

// ExecInContainer implements remotecommand.Executor.
func (s *session) ExecInContainer(ctx context.Context, _, _, _ string, _ []string, in io.Reader, out, err io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	return s.serve(ctx, in, out, err, resize)
}

// AttachContainer implements remotecommand.Attacher.
func (s *session) AttachContainer(ctx context.Context, _, _, _ string, in io.Reader, out, err io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	return s.serve(ctx, in, out, err, resize)
}

// serve runs the session with those of the client's streams that were asked for.
func (s *session) serve(ctx context.Context, in io.Reader, out, err io.WriteCloser, resize <-chan remotecommand.TerminalSize) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var streams engine.Streams
	if s.options.Stdin && in != nil {
		streams.Stdin = in
	}
	if s.options.Stdout && out != nil {
		streams.Stdout = out
		defer out.Close()
	}
	if s.options.Stderr && err != nil {
		streams.Stderr = err
		defer err.Close()
	}
	if resize != nil {
		sizes := make(chan engine.WindowSize)
		streams.Resize = sizes
		go translateSizes(ctx, resize, sizes)
	}
	return s.run(ctx, streams)
}

// translateSizes ends with ctx or its input.
func translateSizes(ctx context.Context, from <-chan remotecommand.TerminalSize, to chan<- engine.WindowSize) {
	for {
		select {
		case size, ok := <-from:
			if !ok {
				return
			}
			select {
			case to <- engine.WindowSize{Width: size.Width, Height: size.Height}:
			case <-ctx.Done():
				return
			}
		case <-ctx.Done():
			return
		}
	}
}
