package image

import (
	"context"
	"log/slog"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"

	"github.com/criserver/criserver/image/registry"
)

// Config says where a Store keeps its data and how it pulls.
type Config struct {
	// Root is the directory that outlives a reboot. The caller holds <root>/lock.
	Root string
	// State is a directory that need not outlive a reboot, best on tmpfs.
	State string
	// Registry says how registries are reached.
	Registry registry.Config
	// NoProgress ends a pull that moves no byte for so long; 0 is one minute, negative is never.
	NoProgress time.Duration
	// Parallel is how many blobs are fetched and unpacked at once, of all pulls together; 0 is 16.
	Parallel int
	// Pinned are names or IDs of images that are reported as pinned.
	Pinned []string
	// Log gets what nobody is there to be told. Nil is slog.Default.
	Log *slog.Logger
}

// Store is the image store. Its methods may be called concurrently. Errors are of errdefs kinds.
type Store struct{}

// Open opens or makes the store below c.Root and removes what an earlier run left half-made. Close it when done.
func Open(ctx context.Context, c Config) (*Store, error) { return nil, errdefs.ErrNotImplemented }

// Close cancels the pulls that run, waits for them, and closes the databases.
func (s *Store) Close() error { return errdefs.ErrNotImplemented }

// Pull fetches an image by tag or digest, and answers its ID. A pull of the same name with the same credential and
// platform that is under way is joined; it goes on as long as one caller waits. When the last has gone nothing half-made
// is left. The error names the reference, every endpoint tried, and why each failed.
func (s *Store) Pull(ctx context.Context, ref string, o PullOptions) (string, error) {
	return "", errdefs.ErrNotImplemented
}

// List gives all images, sorted by ID.
func (s *Store) List(ctx context.Context) ([]Image, error) { return nil, errdefs.ErrNotImplemented }

// Status resolves an ID, a name, or a unique prefix of an ID. errdefs.ErrNotFound when it is not here.
func (s *Store) Status(ctx context.Context, ref string) (Image, error) {
	return Image{}, errdefs.ErrNotImplemented
}

// Remove removes the image that ref means (as Status reads it) with all of its names. One that is not here is no error.
// Layers that containers use stay until those are gone.
func (s *Store) Remove(ctx context.Context, ref string) error { return errdefs.ErrNotImplemented }

// FsInfo measures what images take.
func (s *Store) FsInfo(ctx context.Context) (FsInfo, error) {
	return FsInfo{}, errdefs.ErrNotImplemented
}

// ReadFile reads a regular file of the image, at most limit bytes, symbolic links followed beneath the root.
// fs.ErrNotExist when the image has none. /etc/passwd and /etc/group are kept in memory.
func (s *Store) ReadFile(ctx context.Context, imageID, path string, limit int64) ([]byte, error) {
	return nil, errdefs.ErrNotImplemented
}

// Prepare makes the writable layer named key on top of the image and says how to mount it. When it exists, it is
// answered as it is. It makes no fsync.
func (s *Store) Prepare(ctx context.Context, key, imageID string) ([]mount.Mount, error) {
	return nil, errdefs.ErrNotImplemented
}

// Release removes the writable layer. An unknown key is no error.
func (s *Store) Release(ctx context.Context, key string) error { return errdefs.ErrNotImplemented }

// Keys lists the writable layers that exist.
func (s *Store) Keys(ctx context.Context) ([]string, error) { return nil, errdefs.ErrNotImplemented }
