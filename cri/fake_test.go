package cri

import (
	"context"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/cni"
	"github.com/criserver/criserver/engine"
	"github.com/criserver/criserver/image"
	"github.com/criserver/criserver/shim/api"
)

// front is a server on a real engine and a real image store; only what is behind the engine's seams is made up.
type front struct {
	runtime.RuntimeServiceClient
	images runtime.ImageServiceClient
	conn   *grpc.ClientConn
	server *Server
	shims  *fakeShims
	net    *fakeNetwork
}

func newFront(t testing.TB) *front {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	store, err := image.Open(t.Context(), image.Config{Root: t.TempDir(), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	f := &front{shims: newFakeShims(), net: &fakeNetwork{}}
	eng, err := engine.Open(t.Context(), engine.Config{
		StateDir: t.TempDir(), RootDir: t.TempDir(), Rootfs: &fakeRootfs{}, Network: f.net, Shims: f.shims, Log: log,
		ShimWait: 100 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { eng.Close() })
	s := New(Config{Engine: eng, Images: store, Version: "1.2.3", Log: log, Info: map[string]any{"config": map[string]int{"a": 1}}})
	f.server = s
	server := grpc.NewServer(s.Options()...)
	s.Register(server)
	path := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	f.conn, err = grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessage)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.conn.Close() })
	f.RuntimeServiceClient = runtime.NewRuntimeServiceClient(f.conn)
	f.images = runtime.NewImageServiceClient(f.conn)
	return f
}

type fakeRootfs struct{}

func (*fakeRootfs) Image(_ context.Context, ref string) (engine.Image, error) {
	if ref != "busybox" {
		return engine.Image{}, errdefs.ErrNotFound
	}
	return engine.Image{ID: "sha256:0011", Ref: "busybox@sha256:22", Config: ocispec.ImageConfig{Cmd: []string{"sh"}}}, nil
}

func (*fakeRootfs) ReadFile(context.Context, string, string, int64) ([]byte, error) {
	return nil, fs.ErrNotExist
}

func (*fakeRootfs) Prepare(context.Context, string, string) ([]mount.Mount, error) {
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=/l", "upperdir=/u", "workdir=/w"}}}, nil
}
func (*fakeRootfs) Scratch(context.Context, string, int, string, string) (mount.Mount, error) {
	return mount.Mount{Type: "bind", Source: "/l"}, nil
}

func (*fakeRootfs) Volume(context.Context, string, int, string, string) (mount.Mount, error) {
	return mount.Mount{Type: "bind", Source: "/l"}, nil
}

func (*fakeRootfs) Release(context.Context, string) error { return nil }
func (*fakeRootfs) Usage(context.Context, string) (uint64, uint64, error) {
	return 4096, 3, nil
}
func (*fakeRootfs) Keys(context.Context) ([]string, error) { return nil, nil }

type fakeNetwork struct {
	notReady error
	cidrs    []netip.Prefix
}

func (*fakeNetwork) Attach(context.Context, cni.Request) (cni.Result, error) {
	return cni.Result{Netns: "/proc/self/ns/net"}, nil
}
func (*fakeNetwork) Detach(context.Context, string) error       { return nil }
func (*fakeNetwork) Attached(context.Context) ([]string, error) { return nil, nil }

func (*fakeNetwork) Links(context.Context, string) ([]cni.LinkStats, error) {
	return []cni.LinkStats{{Name: "eth0", RxBytes: 10, TxBytes: 20}, {Name: "net1"}}, nil
}

func (n *fakeNetwork) SetPodCIDRs(cidrs []netip.Prefix) error {
	n.cidrs = cidrs
	return nil
}
func (n *fakeNetwork) Ready(context.Context) error { return n.notReady }

func (*fakeNetwork) Dial(context.Context, string, uint16) (net.Conn, error) {
	return nil, errdefs.ErrFailedPrecondition
}

// fakeShims runs nothing; a process ends when it is signalled.
type fakeShims struct {
	mu       sync.Mutex
	changed  chan struct{}
	sequence uint64
	procs    map[string]*api.Container
	exec     func(*api.ExecRequest, func(stdout, stderr []byte)) (*api.ExecResponse, error)
}

func newFakeShims() *fakeShims {
	return &fakeShims{changed: make(chan struct{}), procs: map[string]*api.Container{}}
}

func (s *fakeShims) MapsOwners(context.Context, string) error { return nil }

func (s *fakeShims) Info(context.Context) (*api.InfoResponse, error) {
	return &api.InfoResponse{Instance: "one"}, nil
}

func (s *fakeShims) StartPod(context.Context, *api.StartPodRequest) (*api.StartPodResponse, error) {
	return &api.StartPodResponse{}, nil
}
func (s *fakeShims) StopPod(context.Context, string) error { return nil }

func (s *fakeShims) Start(_ context.Context, r *api.StartRequest) (*api.StartResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &api.Container{Id: r.Id, PodId: r.PodId, Pid: 1 << 21, StartedAt: time.Now().UnixNano()}
	s.procs[r.Id] = p
	return &api.StartResponse{Pid: p.Pid, StartedAt: p.StartedAt}, nil
}

func (s *fakeShims) Signal(_ context.Context, r *api.SignalRequest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.procs[r.Id]; p != nil && p.Exit == nil {
		p.Exit = &api.Exit{Code: 128 + r.Signal, ExitedAt: time.Now().UnixNano()}
		s.sequence++
		close(s.changed)
		s.changed = make(chan struct{})
	}
	return nil
}

func (s *fakeShims) Delete(_ context.Context, r *api.DeleteRequest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.procs, r.Id)
	return nil
}

func (s *fakeShims) Exec(_ context.Context, r *api.ExecRequest, output func(stdout, stderr []byte)) (*api.ExecResponse, error) {
	return s.exec(r, output)
}
func (s *fakeShims) ExecStream(context.Context, *api.StreamOpen, api.Streams) (int, error) {
	return 0, nil
}

func (s *fakeShims) Attach(context.Context, *api.StreamOpen, api.Streams) error { return nil }

func (s *fakeShims) Update(context.Context, *api.UpdateRequest) error { return nil }

func (s *fakeShims) List(context.Context) (*api.ListResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &api.ListResponse{Instance: "one", Sequence: s.sequence, Containers: s.allLocked()}, nil
}

func (s *fakeShims) allLocked() []*api.Container {
	var all []*api.Container
	for _, p := range s.procs {
		all = append(all, &api.Container{Id: p.Id, PodId: p.PodId, Pid: p.Pid, StartedAt: p.StartedAt, Exit: p.Exit})
	}
	return all
}

func (s *fakeShims) Exits(ctx context.Context, after uint64) (*api.ExitsResponse, error) {
	for {
		s.mu.Lock()
		changed, sequence, all := s.changed, s.sequence, s.allLocked()
		s.mu.Unlock()
		if sequence > after {
			return &api.ExitsResponse{Sequence: sequence, Containers: all}, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
func (s *fakeShims) ReopenLog(context.Context, string) error { return nil }

func (s *fakeShims) Freeze(context.Context, []string) (func(), error) { return func() {}, nil }
func (s *fakeShims) Thaw(context.Context, []string) error             { return nil }
func (s *fakeShims) Checkpoint(context.Context, *api.CheckpointRequest) error {
	return errdefs.ErrNotImplemented
}

func (*fakeRootfs) Changes(context.Context, string, io.Writer) error      { return nil }
func (*fakeRootfs) Apply(context.Context, string, io.Reader) error        { return nil }
func (*fakeRootfs) Directories(context.Context, string) ([]string, error) { return nil, nil }
