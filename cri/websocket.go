package cri

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/websocket"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	utilexec "k8s.io/utils/exec"
)

// The library serves the WebSocket protocols up to v4, in which a client cannot end its input. What follows adds v5, in which
// it can, and SPDY tunnelled through WebSocket, with which clients of this generation forward ports.

// closesStreams reports whether a client speaks v5.
func closesStreams(r *http.Request) bool {
	return wsstream.IsWebSocketRequestWithStreamCloseProtocol(r)
}

// serveV5 serves a session by v5.channel.k8s.io: v4 with a message by which the client ends a stream.
func serveV5(w http.ResponseWriter, r *http.Request, s *session, idle time.Duration) {
	kind := func(wanted bool, t wsstream.ChannelType) wsstream.ChannelType {
		if wanted {
			return t
		}
		return wsstream.IgnoreChannel
	}
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		remotecommand.StreamProtocolV5Name: {Binary: true, Channels: []wsstream.ChannelType{
			remotecommand.StreamStdIn:  kind(s.options.Stdin, wsstream.ReadChannel),
			remotecommand.StreamStdOut: kind(s.options.Stdout, wsstream.WriteChannel),
			remotecommand.StreamStdErr: kind(s.options.Stderr, wsstream.WriteChannel),
			remotecommand.StreamErr:    wsstream.WriteChannel,
			remotecommand.StreamResize: kind(s.options.TTY, wsstream.ReadChannel),
		}},
	})
	conn.SetIdleTimeout(idle)
	_, streams, err := conn.Open(w, r)
	if err != nil {
		return // the client has been told
	}
	defer conn.Close()
	first := remotecommand.StreamErr
	switch {
	case s.options.Stdout:
		first = remotecommand.StreamStdOut
	case s.options.Stderr:
		first = remotecommand.StreamStdErr
	}
	_, _ = streams[first].Write(nil) // tells the client that the session is open
	var resize chan remotecommand.TerminalSize
	if s.options.TTY {
		resize = make(chan remotecommand.TerminalSize)
		go func() {
			defer close(resize)
			for sizes := json.NewDecoder(streams[remotecommand.StreamResize]); ; {
				var size remotecommand.TerminalSize
				if sizes.Decode(&size) != nil {
					return
				}
				select {
				case resize <- size:
				case <-r.Context().Done():
					return
				}
			}
		}()
	}
	err = s.serve(r.Context(), streams[remotecommand.StreamStdIn], streams[remotecommand.StreamStdOut], streams[remotecommand.StreamStdErr], resize)
	if text, e := json.Marshal(statusOfSession(err)); e == nil {
		_, _ = streams[remotecommand.StreamErr].Write(text)
	}
}

// sessionStatus is how a session's end is told, a Status of the Kubernetes API.
type sessionStatus struct {
	Status  string          `json:"status"`
	Message string          `json:"message,omitempty"`
	Reason  string          `json:"reason,omitempty"`
	Details *sessionDetails `json:"details,omitempty"`
	Code    int             `json:"code,omitempty"`
}

type sessionDetails struct {
	Causes []sessionCause `json:"causes,omitempty"`
}

type sessionCause struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

func statusOfSession(err error) sessionStatus {
	var exit utilexec.CodeExitError
	switch {
	case err == nil:
		return sessionStatus{Status: "Success"}
	case errors.As(err, &exit):
		return sessionStatus{
			Status: "Failure", Reason: remotecommand.NonZeroExitCodeReason, Message: "command terminated with non-zero " + exit.Error(),
			Details: &sessionDetails{Causes: []sessionCause{{remotecommand.ExitCodeCauseType, strconv.Itoa(exit.Code)}}},
		}
	}
	return sessionStatus{
		Status: "Failure", Reason: "InternalError", Code: http.StatusInternalServerError,
		Message: "Internal error occurred: " + err.Error(),
	}
}

// tunnelPrefix begins the names of protocols that run over SPDY, when a WebSocket carries it.
const tunnelPrefix = "SPDY/3.1+"

// serveTunnel takes SPDY out of a WebSocket and has it served.
func serveTunnel(w http.ResponseWriter, r *http.Request, serve http.HandlerFunc) {
	var protocol string
	server := websocket.Server{
		Handshake: func(c *websocket.Config, _ *http.Request) error {
			for _, offered := range c.Protocol {
				name, tunnelled := strings.CutPrefix(offered, tunnelPrefix)
				if tunnelled && name == portforward.ProtocolV1Name {
					protocol, c.Protocol = name, []string{offered}
					return nil
				}
			}
			return fmt.Errorf("none of the protocols %q is served; %q is", c.Protocol, tunnelPrefix+portforward.ProtocolV1Name)
		},
		Handler: func(conn *websocket.Conn) {
			conn.PayloadType = websocket.BinaryFrame
			inner := r.Clone(r.Context())
			inner.Header = http.Header{
				"Connection": {"Upgrade"}, "Upgrade": {"SPDY/3.1"}, "X-Stream-Protocol-Version": {protocol},
			}
			serve(&tunnel{conn: conn, header: http.Header{}}, inner)
		},
	}
	server.ServeHTTP(w, r)
}

// tunnel is the response to a request that exists only within a WebSocket.
type tunnel struct {
	conn   *websocket.Conn
	header http.Header
}

func (t *tunnel) Header() http.Header         { return t.header }
func (t *tunnel) WriteHeader(int)             {}
func (t *tunnel) Write(b []byte) (int, error) { return len(b), nil }
func (t *tunnel) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return t.conn, bufio.NewReadWriter(bufio.NewReader(t.conn), bufio.NewWriter(t.conn)), nil
}
