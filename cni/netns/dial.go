package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// DialTCP connects to an address as seen from the namespace that is mounted at path. Only the socket is made in there, by a
// thread that ends with it; everything else is done from outside.
func DialTCP(ctx context.Context, path string, to netip.AddrPort) (net.Conn, error) {
	namespace, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	defer namespace.Close()
	family, address := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
	if to.Addr().Is4() {
		family, address = unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	fd, err := socketIn(int(namespace.Fd()), family)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "connection to "+to.String())
	defer file.Close() // the connection has a descriptor of its own
	if err := connect(ctx, file, address); err != nil {
		return nil, fmt.Errorf("connect to %s: %w", to, err)
	}
	return net.FileConn(file)
}

func socketIn(namespace, family int) (int, error) {
	type made struct {
		fd  int
		err error
	}
	done := make(chan made, 1)
	onDisposableThread(func() {
		if err := unix.Setns(namespace, unix.CLONE_NEWNET); err != nil {
			done <- made{-1, fmt.Errorf("enter a network namespace: %w", err)}
			return
		}
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			err = fmt.Errorf("make a socket in a network namespace: %w", err)
		}
		done <- made{fd, err}
	})
	m := <-done
	return m.fd, m.err
}

// connect connects a socket that does not block, and waits until that is decided or ctx ends.
func connect(ctx context.Context, socket *os.File, to unix.Sockaddr) error {
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = socket.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	var begun bool
	var result error
	waited := raw.Write(func(fd uintptr) bool {
		if !begun {
			begun = true
			result = unix.Connect(int(fd), to)
			return !errors.Is(result, unix.EINPROGRESS)
		}
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		switch {
		case err != nil:
			result = err
		case code != 0:
			result = unix.Errno(code)
		default:
			_, err := unix.Getpeername(int(fd))
			if errors.Is(err, unix.ENOTCONN) {
				return false // woken too early
			}
			result = err
		}
		return true
	})
	if ctx.Err() != nil && waited != nil {
		return ctx.Err()
	}
	return errors.Join(waited, result)
}
