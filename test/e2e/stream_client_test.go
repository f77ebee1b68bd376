package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// wanted are the streams of a session.
type wanted struct{ stdin, stdout, stderr, tty bool }

// streamSession is a client's end of an exec or attach.
type streamSession struct {
	stdin          io.WriteCloser // closing it ends the input and nothing else
	stdout, stderr io.Reader
	sizes          io.Writer
	status         io.Reader
	vanish         func() // breaks the connection
}

// transports open a session at a URL, as clients of either kind do.
var transports = map[string]func(url string, w wanted) (*streamSession, error){
	"SPDY": openSPDY, "WebSocket": openWebSocket,
}

// dialSPDY opens a connection; protocol is that of its streams.
func dialSPDY(url, protocol string) (httpstream.Connection, error) {
	upgrade, err := spdy.NewRoundTripper(nil)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequest("POST", url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set(httpstream.HeaderProtocolVersion, protocol)
	resp, err := (&http.Client{Transport: upgrade}).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return upgrade.NewConnection(resp)
}

func openSPDY(url string, w wanted) (*streamSession, error) {
	conn, err := dialSPDY(url, "v4.channel.k8s.io")
	if err != nil {
		return nil, err
	}
	s := &streamSession{vanish: func() { _ = conn.Close() }}
	for _, one := range []struct {
		name   string
		wanted bool
		take   func(httpstream.Stream)
	}{
		{"error", true, func(st httpstream.Stream) { s.status = st }},
		{"stdin", w.stdin, func(st httpstream.Stream) { s.stdin = st }},
		{"stdout", w.stdout, func(st httpstream.Stream) { s.stdout = st }},
		{"stderr", w.stderr, func(st httpstream.Stream) { s.stderr = st }},
		{"resize", w.tty, func(st httpstream.Stream) { s.sizes = st }},
	} {
		if !one.wanted {
			continue
		}
		stream, err := conn.CreateStream(http.Header{"Streamtype": {one.name}})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("stream %s: %w", one.name, err), conn.Close())
		}
		one.take(stream)
	}
	return s, nil
}

// channel is one stream of a WebSocket.
type channel struct {
	conn   *websocket.Conn
	number byte
}

func (c channel) Write(b []byte) (int, error) {
	return len(b), websocket.Message.Send(c.conn, append([]byte{c.number}, b...))
}

func (c channel) Close() error { return websocket.Message.Send(c.conn, []byte{255, c.number}) }

func openWebSocket(url string, w wanted) (*streamSession, error) {
	config, err := websocket.NewConfig(strings.Replace(url, "http://", "ws://", 1), "http://localhost")
	if err != nil {
		return nil, err
	}
	config.Protocol = []string{"v5.channel.k8s.io"}
	conn, err := websocket.DialConfig(config)
	if err != nil {
		return nil, err
	}
	s := &streamSession{stdin: channel{conn, 0}, sizes: channel{conn, 4}, vanish: func() { _ = conn.Close() }}
	var writers [4]*io.PipeWriter
	for i, reader := range []*io.Reader{1: &s.stdout, 2: &s.stderr, 3: &s.status} {
		if reader != nil {
			*reader, writers[i] = io.Pipe()
		}
	}
	go func() { // ends with the connection
		for {
			var message []byte
			if err := websocket.Message.Receive(conn, &message); err != nil {
				for _, w := range writers[1:] {
					_ = w.Close()
				}
				return
			}
			if len(message) > 1 && message[0] > 0 && message[0] < 4 {
				_, _ = writers[message[0]].Write(message[1:])
			}
		}
	}()
	if !w.stderr { // nobody reads it
		go func(r io.Reader) { _, _ = io.Copy(io.Discard, r) }(s.stderr)
	}
	return s, nil
}

// outcome is what a session ended with.
type outcome struct {
	stdout, stderr string
	Status         string
	Message        string
	Details        struct {
		Causes []struct{ Reason, Message string }
	}
}

// code is the exit code, as clients read it.
func (o outcome) code() string {
	switch {
	case o.Status == "Success":
		return "0"
	case len(o.Details.Causes) == 1 && o.Details.Causes[0].Reason == "ExitCode":
		return o.Details.Causes[0].Message
	}
	return o.Status + ": " + o.Message
}

// finish reads a session to its end.
func (s *streamSession) finish(t *testing.T) outcome {
	t.Helper()
	var o outcome
	var stdout, stderr, status bytes.Buffer
	var reading sync.WaitGroup
	for reader, to := range map[io.Reader]*bytes.Buffer{s.stdout: &stdout, s.stderr: &stderr, s.status: &status} {
		if reader != nil {
			reading.Go(func() { _, _ = io.Copy(to, reader) })
		}
	}
	done := make(chan struct{})
	go func() { reading.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(callTimeout):
		s.vanish()
		t.Fatal("the session does not end")
	}
	if err := json.Unmarshal(status.Bytes(), &o); err != nil {
		t.Fatalf("the session's status is %q: %v", status.String(), err)
	}
	o.stdout, o.stderr = stdout.String(), stderr.String()
	return o
}

// expect reads stdout until it contains want, and answers with what was read.
func (s *streamSession) expect(t *testing.T, want string) string {
	t.Helper()
	read := make(chan string, 1)
	go func() {
		var all []byte
		b := make([]byte, 4096)
		for !strings.Contains(string(all), want) {
			n, err := s.stdout.Read(b)
			all = append(all, b[:n]...)
			if err != nil {
				break
			}
		}
		read <- string(all)
	}()
	select {
	case all := <-read:
		if !strings.Contains(all, want) {
			t.Fatalf("stdout ended after %q, want %q", all, want)
		}
		return all
	case <-time.After(20 * time.Second):
		s.vanish()
		t.Fatalf("stdout does not say %q; it said %q", want, <-read)
	}
	return ""
}

func (s *streamSession) send(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(s.stdin, text); err != nil {
		t.Fatalf("stdin: %v", err)
	}
}

func (s *streamSession) resize(t *testing.T, width, height int) {
	t.Helper()
	if _, err := fmt.Fprintf(s.sizes, `{"Width":%d,"Height":%d}`, width, height); err != nil {
		t.Fatalf("resize: %v", err)
	}
}

// execURL asks for a session of exec.
func (c *container) execURL(t *testing.T, w wanted, args ...string) string {
	t.Helper()
	resp, err := c.p.n.d.Runtime.Exec(t.Context(), &runtimev1.ExecRequest{
		ContainerId: c.id, Cmd: args, Stdin: w.stdin, Stdout: w.stdout, Stderr: w.stderr, Tty: w.tty,
	})
	if err != nil {
		t.Fatalf("Exec %q: %v", args, err)
	}
	return resp.Url
}

// attachURL asks for a session of attach.
func (c *container) attachURL(t *testing.T, w wanted) string {
	t.Helper()
	resp, err := c.p.n.d.Runtime.Attach(t.Context(), &runtimev1.AttachRequest{
		ContainerId: c.id, Stdin: w.stdin, Stdout: w.stdout, Stderr: w.stderr, Tty: w.tty,
	})
	if err != nil {
		t.Fatalf("Attach: %v", err)
	}
	return resp.Url
}

type opener func(url string, w wanted) (*streamSession, error)

func (open opener) at(t *testing.T, url string, w wanted) *streamSession {
	t.Helper()
	s, err := open(url, w)
	if err != nil {
		t.Fatalf("open %s: %v", url, err)
	}
	t.Cleanup(s.vanish)
	return s
}
