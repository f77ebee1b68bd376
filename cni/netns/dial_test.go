package netns_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/cni/internal/hosttest"
	"github.com/criserver/criserver/cni/netns"
)

// TestDialTCP connects to a listener that only the namespace has.
func TestDialTCP(t *testing.T) {
	hosttest.Need(t)
	dir, err := netns.OpenDir(filepath.Join(t.TempDir(), "netns"))
	if err != nil {
		t.Fatal(err)
	}
	ns, err := netns.New("")
	if err != nil {
		t.Fatal(err)
	}
	if err := dir.Pin(ns, "a"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dir.Unpin("a") })
	ns.Close()
	for name, host := range map[string]string{"IPv4": "127.0.0.1", "IPv6": "::1"} {
		t.Run(name, func(t *testing.T) {
			var listener net.Listener
			hosttest.In(t, dir.Path("a"), func() { listener, err = net.Listen("tcp", net.JoinHostPort(host, "0")) })
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			go func() {
				for {
					conn, err := listener.Accept()
					if err != nil {
						return
					}
					_, _ = io.Copy(conn, conn)
					_ = conn.Close()
				}
			}()
			to := listener.Addr().(*net.TCPAddr).AddrPort()
			if _, err := net.DialTimeout("tcp", to.String(), time.Second); err == nil {
				t.Fatal("the listener is in the test's own namespace")
			}
			conn, err := netns.DialTCP(t.Context(), dir.Path("a"), to)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			if _, err := conn.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if answer, err := io.ReadAll(conn); string(answer) != "hello" || err != nil {
				t.Errorf("answer %q, %v", answer, err)
			}
		})
	}
	t.Run("refused", func(t *testing.T) {
		_, err := netns.DialTCP(t.Context(), dir.Path("a"), netip.MustParseAddrPort("127.0.0.1:1"))
		if !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%v, want %v", err, unix.ECONNREFUSED)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if conn, err := netns.DialTCP(ctx, dir.Path("a"), netip.MustParseAddrPort("127.0.0.1:1")); err == nil {
			_ = conn.Close()
			t.Error("no error")
		}
	})
	t.Run("no namespace", func(t *testing.T) {
		if _, err := netns.DialTCP(t.Context(), dir.Path("b"), netip.MustParseAddrPort("127.0.0.1:1")); err == nil {
			t.Error("no error")
		}
	})
}
