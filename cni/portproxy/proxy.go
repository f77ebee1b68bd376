// Package portproxy carries connections to a port of the host to a pod, for clients that packet rewriting does not
// reach: those that connect to a loopback address. It listens in the network namespace of the process.
package portproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

const (
	dialTimeout = 10 * time.Second
	retryAccept = 50 * time.Millisecond
)

// Proxy is one listening socket. It also keeps others from taking the port.
type Proxy struct {
	target netip.AddrPort
	log    *slog.Logger
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	closer io.Closer

	mu    sync.Mutex
	conns map[net.Conn]struct{} // nil once closed
}

// Listen starts to serve protocol "tcp" or "udp" on the address; connections go to target. An unspecified address is
// every address of its family. Close it. A port that something else listens on is errdefs.ErrFailedPrecondition.
func Listen(protocol string, listen, target netip.AddrPort, log *slog.Logger) (*Proxy, error) {
	ctx, cancel := context.WithCancel(context.Background())
	p := &Proxy{target: target, log: log, cancel: cancel, conns: make(map[net.Conn]struct{})}
	var err error
	switch protocol {
	case "tcp":
		err = p.listenTCP(ctx, listen)
	case "udp":
		err = p.listenUDP(ctx, listen)
	default:
		err = fmt.Errorf("protocol %q cannot be proxied: %w", protocol, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		cancel()
		return nil, err
	}
	return p, nil
}

// Close stops listening, breaks the connections and waits for their goroutines.
func (p *Proxy) Close() {
	p.cancel()
	_ = p.closer.Close()
	p.mu.Lock()
	conns := p.conns
	p.conns = nil
	p.mu.Unlock()
	for c := range conns {
		_ = c.Close()
	}
	p.tasks.Wait()
}

// track makes Close close the connection. False when the proxy is closed already.
func (p *Proxy) track(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conns == nil {
		_ = c.Close()
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (p *Proxy) untrack(c net.Conn) {
	_ = c.Close()
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
}

func network(protocol string, a netip.Addr) string {
	if a.Is4() {
		return protocol + "4"
	}
	return protocol + "6"
}

func (p *Proxy) listenTCP(ctx context.Context, listen netip.AddrPort) error {
	l, err := net.ListenTCP(network("tcp", listen.Addr()), net.TCPAddrFromAddrPort(listen))
	if err != nil {
		return listenError("tcp", listen, err)
	}
	p.closer = l
	p.tasks.Go(func() { p.acceptLoop(ctx, l) })
	return nil
}

func (p *Proxy) acceptLoop(ctx context.Context, l *net.TCPListener) {
	for {
		c, err := l.AcceptTCP()
		switch {
		case err == nil:
			p.tasks.Go(func() { p.serveTCP(ctx, c) })
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return
		default: // out of descriptors or memory: it passes
			p.log.Warn("host port: accept", "listen", l.Addr(), "err", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(retryAccept):
			}
		}
	}
}

func (p *Proxy) serveTCP(ctx context.Context, client *net.TCPConn) {
	if !p.track(client) {
		return
	}
	defer p.untrack(client)
	dialer := net.Dialer{Timeout: dialTimeout}
	c, err := dialer.DialContext(ctx, network("tcp", p.target.Addr()), p.target.String())
	if err != nil {
		// The client sees a reset, as it would from a port that nothing listens on.
		_ = client.SetLinger(0)
		p.log.Debug("host port: connect to the pod", "target", p.target, "err", err)
		return
	}
	if !p.track(c) {
		return
	}
	defer p.untrack(c)
	server := c.(*net.TCPConn)
	done := make(chan struct{})
	go func() { defer close(done); copyHalf(server, client) }()
	copyHalf(client, server)
	<-done
}

// copyHalf copies one direction and passes on its end. After an error the other direction is of no use either.
func copyHalf(dst, src *net.TCPConn) {
	if _, err := io.Copy(dst, src); err != nil {
		_ = dst.Close()
		_ = src.Close()
		return
	}
	_ = dst.CloseWrite()
}

func listenError(protocol string, listen netip.AddrPort, err error) error {
	return fmt.Errorf("host port %s %s: %w: %w", protocol, listen, err, errdefs.ErrFailedPrecondition)
}
