package oci

import (
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// sendTerminal passes the master side of a terminal on by a unix socket, and closes it.
func sendTerminal(path string, master *os.File) error {
	defer master.Close()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return fmt.Errorf("--console-socket: %w", err)
	}
	defer conn.Close()
	fd := int(master.Fd()) // and makes it blocking, as whoever gets it expects
	if _, _, err := conn.WriteMsgUnix([]byte("/dev/ptmx"), unix.UnixRights(fd), nil); err != nil {
		return fmt.Errorf("--console-socket %s: %w", path, err)
	}
	return nil
}

// proxy connects our standard streams with a process's terminal. A nil proxy has none.
type proxy struct {
	master *os.File
	before *unix.Termios // of our own terminal, to be restored
	done   chan struct{} // closed when nothing more comes from the process
}

func newProxy(console *os.File) (*proxy, error) {
	if console == nil {
		return nil, nil
	}
	fd, err := unix.FcntlInt(console.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	_ = console.Close()
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil { // for Go's poller, so that a read can be ended
		return nil, err
	}
	p := &proxy{master: os.NewFile(uintptr(fd), "terminal"), done: make(chan struct{})}
	if before, err := unix.IoctlGetTermios(0, unix.TCGETS); err == nil {
		raw := *before
		raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
		raw.Oflag &^= unix.OPOST
		raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
		raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
		raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
		if unix.IoctlSetTermios(0, unix.TCSETS, &raw) == nil {
			p.before = before
		}
	}
	p.resize()
	go func() {
		defer close(p.done)
		_, _ = io.Copy(os.Stdout, p.master) // until the last process has closed its side: EIO
	}()
	go func() { _, _ = io.Copy(p.master, os.Stdin) }() // ends with the program
	return p, nil
}

// resize gives the process's terminal the size of ours.
func (p *proxy) resize() {
	if p == nil {
		return
	}
	if size, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ); err == nil {
		_ = unix.IoctlSetWinsize(int(p.master.Fd()), unix.TIOCSWINSZ, size)
		_ = unix.SetNonblock(int(p.master.Fd()), true) // Fd has made it blocking
	}
}

// drain waits for what the process printed last.
func (p *proxy) drain() {
	if p == nil {
		return
	}
	select {
	case <-p.done:
	case <-time.After(500 * time.Millisecond): // somebody has inherited the terminal
	}
}

func (p *proxy) close() {
	if p == nil {
		return
	}
	if p.before != nil {
		_ = unix.IoctlSetTermios(0, unix.TCSETS, p.before)
	}
	_ = p.master.Close()
}
