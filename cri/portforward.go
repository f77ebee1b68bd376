package cri

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"github.com/criserver/criserver/engine"
)

// PortForward implements RuntimeService. The ports are those of each connection; the request's are used by clients that cannot
// name them there.
func (s *runtimeService) PortForward(_ context.Context, r *runtime.PortForwardRequest) (*runtime.PortForwardResponse, error) {
	if r.GetPodSandboxId() == "" {
		return nil, required("pod_sandbox_id")
	}
	for _, port := range r.GetPort() {
		if port < 1 || port > 65535 {
			return nil, invalid("port", "%d is not between 1 and 65535", port)
		}
	}
	pod, err := s.engine.Pod(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if pod.State != engine.PodReady {
		return nil, fmt.Errorf("pod %s is %s: it must be ready: %w", pod.Pod.ID, pod.State, errdefs.ErrFailedPrecondition)
	}
	if s.streams == nil {
		return nil, errNoStreams
	}
	options, err := portforward.BuildV4Options(r.GetPort())
	if err != nil {
		return nil, invalid("port", "%v", err)
	}
	url, err := s.streams.Offer("portforward", func(w http.ResponseWriter, req *http.Request) {
		serve := func(w http.ResponseWriter, req *http.Request) {
			to := &forwarder{ctx: req.Context(), engine: s.engine}
			portforward.ServePortForward(w, req, to, pod.Pod.ID, "", options, s.idle, createTimeout, portforward.SupportedProtocols)
		}
		if wsstream.IsWebSocketRequestWithTunnelingProtocol(req) {
			serveTunnel(w, req, serve)
			return
		}
		serve(w, req)
	})
	return &runtime.PortForwardResponse{Url: url}, err
}

// forwarder carries the connections of one session. The library gives each no context, so it holds the session's.
type forwarder struct {
	ctx    context.Context
	engine *engine.Engine
}

// halfClosed is how long a client may go on sending to a server that has ended its own side.
const halfClosed = 2 * time.Second

// PortForward implements portforward.PortForwarder: it carries one connection to its end.
func (f *forwarder) PortForward(_ context.Context, podID, _ string, port int32, client io.ReadWriteCloser) error {
	server, err := f.engine.DialPod(f.ctx, podID, uint16(port))
	if err != nil {
		return err
	}
	defer server.Close()
	stop := context.AfterFunc(f.ctx, func() { _ = server.Close() })
	defer stop()
	sent := make(chan struct{})
	go func() { // ends with the client's stream, which is closed after us
		defer close(sent)
		if _, err := io.Copy(server, client); err != nil {
			_ = server.Close()
			return
		}
		if half, can := server.(*net.TCPConn); can {
			_ = half.CloseWrite()
		}
	}()
	_, err = io.Copy(client, server)
	if err != nil {
		if f.ctx.Err() != nil {
			return nil // the client has left
		}
		return err
	}
	select {
	case <-sent:
	case <-f.ctx.Done():
	case <-time.After(halfClosed):
	}
	return nil
}
