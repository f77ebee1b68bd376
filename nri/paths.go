package nri

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// checkPaths sees to it that only root can put plugins in place: who is a plugin is root on this node. The socket of
// another server is left alone.
func (p *Plugins) checkPaths() error {
	for _, dir := range []string{p.cfg.PluginPath, p.cfg.PluginConfigPath} {
		if err := rootOnly(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("nri: %w", err)
		}
	}
	if p.cfg.DisableConnections {
		return nil
	}
	dir := filepath.Dir(p.cfg.SocketPath)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("nri: directory of the socket: %w", err)
	}
	if err := rootOnly(dir); err != nil {
		return fmt.Errorf("nri: directory of the socket: %w", err)
	}
	info, err := os.Lstat(p.cfg.SocketPath)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("nri: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("nri: %s exists and is no socket; remove it or set nri.socket_path: %w", p.cfg.SocketPath, errdefs.ErrFailedPrecondition)
	}
	connection, err := net.DialTimeout("unix", p.cfg.SocketPath, time.Second)
	if err != nil {
		return nil // nobody listens, and it is replaced
	}
	connection.Close()
	return fmt.Errorf("nri: another server answers at %s; stop it, set nri.socket_path, or turn NRI off by nri.enabled: %w",
		p.cfg.SocketPath, errdefs.ErrFailedPrecondition)
}

// rootOnly refuses a directory that somebody besides root may write to.
func rootOnly(dir string) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return &fs.PathError{Op: "stat", Path: dir, Err: err}
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("%s is not a directory: %w", dir, errdefs.ErrFailedPrecondition)
	case st.Uid != 0 || st.Mode&0o022 != 0:
		return fmt.Errorf("%s is writable by others than root (owner %d, mode %04o): chown root and chmod go-w it: %w",
			dir, st.Uid, st.Mode&0o7777, errdefs.ErrFailedPrecondition)
	}
	return nil
}
