// Package netns makes network namespaces and pins them by bind mounts.
//
// A namespace is made by a thread that ends with it, and so is a socket in one (DialTCP): no thread of this process is ever
// left in one. Nothing else enters one: what is configured in a namespace is configured through a netlink socket that was
// opened in it when it was made.
package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	vishnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// NS is a network namespace held by a descriptor. Its loopback interface is up. It is not safe for concurrent use.
// The owner closes it; a namespace that nothing else holds is then gone.
type NS struct {
	file   *os.File
	handle *netlink.Handle
}

// New makes a namespace in which loopback is up, router advertisements are not listened to (they could come from
// another pod), and IPv6 addresses are used without duplicate address detection.
//
// The owner is written on its loopback interface, for Dir.Owner.
func New(owner string) (*NS, error) {
	type made struct {
		ns  *NS
		err error
	}
	done := make(chan made, 1)
	onDisposableThread(func() {
		ns, err := newOnThisThread(owner)
		done <- made{ns, err}
	})
	m := <-done
	return m.ns, m.err
}

// Open takes hold of a namespace that somebody else made, by the path of its mount. It is for a process that ends soon: to
// open the netlink socket a thread of it enters the namespace for a moment.
func Open(path string) (*NS, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(file.Fd()), &fs); err != nil || fs.Type != unix.NSFS_MAGIC && fs.Type != unix.PROC_SUPER_MAGIC {
		file.Close()
		return nil, fmt.Errorf("%s is not a network namespace: %w", path, errdefs.ErrInvalidArgument)
	}
	handle, err := netlink.NewHandleAt(vishnetns.NsHandle(file.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("open a netlink socket in %s: %w", path, err)
	}
	return &NS{file: file, handle: handle}, nil
}

// Take takes hold of a namespace that somebody else made for us, as one that New made. The thread that enters it ends.
func Take(path, owner string) (*NS, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	if kind, err := unix.IoctlRetInt(int(file.Fd()), unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		file.Close()
		return nil, fmt.Errorf("%s is not a network namespace: %w", path, errdefs.ErrInvalidArgument)
	}
	ns := &NS{file: file}
	done := make(chan error, 1)
	onDisposableThread(func() {
		err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			ns.handle, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		}
		if err == nil {
			err = ns.prepare(owner)
		}
		done <- err
	})
	if err := <-done; err != nil {
		ns.Close()
		return nil, fmt.Errorf("network namespace %s: %w", path, err)
	}
	return ns, nil
}

// onDisposableThread runs f on a thread that ends with it, never on the main thread, which the Go runtime cannot end.
func onDisposableThread(f func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// While the main thread is held here, a goroutine gets another one.
			finished := make(chan struct{})
			onDisposableThread(func() { defer close(finished); f() })
			<-finished
			runtime.UnlockOSThread()
			return
		}
		f()
		// Returning while locked ends the thread.
	}()
}

func newOnThisThread(owner string) (*NS, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("make a network namespace: unshare: %w", err)
	}
	file, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("make a network namespace: open a netlink socket in it: %w", err)
	}
	ns := &NS{file: file, handle: handle}
	if err := ns.prepare(owner); err != nil {
		ns.Close()
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	return ns, nil
}

// prepare must run on a thread in the namespace: /proc/sys/net is that of the thread that opens it.
func (n *NS) prepare(owner string) error {
	for name, value := range map[string]string{"accept_dad": "0", "dad_transmits": "0", "accept_ra": "0"} {
		err := os.WriteFile("/proc/sys/net/ipv6/conf/default/"+name, []byte(value), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // without IPv6 there is nothing to set
			return err
		}
	}
	// Loopback is always the first interface of a namespace.
	lo := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1, Name: "lo"}}
	if err := n.handle.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	if owner == "" {
		return nil
	}
	if err := n.handle.LinkSetAlias(lo, owner); err != nil {
		return fmt.Errorf("name the owner on lo: %w", err)
	}
	return nil
}

// Handle is a netlink handle whose socket is in the namespace. It is closed with the NS.
func (n *NS) Handle() *netlink.Handle { return n.handle }

// FD is a descriptor of the namespace, valid until Close.
func (n *NS) FD() int { return int(n.file.Fd()) }

// Close drops the descriptor and the netlink socket. It may be called twice.
func (n *NS) Close() {
	if n.handle != nil {
		n.handle.Close()
		n.handle = nil
	}
	_ = n.file.Close()
}

// Dir is a directory in which namespaces are pinned.
type Dir struct{ path string }

// OpenDir makes the directory when it is missing.
func OpenDir(path string) (Dir, error) {
	if !filepath.IsAbs(path) {
		return Dir{}, fmt.Errorf("directory for network namespaces %q is not an absolute path: %w", path, errdefs.ErrInvalidArgument)
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return Dir{}, fmt.Errorf("directory for network namespaces: %w", err)
	}
	return Dir{path: path}, nil
}

// Path is where the namespace of the name is, or would be, pinned. The name must be a plain file name.
func (d Dir) Path(name string) string { return filepath.Join(d.path, name) }

// Pin bind-mounts the namespace at Path(name), in place of what was pinned there before.
func (d Dir) Pin(n *NS, name string) error {
	path := d.Path(name)
	create := func() (*os.File, error) {
		return os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY|unix.O_NOFOLLOW, 0o444)
	}
	target, err := create()
	if errors.Is(err, os.ErrExist) {
		if err = d.Unpin(name); err == nil {
			target, err = create()
		}
	}
	if err != nil {
		return fmt.Errorf("pin a network namespace: %w", err)
	}
	defer target.Close()
	err = unix.Mount("/proc/self/fd/"+strconv.Itoa(n.FD()), path, "", unix.MS_BIND, "")
	runtime.KeepAlive(n)
	if err != nil {
		_ = os.Remove(path)
		return fmt.Errorf("pin a network namespace: bind-mount it at %s: %w", path, err)
	}
	return nil
}

// Unpin takes the mount and its file away. What is not there is no error.
func (d Dir) Unpin(name string) error {
	path := d.Path(name)
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break // not a mount point, or not there
		}
		if err != nil {
			return fmt.Errorf("unpin a network namespace: unmount %s: %w", path, err)
		}
	}
	if err := unix.Unlink(path); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unpin a network namespace: remove %s: %w", path, err)
	}
	return nil
}

// Pinned says whether a namespace is mounted at Path(name).
func (d Dir) Pinned(name string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(d.Path(name), &fs) == nil && fs.Type == unix.NSFS_MAGIC
}

// Names lists the files of the directory.
func (d Dir) Names() ([]string, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, fmt.Errorf("directory for network namespaces: %w", err)
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

// Owner is the owner that the pinned namespace was made for, "" when that cannot be known. It is asked from outside, by
// the namespace's number (IFLA_TARGET_NETNSID, Linux 4.20), so no thread enters.
func (d Dir) Owner(name string) string {
	file, err := os.Open(d.Path(name))
	if err != nil {
		return ""
	}
	defer file.Close()
	id, err := namespaceID(int(file.Fd()))
	if err != nil {
		return ""
	}
	request := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	message := nl.NewIfInfomsg(unix.AF_UNSPEC)
	message.Index = 1
	request.AddData(message)
	request.AddData(nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(uint32(id))))
	answers, err := request.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil || len(answers) != 1 {
		return ""
	}
	link, err := netlink.LinkDeserialize(nil, answers[0])
	if err != nil {
		return ""
	}
	return link.Attrs().Alias
}
