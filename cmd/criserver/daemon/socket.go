package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"time"
)

// socketMode lets root and one group use the socket.
const socketMode = 0o660

// listen serves a unix socket at path, for root and the group. What an ended daemon left there is replaced; a socket
// that answers is not. The socket appears with its owner and mode already set.
func listen(path, group string) (net.Listener, error) {
	gid, err := groupID(group)
	if err != nil {
		return nil, err
	}
	if err := checkStale(path); err != nil {
		return nil, err
	}
	temporary := filepath.Join(filepath.Dir(path), ".s"+strconv.Itoa(os.Getpid()))
	_ = os.Remove(temporary)
	listener, err := net.Listen("unix", temporary)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	err = errors.Join(os.Chmod(temporary, socketMode), os.Chown(temporary, 0, gid))
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		listener.Close()
		_ = os.Remove(temporary)
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return listener, nil
}

func checkStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("listen: %s exists and is no socket; remove it or set another path", path)
	}
	connection, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return nil
	}
	connection.Close()
	return fmt.Errorf("listen: another server answers at %s; stop it or set another path", path)
}

// groupID resolves a group's name or number; "" is root's.
func groupID(group string) (int, error) {
	if group == "" || group == "root" {
		return 0, nil
	}
	if gid, err := strconv.ParseUint(group, 10, 32); err == nil {
		return int(gid), nil
	}
	found, err := user.LookupGroup(group)
	if err != nil {
		return 0, fmt.Errorf("socket_group %q: no such group on this node", group)
	}
	gid, err := strconv.Atoi(found.Gid)
	if err != nil {
		return 0, fmt.Errorf("socket_group %q: group id %q: %w", group, found.Gid, err)
	}
	return gid, nil
}
