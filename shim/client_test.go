package shim_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/criserver/criserver/shim"
	"github.com/criserver/criserver/shim/api"
)

// scripted is a shim that answers as it is told and counts.
type scripted struct {
	api.ShimService
	answer func() error
	calls  atomic.Int32
}

func (s *scripted) Info(context.Context, *api.InfoRequest) (*api.InfoResponse, error) {
	s.calls.Add(1)
	return &api.InfoResponse{Instance: "scripted"}, s.answer()
}

func (s *scripted) Exits(ctx context.Context, _ *api.ExitsRequest) (*api.ExitsResponse, error) {
	s.calls.Add(1)
	<-ctx.Done()
	s.calls.Add(1)
	return nil, ctx.Err()
}

func (s *scripted) Exec(ctx context.Context, _ *api.ExecRequest, to api.Shim_ExecServer) error {
	s.calls.Add(1)
	_ = to.Send(&api.ExecResponse{Stdout: []byte("began")})
	<-ctx.Done()
	s.calls.Add(1)
	return ctx.Err()
}

// tracker remembers the connections of a listener.
type tracker struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

func (l *tracker) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.conns = append(l.conns, conn)
	}
	return conn, err
}

func serve(t *testing.T, path string, s *scripted) (stop func()) {
	t.Helper()
	_ = os.Remove(path)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	api.RegisterShimService(server, s)
	tracked := &tracker{Listener: l}
	done := make(chan struct{})
	go func() {
		_ = server.Serve(context.Background(), tracked)
		close(done)
	}()
	stop = func() { // as a kill: calls in progress break
		_ = server.Close()
		<-done
		tracked.mu.Lock()
		defer tracked.mu.Unlock()
		for _, conn := range tracked.conns {
			_ = conn.Close()
		}
	}
	t.Cleanup(stop)
	return stop
}

func fine() error { return nil }

func TestClientReconnects(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	c := shim.Dial(path)
	defer c.Close()
	s := &scripted{answer: fine}
	stop := serve(t, path, s)
	for range 5 {
		if i, err := c.Info(t.Context()); err != nil || i.Instance != "scripted" {
			t.Fatal(i, err)
		}
		stop()
		again := make(chan func())
		go func() {
			time.Sleep(50 * time.Millisecond)
			again <- serve(t, path, s)
		}()
		if _, err := c.Info(t.Context()); err != nil {
			t.Fatal(err)
		}
		stop = <-again
	}
}

func TestClientUnavailable(t *testing.T) {
	c := shim.Dial(filepath.Join(t.TempDir(), "nobody"))
	defer c.Close()
	began := time.Now()
	_, err := c.Info(t.Context())
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("%v", err)
	}
	if d := time.Since(began); d > 6*time.Second {
		t.Errorf("it took %v", d)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Info(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	_ = c.Close()
	if _, err := c.Info(t.Context()); !errdefs.IsUnavailable(err) {
		t.Errorf("closed: %v", err)
	}
}

func TestClientErrorKinds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s := &scripted{}
	serve(t, path, s)
	c := shim.Dial(path)
	defer c.Close()
	for code, kind := range map[codes.Code]func(error) bool{
		codes.NotFound: errdefs.IsNotFound, codes.InvalidArgument: errdefs.IsInvalidArgument, codes.FailedPrecondition: errdefs.IsFailedPrecondition,
		codes.AlreadyExists: errdefs.IsAlreadyExists, codes.Unimplemented: errdefs.IsNotImplemented, codes.Internal: errdefs.IsInternal,
		codes.Unavailable: errdefs.IsUnavailable, codes.PermissionDenied: errdefs.IsPermissionDenied,
		codes.DeadlineExceeded: func(err error) bool { return errors.Is(err, context.DeadlineExceeded) },
	} {
		s.answer = func() error { return status.Error(code, "what was wrong") }
		s.calls.Store(0)
		_, err := c.Info(t.Context())
		if err == nil || err.Error() != "what was wrong" || !kind(err) {
			t.Errorf("%v: %v", code, err)
		}
		if s.calls.Load() != 1 {
			t.Errorf("%v: an answer was asked for %d times", code, s.calls.Load())
		}
	}
}

func TestClientEndsLongCallsOnTheOtherSide(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	c := shim.Dial(path)
	defer c.Close()
	s := &scripted{answer: fine}
	serve(t, path, s)
	for name, call := range map[string]func(context.Context) error{
		"Exits": func(ctx context.Context) error { _, err := c.Exits(ctx, 0); return err },
		"Exec": func(ctx context.Context) error {
			_, err := c.Exec(ctx, &api.ExecRequest{}, func([]byte, []byte) {})
			return err
		},
	} {
		s.calls.Store(0)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if err := call(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
		for deadline := time.Now().Add(2 * time.Second); s.calls.Load() != 2; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s goes on without its caller", name)
			}
		}
	}
}

func TestExecIsNotRepeated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	c := shim.Dial(path)
	defer c.Close()
	s := &scripted{answer: fine}
	stop := serve(t, path, s)
	began, again := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(again)
		<-began
		stop()
		serve(t, path, s)
	}()
	var out string
	_, err := c.Exec(t.Context(), &api.ExecRequest{}, func(b, _ []byte) {
		out += string(b)
		close(began)
	})
	<-again // the directory goes when the test ends
	if !errdefs.IsUnavailable(err) || out != "began" {
		t.Errorf("%v, %q", err, out)
	}
}

func TestEnsureSaysWhatIsMissing(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "criserver-shim")
	err := shim.Ensure(t.Context(), shim.Config{StateDir: dir, ShimPath: missing, KeeperPath: filepath.Join(programs, "criserver-keeper")})
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), missing) {
		t.Errorf("%v", err)
	}
	broken := filepath.Join(dir, "broken")
	if err := os.WriteFile(broken, []byte("#!/bin/false\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	err = shim.Ensure(ctx, shim.Config{StateDir: dir, ShimPath: filepath.Join(programs, "criserver-shim"), KeeperPath: broken})
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "broken") {
		t.Errorf("%v", err)
	}
}

func TestEnsureAtTheSameTime(t *testing.T) {
	n := newNode(t)
	before := n.info()
	n.kill(before.KeeperPid)
	n.kill(before.Pid)
	errs := make(chan error)
	c := shim.Config{StateDir: n.state, ShimPath: filepath.Join(programs, "criserver-shim"), KeeperPath: filepath.Join(programs, "criserver-keeper")}
	for range 5 {
		go func() { errs <- shim.Ensure(n.context(), c) }()
	}
	for range 5 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	after := n.info()
	list, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	var found []string
	for _, path := range list {
		b, _ := os.ReadFile(path)
		if s := string(b); strings.Contains(s, n.state) && strings.Contains(s, "criserver-") && !strings.Contains(s, fmt.Sprint(os.Getpid())) {
			found = append(found, strings.ReplaceAll(s, "\x00", " "))
		}
	}
	if len(found) != 2 {
		t.Errorf("a keeper and a shim are wanted, %v: %q", after, found)
	}
}
