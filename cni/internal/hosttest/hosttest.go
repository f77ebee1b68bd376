// Package hosttest gives tests a host of their own: the test binary runs itself again in a fresh network namespace and
// a fresh mount namespace, so that the machine's own network is not touched and nothing is left.
package hosttest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const marker = "CRISERVER_TEST_HOST"

// The addresses of the host and of the namespace that plays the outside.
const (
	Host4, Outside4 = "198.18.0.1", "198.18.0.2"
	Host6, Outside6 = "fd00:99::1", "fd00:99::2"
)

var atExit []func()

// AtExit has f run when Main ends.
func AtExit(f func()) { atExit = append(atExit, f) }

func exit(code int) {
	for _, f := range atExit {
		f()
	}
	os.Exit(code)
}

// Main is what TestMain calls. Without root it runs the tests where they are; those that need the host skip.
func Main(m *testing.M) {
	if os.Getenv(marker) != "" || os.Getuid() != 0 {
		exit(inside(m))
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), marker+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	err := cmd.Run()
	var failed *exec.ExitError
	switch {
	case errors.As(err, &failed):
		exit(failed.ExitCode())
	case err != nil:
		fmt.Fprintln(os.Stderr, "run the tests in namespaces of their own:", err)
		exit(1)
	}
	exit(0)
}

func inside(m *testing.M) int {
	if os.Getenv(marker) == "" {
		return m.Run()
	}
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, "prepare the host of the tests:", err)
		return 1
	}
	return m.Run()
}

func prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// Need skips a test that was not given a host of its own.
func Need(t testing.TB) {
	t.Helper()
	if os.Getenv(marker) == "" {
		t.Skip("needs root, to make network and mount namespaces")
	}
}

// In runs f on a thread in the namespace of the path; the thread is not used again.
func In(t testing.TB, path string, f func()) {
	t.Helper()
	err := onOwnThread(func() error {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return err
		}
		f()
		return nil
	})
	if err != nil {
		t.Fatalf("enter %s: %v", path, err)
	}
}

// onOwnThread runs f on a thread that ends with it, which the main thread cannot.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- onOwnThread(f)
			runtime.UnlockOSThread()
			return
		}
		done <- f()
	}()
	return <-done
}

// Outside connects the host to a namespace, whose path is returned, by addresses above; it has no route to pods. It
// goes with the test.
func Outside(t testing.TB) string {
	t.Helper()
	path := t.TempDir() + "/outside"
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	}))
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "uplink"}, PeerName: "uplink", PeerNamespace: netlink.NsFd(fd)}))
	t.Cleanup(func() {
		if l, err := netlink.LinkByName("uplink"); err == nil {
			_ = netlink.LinkDel(l)
		}
	})
	address(t, "uplink", Host4+"/24", Host6+"/64")
	In(t, path, func() { address(t, "lo"); address(t, "uplink", Outside4+"/24", Outside6+"/64") })
	return path
}

func address(t testing.TB, name string, addrs ...string) {
	t.Helper()
	l, err := netlink.LinkByName(name)
	must(t, err)
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		must(t, err)
		if addr.IP.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD
		}
		must(t, netlink.AddrAdd(l, addr))
	}
	must(t, netlink.LinkSetUp(l))
}

// Serve answers, in the namespace of the path ("" is the host), each connection or datagram with the server's name and
// the client's address as it sees it, separated by a space.
func Serve(t testing.TB, path, network, addr, name string) {
	t.Helper()
	listen := func() {
		if strings.HasPrefix(network, "udp") {
			c, err := net.ListenPacket(network, addr)
			must(t, err)
			t.Cleanup(func() { c.Close() })
			go serveUDP(c, name)
			return
		}
		l, err := net.Listen(network, addr)
		must(t, err)
		t.Cleanup(func() { l.Close() })
		go serveTCP(l, name)
	}
	if path == "" {
		listen()
		return
	}
	In(t, path, listen)
}

func serveTCP(l net.Listener, name string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
		fmt.Fprintf(c, "%s %s", name, host)
		c.Close()
	}
}

func serveUDP(c net.PacketConn, name string) {
	buffer := make([]byte, 1500)
	for {
		_, from, err := c.ReadFrom(buffer)
		if err != nil {
			return
		}
		host, _, _ := net.SplitHostPort(from.String())
		_, _ = c.WriteTo([]byte(name+" "+host), from)
	}
}

// Ask connects from the namespace of the path ("" is the host) and returns what Serve answered.
func Ask(t testing.TB, path, network, addr string) (answer string, err error) {
	t.Helper()
	ask := func() {
		var c net.Conn
		if c, err = net.DialTimeout(network, addr, 2*time.Second); err != nil {
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		if strings.HasPrefix(network, "udp") {
			_, _ = c.Write([]byte("?"))
		}
		buffer := make([]byte, 1500)
		var n int
		n, err = c.Read(buffer)
		answer = string(buffer[:n])
	}
	if path == "" {
		ask()
	} else {
		In(t, path, ask)
	}
	return answer, err
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
