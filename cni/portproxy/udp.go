package portproxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// udpIdle is how long a client is remembered after the last datagram in either direction, as conntrack does for
	// streams (nf_conntrack_udp_timeout_stream).
	udpIdle = 120 * time.Second
	// udpClients bounds the sockets that one port can make us open; further clients are dropped until others are idle.
	udpClients  = 4096
	maxDatagram = 65535
)

// listenUDP has the kernel tell which address a datagram was sent to, so that the answer comes from there.
func (p *Proxy) listenUDP(ctx context.Context, listen netip.AddrPort) error {
	config := net.ListenConfig{}
	pc, err := config.ListenPacket(ctx, network("udp", listen.Addr()), listen.String())
	if err != nil {
		return listenError("udp", listen, err)
	}
	conn := pc.(*net.UDPConn)
	if err := receivePacketInfo(conn, listen.Addr().Is4()); err != nil {
		_ = conn.Close()
		return listenError("udp", listen, err)
	}
	p.closer = conn
	p.tasks.Go(func() { p.serveUDP(ctx, conn) })
	return nil
}

func receivePacketInfo(conn *net.UDPConn, v4 bool) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	level, option := unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO
	if v4 {
		level, option = unix.IPPROTO_IP, unix.IP_PKTINFO
	}
	var setErr error
	err = raw.Control(func(fd uintptr) { setErr = unix.SetsockoptInt(int(fd), level, option, 1) })
	return errors.Join(err, setErr)
}

// udpKey is a client and the address it sent to.
type udpKey struct {
	client netip.AddrPort
	local  netip.Addr
}

func (p *Proxy) serveUDP(ctx context.Context, conn *net.UDPConn) {
	sessions := make(map[udpKey]*net.UDPConn) // touched by this goroutine only; ended ones are reported through closed
	closed := make(chan udpKey, 64)
	buffer, control := make([]byte, maxDatagram), make([]byte, 256)
	for {
		n, cn, _, client, err := conn.ReadMsgUDPAddrPort(buffer, control)
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return
		}
		reap(sessions, closed)
		if err != nil {
			continue // an ICMP error of an earlier answer
		}
		key := udpKey{client: client, local: packetDestination(control[:cn])}
		up, ok := sessions[key]
		if !ok {
			if up = p.newSession(ctx, conn, key, len(sessions), closed); up == nil {
				continue
			}
			sessions[key] = up
		}
		_ = up.SetReadDeadline(time.Now().Add(udpIdle))
		_, _ = up.Write(buffer[:n]) // lost, as datagrams are
	}
}

func reap(sessions map[udpKey]*net.UDPConn, closed <-chan udpKey) {
	for {
		select {
		case key := <-closed:
			delete(sessions, key)
		default:
			return
		}
	}
}

func (p *Proxy) newSession(ctx context.Context, conn *net.UDPConn, key udpKey, count int, closed chan<- udpKey) *net.UDPConn {
	if count >= udpClients {
		p.log.Warn("host port: too many UDP clients; a datagram is dropped", "listen", conn.LocalAddr(), "clients", count)
		return nil
	}
	up, err := net.DialUDP(network("udp", p.target.Addr()), nil, net.UDPAddrFromAddrPort(p.target))
	if err != nil {
		p.log.Debug("host port: reach the pod", "target", p.target, "err", err)
		return nil
	}
	if !p.track(up) {
		return nil
	}
	p.tasks.Go(func() {
		p.answer(conn, up, key)
		p.untrack(up)
		select {
		case closed <- key:
		case <-ctx.Done():
		}
	})
	return up
}

// answer carries datagrams back until the client has been idle or the proxy is closed.
func (p *Proxy) answer(conn, up *net.UDPConn, key udpKey) {
	buffer := make([]byte, maxDatagram)
	control := sourceControl(key.local)
	for {
		n, err := up.Read(buffer)
		if errors.Is(err, unix.ECONNREFUSED) {
			continue // the pod does not listen (yet)
		}
		if err != nil {
			return
		}
		_ = up.SetReadDeadline(time.Now().Add(udpIdle))
		_, _, _ = conn.WriteMsgUDPAddrPort(buffer[:n], control, key.client)
	}
}

// packetDestination is the local address in the control messages of a datagram, not valid when there is none.
func packetDestination(control []byte) netip.Addr {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return netip.Addr{}
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			a, _ := netip.AddrFromSlice(m.Data[8:12]) // ipi_addr
			return a
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			a, _ := netip.AddrFromSlice(m.Data[:16])
			return a
		}
	}
	return netip.Addr{}
}

// sourceControl makes a datagram leave from the address.
func sourceControl(local netip.Addr) []byte {
	switch {
	case local.Is4():
		return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: local.As4()})
	case local.Is6():
		return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: local.As16()})
	}
	return nil
}
