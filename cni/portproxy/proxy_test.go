package portproxy

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func freePort(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func start(t *testing.T, protocol string, target netip.AddrPort) (*Proxy, netip.AddrPort) {
	t.Helper()
	at := freePort(t)
	p, err := Listen(protocol, at, target, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p, at
}

// Each side may end its direction while the other goes on.
func TestTCPHalfClose(t *testing.T) {
	server, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		c, err := server.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		data, _ := io.ReadAll(c) // until the client's end
		fmt.Fprintf(c, "%d bytes", len(data))
	}()
	_, at := start(t, "tcp", server.Addr().(*net.TCPAddr).AddrPort())
	c, err := net.Dial("tcp4", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	big := strings.Repeat("x", 3<<20)
	if _, err := io.WriteString(c, big); err != nil {
		t.Fatal(err)
	}
	_ = c.(*net.TCPConn).CloseWrite()
	answer, err := io.ReadAll(c)
	if want := fmt.Sprintf("%d bytes", len(big)); err != nil || string(answer) != want {
		t.Errorf("got %q, %v; want %q", answer, err, want)
	}
}

func TestTCPTargetThatDoesNotListen(t *testing.T) {
	_, at := start(t, "tcp", freePort(t))
	c, err := net.Dial("tcp4", at.String())
	if errors.Is(err, unix.ECONNRESET) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || os.IsTimeout(err) {
		t.Errorf("want a reset, got %d bytes, %v", n, err)
	}
}

// Close ends connections that are open, and returns.
func TestCloseBreaksConnections(t *testing.T) {
	server, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	p, at := start(t, "tcp", server.Addr().(*net.TCPAddr).AddrPort())
	c, err := net.Dial("tcp4", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := server.Accept(); err != nil {
		t.Fatal(err)
	}
	p.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("the connection is still open: %v", err)
	}
	if _, err := net.Dial("tcp4", at.String()); err == nil {
		t.Error("it still listens")
	}
}

func TestUDPKeepsClientsApart(t *testing.T) {
	server, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		buffer := make([]byte, 64)
		for {
			n, from, err := server.ReadFrom(buffer)
			if err != nil {
				return
			}
			_, _ = server.WriteTo([]byte("re: "+string(buffer[:n])), from)
		}
	}()
	_, at := start(t, "udp", server.LocalAddr().(*net.UDPAddr).AddrPort())
	var clients []net.Conn
	for range 5 {
		c, err := net.Dial("udp4", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		clients = append(clients, c)
	}
	for round := range 3 {
		for i, c := range clients {
			fmt.Fprintf(c, "%d %d", i, round)
		}
		for i, c := range clients {
			buffer := make([]byte, 64)
			n, err := c.Read(buffer)
			if want := fmt.Sprintf("re: %d %d", i, round); err != nil || string(buffer[:n]) != want {
				t.Errorf("client %d: %q, %v; want %q", i, buffer[:n], err, want)
			}
		}
	}
}

func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	at := l.Addr().(*net.TCPAddr).AddrPort()
	if _, err := Listen("tcp", at, at, slog.New(slog.DiscardHandler)); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), at.String()) {
		t.Error(err)
	}
	if got, want := Holder("tcp", at.Port()), fmt.Sprintf("process %d (", os.Getpid()); !strings.HasPrefix(got, want) {
		t.Errorf("the holder is %q, want %q", got, want)
	}
	if got := Holder("tcp", freePort(t).Port()); got != "" {
		t.Errorf("nobody holds it, but %q", got)
	}
	if _, err := Listen("sctp", at, at, slog.New(slog.DiscardHandler)); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
}
