// Package shimd is the shim: it starts and reaps workloads, logs their output and runs commands in them, for the whole
// node. Whatever it knows it can learn again from the keeper and the containers' directories, so it may be killed at any
// instant. The contract is shim/SHIM.md.
package shimd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/api"
	"github.com/criserver/criserver/shim/keeper"
	"github.com/criserver/criserver/shim/native"
)

// Config says what a shim serves.
type Config struct {
	State   string // directory of shim.sock
	Keeper  string // path of criserver-keeper, started when the keeper is gone
	Shim    string // path of criserver-shim, passed on to a new keeper
	Version string
	Log     *slog.Logger
}

// SocketFile is the name of the shim's socket in the state directory; LockFile is locked by the shim that serves it.
const (
	SocketFile = "shim.sock"
	LockFile   = "shim.lock"
)

// ErrServed means that another shim serves the state directory.
var ErrServed = errors.New("another shim serves the state directory")

// Server is the state of a shim. Its methods are those of the wire protocol and may be called concurrently.
type Server struct {
	config   Config
	note     *slog.Logger
	runtime  runtime
	link     *link
	watch    *watcher
	pool     *slotPool
	execs    *execTable
	orphans  *orphans
	instance string

	mu         sync.Mutex // guards what follows and the states of containers and pods; nothing blocks while it is held
	containers map[string]*container
	pods       map[string]*pod
	sequence   uint64        // of the last exit; starts at the time of day, so that it grows across instances too
	news       chan struct{} // closed and replaced at every exit
}

// Serve runs a shim whose link to the keeper is the descriptor keeper.LinkFD, until ctx ends. It returns nil only when it
// knows no container and no pod: then the keeper may end too. With ErrServed another shim is there.
func Serve(ctx context.Context, c Config) error {
	lock, err := takeLock(ctx, filepath.Join(c.State, LockFile))
	if err != nil {
		return err
	}
	defer lock.Close()
	sock, err := linkFile(keeper.LinkFD)
	if err != nil {
		return err
	}
	rt, err := native.New()
	if err != nil {
		return fmt.Errorf("runtime: %w", err)
	}
	defer rt.Close()
	s, err := newServer(ctx, c, nativeRuntime{rt}, sock, os.Getppid())
	if err != nil {
		return err
	}
	defer s.close()
	removeSockets(c.State)
	if err := os.MkdirAll(filepath.Join(c.State, mountsDir), 0o711); err != nil {
		return err
	}
	if err := s.adopt(ctx); err != nil {
		return err
	}
	return s.serve(ctx)
}

func newServer(ctx context.Context, c Config, rt runtime, sock *os.File, keeperPID int) (*Server, error) {
	execs, err := openExecTable(c.State)
	if err != nil {
		return nil, err
	}
	watch, err := newWatcher()
	if err != nil {
		execs.close()
		return nil, err
	}
	now := time.Now().UnixNano()
	s := &Server{
		config:     c,
		note:       c.Log,
		runtime:    rt,
		watch:      watch,
		execs:      execs,
		instance:   strconv.Itoa(os.Getpid()) + "-" + strconv.FormatInt(now, 36),
		containers: map[string]*container{},
		pods:       map[string]*pod{},
		sequence:   uint64(now),
		news:       make(chan struct{}),
	}
	s.link = newLink(sock, keeperPID, func() (*os.File, int, error) { return spawnKeeper(c, watch) }, c.Log)
	s.pool = &slotPool{hold: s.link.put}
	s.orphans = &orphans{ctx: ctx, known: s.awaits, soon: make(chan struct{}, 1), every: 30 * time.Second, after: 5 * time.Second}
	go watch.run()
	go s.link.run(ctx)
	return s, nil
}

// close lets go of what newServer has opened, but for the link. Nothing may be at work any more.
func (s *Server) close() {
	s.watch.close()
	s.execs.close()
}

// serve answers calls until ctx ends and nothing is known any more.
func (s *Server) serve(ctx context.Context) error {
	server, err := ttrpc.NewServer(ttrpc.WithServerHandshaker(rootOnly{}), ttrpc.WithUnaryServerInterceptor(translate))
	if err != nil {
		return err
	}
	api.RegisterShimService(server, s)
	l, err := listen(filepath.Join(s.config.State, SocketFile))
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	err = server.Serve(context.WithoutCancel(ctx), l)
	if ctx.Err() == nil {
		return fmt.Errorf("serve %s: %w", SocketFile, err)
	}
	if n := s.known(); n > 0 {
		return fmt.Errorf("asked to stop while %d containers and pods are known: they run on", n)
	}
	return nil
}

func (s *Server) known() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.containers) + len(s.pods)
}

// takeLock waits a little for a predecessor that is ending.
func takeLock(ctx context.Context, path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(time.Second); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if err != unix.EWOULDBLOCK {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			_ = f.Close()
			return nil, ErrServed
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// listen makes the socket beside its place and renames it there, so that there is always one to connect to. The caller
// holds the lock, so what is there is a dead shim's.
func listen(path string) (net.Listener, error) {
	temporary := path + "." + strconv.Itoa(os.Getpid())
	_ = os.Remove(temporary)
	old := unix.Umask(0o177) // no other thread makes files yet
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temporary, Net: "unix"})
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("listen (a socket's path may have 107 bytes): %w", err)
	}
	l.SetUnlinkOnClose(false)
	if err := os.Rename(temporary, path); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// rootOnly refuses peers that are not root, whatever the mode of the socket has become.
type rootOnly struct{}

func (rootOnly) Handshake(_ context.Context, conn net.Conn) (net.Conn, any, error) {
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	var peer *unix.Ucred
	var inner error
	err = raw.Control(func(fd uintptr) { peer, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, inner); err != nil {
		return nil, nil, err
	}
	if peer.Uid != 0 {
		return nil, nil, fmt.Errorf("uid %d may not use the shim: %w", peer.Uid, errdefs.ErrPermissionDenied)
	}
	return conn, nil, nil
}

// Info says which shim answers.
func (s *Server) Info(ctx context.Context, r *api.InfoRequest) (*api.InfoResponse, error) {
	info := &api.InfoResponse{
		Instance:  s.instance,
		Pid:       int32(os.Getpid()),
		KeeperPid: s.link.pid.Load(),
		Version:   s.config.Version,
	}
	if r.Layers != "" {
		if err := s.runtime.mapsOwners(ctx, r.Layers); err != nil {
			info.NoUserNamespaces = err.Error()
		} else {
			info.UserNamespaces = true
		}
	}
	return info, nil
}
