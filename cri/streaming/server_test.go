package streaming

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func newServer(t *testing.T, lifetime time.Duration) *Server {
	t.Helper()
	s, err := New(Config{Address: "127.0.0.1", TokenLifetime: lifetime, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func offered(t *testing.T, s *Server, serve Session) string {
	t.Helper()
	url, err := s.Offer("exec", serve)
	if err != nil {
		t.Fatal(err)
	}
	return url
}

func get(t *testing.T, url string) (code int, body string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func hello(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }

func TestTokens(t *testing.T) {
	s := newServer(t, time.Minute)
	url := offered(t, s, hello)
	if other := offered(t, s, hello); other == url || len(url) < 60 {
		t.Errorf("URLs %s and %s", url, other)
	}
	wrong := strings.Replace(url, "/exec/", "/attach/", 1)
	if code, _ := get(t, wrong); code != http.StatusNotFound {
		t.Errorf("another kind: %d", code)
	}
	if code, body := get(t, url); code != http.StatusOK || body != "hello" {
		t.Errorf("%d %q", code, body)
	}
	for _, bad := range []string{url, "http://" + s.Addr() + "/exec/", "http://" + s.Addr() + "/exec/x", "http://" + s.Addr() + "/"} {
		if code, _ := get(t, bad); code != http.StatusNotFound {
			t.Errorf("%s: %d, want %d", bad, code, http.StatusNotFound)
		}
	}
}

func TestTokensExpire(t *testing.T) {
	s := newServer(t, 10*time.Millisecond)
	url := offered(t, s, hello)
	time.Sleep(20 * time.Millisecond)
	if code, body := get(t, url); code != http.StatusNotFound || !strings.Contains(body, "too old") {
		t.Errorf("%d %q", code, body)
	}
}

func TestTokensAreBounded(t *testing.T) {
	s := newServer(t, time.Minute)
	for range maxOffers {
		offered(t, s, hello)
	}
	if _, err := s.Offer("exec", hello); !errdefs.IsResourceExhausted(err) {
		t.Errorf("%v, want %v", err, errdefs.ErrResourceExhausted)
	}
}

// dial sends a request and some bytes behind it.
func dial(t *testing.T, url, behind string) net.Conn {
	t.Helper()
	host, path, _ := strings.Cut(strings.TrimPrefix(url, "http://"), "/")
	conn, err := net.Dial("tcp", host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := fmt.Fprintf(conn, "POST /%s HTTP/1.1\r\nHost: x\r\n\r\n%s", path, behind); err != nil {
		t.Fatal(err)
	}
	return conn
}

// TestClientLeaves has a session end with its client's connection, which it has taken over.
func TestClientLeaves(t *testing.T) {
	s := newServer(t, time.Minute)
	ended := make(chan error, 1)
	got := make(chan string, 1)
	conn := dial(t, offered(t, s, func(w http.ResponseWriter, r *http.Request) {
		taken, buffered, err := w.(http.Hijacker).Hijack()
		if err != nil {
			ended <- err
			return
		}
		defer taken.Close()
		line, _ := buffered.ReadString('\n')
		got <- line
		go func() { _, _ = io.Copy(io.Discard, buffered) }() // as protocols do
		<-r.Context().Done()
		ended <- r.Context().Err()
	}), "early\n")
	if line := <-got; line != "early\n" {
		t.Errorf("what came with the request is %q", line)
	}
	_ = conn.Close()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the session goes on")
	}
}

// TestLastWords has what was written last reach a client that is still sending.
func TestLastWords(t *testing.T) {
	s := newServer(t, time.Minute)
	conn := dial(t, offered(t, s, func(w http.ResponseWriter, _ *http.Request) {
		taken, buffered, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		_, _ = buffered.ReadByte()
		_, _ = io.WriteString(taken, "last words")
		_ = taken.Close()
	}), strings.Repeat("x", 1<<20))
	time.Sleep(50 * time.Millisecond)
	text, err := io.ReadAll(bufio.NewReader(conn))
	if string(text) != "last words" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
}

// TestCloseEndsSessions closes a server under a session and an idle connection.
func TestCloseEndsSessions(t *testing.T) {
	s, err := New(Config{Address: "127.0.0.1", TokenLifetime: time.Minute, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	running := make(chan struct{})
	conn := dial(t, offered(t, s, func(w http.ResponseWriter, r *http.Request) {
		taken, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer taken.Close()
		close(running)
		<-r.Context().Done()
	}), "")
	<-running
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadAll(conn); err != nil && !errors.Is(err, net.ErrClosed) && !strings.Contains(err.Error(), "reset") {
		t.Error(err)
	}
	if _, err := s.Offer("exec", hello); !errdefs.IsUnavailable(err) {
		t.Errorf("%v, want %v", err, errdefs.ErrUnavailable)
	}
}

func TestReachable(t *testing.T) {
	for address, want := range map[string]string{
		"127.0.0.1": "127.0.0.1:7", "0.0.0.0": "127.0.0.1:7", "::": "[::1]:7", "::1": "[::1]:7", "10.1.2.3": "10.1.2.3:7",
	} {
		if got := reachable(&net.TCPAddr{IP: net.ParseIP(address), Port: 7}); got != want {
			t.Errorf("%s: %s, want %s", address, got, want)
		}
	}
}

func TestBadCertificate(t *testing.T) {
	_, err := New(Config{Address: "127.0.0.1", CertFile: "/no/such/cert.pem", KeyFile: "/no/such/key.pem"})
	if err == nil || !strings.Contains(err.Error(), "/no/such/cert.pem") {
		t.Errorf("%v, want an error that names the file", err)
	}
}
