package engine

import (
	"context"
	"io"
	"net"
	"net/netip"

	"github.com/containerd/containerd/v2/core/mount"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/cni"
	"github.com/criserver/criserver/shim/api"
)

// Image is an image as a container needs it.
type Image struct {
	ID     string // "sha256:..." of the configuration
	Ref    string // repo@sha256:..., or the ID when it was never pulled by a name
	Config ocispec.ImageConfig
	// Checkpoint says that it is a container's checkpoint; its layers are that, and not a root filesystem.
	Checkpoint bool
}

// Rootfs is where containers' root filesystems come from: the image store. Keys are the engine's (a container's id).
// Every method may be called concurrently and repeated.
type Rootfs interface {
	// Image resolves an ID, a reference or a unique prefix of an ID. errdefs.ErrNotFound when it is not here.
	Image(ctx context.Context, ref string) (Image, error)
	// ReadFile reads a regular file of the image, at most limit bytes, symbolic links followed beneath the root.
	// fs.ErrNotExist when the image has none.
	ReadFile(ctx context.Context, imageID, path string, limit int64) ([]byte, error)
	// Prepare makes the writable layer named key and says how to mount it. When it exists, it is answered as it is.
	Prepare(ctx context.Context, key, imageID string) ([]mount.Mount, error)
	// Volume says how to mount a path of an image read-only, "" for all of it. The image stays until Release of the key; number tells
	// several volumes of a key apart. ErrInvalidArgument when the image has no such path. Repeated it answers as before.
	Volume(ctx context.Context, key string, number int, imageID, path string) (mount.Mount, error)
	// Scratch says how to mount a writable copy of a directory of an image, which need not be there. It lasts until Release of the key;
	// number is one that Volume does not have. Repeated it answers as before.
	Scratch(ctx context.Context, key string, number int, imageID, path string) (mount.Mount, error)
	// Release removes the writable layer and lets go of the volumes. An unknown key is no error.
	Release(ctx context.Context, key string) error
	// Usage measures the writable layer: the bytes and inodes that it takes on disk. It may take as long as the layer is large.
	// errdefs.ErrNotFound when there is none.
	Usage(ctx context.Context, key string) (bytes, inodes uint64, err error)
	// Changes writes what the writable layer holds as the tar of a layer. Nobody may write to it meanwhile.
	Changes(ctx context.Context, key string, w io.Writer) error
	// Apply unpacks the tar of a layer into the writable layer, which nobody has used yet.
	Apply(ctx context.Context, key string, r io.Reader) error
	// Directories are those of an image's layers, uppermost first.
	Directories(ctx context.Context, imageID string) ([]string, error)
	// Keys lists those for which there are writable layers or volumes.
	Keys(ctx context.Context) ([]string, error)
}

// Network gives pods their network namespaces and addresses. *cni.Network is the one; tests have another that fails on order.
type Network interface {
	// Attach makes the namespace and attaches it. Repeated for a pod that is attached it answers as before.
	// When it fails, Detach cleans up.
	Attach(ctx context.Context, r cni.Request) (cni.Result, error)
	// Detach lets go of all that Attach made. It does not wait for plugins that fail: those are tried again behind.
	// An unknown pod is no error.
	Detach(ctx context.Context, podID string) error
	// Attached lists the pods that have a record here, for reconciliation.
	Attached(ctx context.Context) ([]string, error)
	// Links reads the counters of the pod's interfaces but loopback, that with its addresses first. errdefs.ErrNotFound for a
	// pod that is not attached.
	Links(ctx context.Context, podID string) ([]cni.LinkStats, error)
	// SetPodCIDRs changes where the addresses of pods attached from now on come from. It is remembered.
	SetPodCIDRs(cidrs []netip.Prefix) error
	// Dial connects to a TCP port on the loopback addresses of an attached pod. errdefs.ErrNotFound when the pod is not
	// attached, errdefs.ErrFailedPrecondition when nothing listens.
	Dial(ctx context.Context, podID string, port uint16) (net.Conn, error)
	// Ready is nil when pods can be attached; else the error says what is missing.
	Ready(ctx context.Context) error
}

// Shims runs processes. The methods are those of the wire protocol (shim/api); *shim.Client is the one implementation
// that leaves the process. Errors are of errdefs kinds; errdefs.ErrUnavailable means that the shim could not be reached.
type Shims interface {
	Info(ctx context.Context) (*api.InfoResponse, error)
	// MapsOwners is nil when containers can have user namespaces, with layers in the directory; ErrFailedPrecondition says why not.
	MapsOwners(ctx context.Context, layers string) error
	StartPod(ctx context.Context, r *api.StartPodRequest) (*api.StartPodResponse, error)
	StopPod(ctx context.Context, podID string) error
	Start(ctx context.Context, r *api.StartRequest) (*api.StartResponse, error)
	Signal(ctx context.Context, r *api.SignalRequest) error
	Delete(ctx context.Context, r *api.DeleteRequest) error
	// Exec calls output, never concurrently, with each piece of output; the answer carries the exit code and no output.
	Exec(ctx context.Context, r *api.ExecRequest, output func(stdout, stderr []byte)) (*api.ExecResponse, error)
	// ExecStream and Attach pass on streams, see api.Streams; they are never repeated.
	ExecStream(ctx context.Context, r *api.StreamOpen, s api.Streams) (exitCode int, err error)
	Attach(ctx context.Context, r *api.StreamOpen, s api.Streams) error
	Update(ctx context.Context, r *api.UpdateRequest) error
	List(ctx context.Context) (*api.ListResponse, error)
	// Exits blocks until there is news after the sequence, the context ends, or the connection breaks (ErrUnavailable).
	Exits(ctx context.Context, after uint64) (*api.ExitsResponse, error)
	ReopenLog(ctx context.Context, id string) error
	// Freeze stops the processes of containers until Thaw, until release is called, or until this process dies.
	Freeze(ctx context.Context, ids []string) (release func(), err error)
	Thaw(ctx context.Context, ids []string) error
	// Checkpoint writes the state of a frozen container's processes.
	Checkpoint(ctx context.Context, r *api.CheckpointRequest) error
}
