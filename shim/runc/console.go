package runc

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// SocketPattern is what the sockets are named, for whoever removes those that a kill has left.
const SocketPattern = "console-*.sock"

// consoleSocket is where a program sends the master side of a terminal (runc's docs/terminals.md).
type consoleSocket struct {
	path     string
	listener *net.UnixListener
}

// consoleLimit is how long a terminal is waited for after the program, which sent it, has ended.
const consoleLimit = time.Second

// listenConsole makes a socket in a directory that only root can enter, or whose name only root knows.
func listenConsole(dir string) (*consoleSocket, error) {
	// The path of a socket may have 107 bytes, fewer than a container's directory has.
	f, err := os.CreateTemp(dir, SocketPattern)
	if err != nil {
		return nil, err
	}
	path := f.Name()
	_ = f.Close()
	_ = os.Remove(path)
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("socket for a terminal: %w", err)
	}
	return &consoleSocket{path, listener}, os.Chmod(path, 0o600)
}

// close removes the socket.
func (s *consoleSocket) close() { _ = s.listener.Close() }

// receive takes the terminal that was sent.
func (s *consoleSocket) receive() (*os.File, error) {
	if err := s.listener.SetDeadline(time.Now().Add(consoleLimit)); err != nil {
		return nil, err
	}
	conn, err := s.listener.AcceptUnix()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(consoleLimit)); err != nil {
		return nil, err
	}
	name, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*4))
	_, n, _, _, err := conn.ReadMsgUnix(name, oob)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return nil, err
	}
	var fds []int
	for i := range messages {
		more, err := unix.ParseUnixRights(&messages[i])
		if err == nil {
			fds = append(fds, more...)
		}
	}
	if len(fds) != 1 {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
		return nil, fmt.Errorf("%d descriptors came, one is wanted", len(fds))
	}
	unix.CloseOnExec(fds[0])
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, errors.Join(err, unix.Close(fds[0]))
	}
	return os.NewFile(uintptr(fds[0]), "console"), nil
}
