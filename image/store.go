package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sync/semaphore"

	"github.com/criserver/criserver/image/registry"
	"github.com/criserver/criserver/snapshotter"
)

// Config says where a Store keeps its data and how it pulls.
type Config struct {
	// Root is the directory that outlives a reboot. The caller holds <root>/lock.
	Root string
	// Registry says how registries are reached.
	Registry registry.Config
	// NoProgress ends a pull that moves no byte for so long; 0 is one minute, negative is never.
	NoProgress time.Duration
	// Parallel is how many layers are fetched and unpacked at once, of all pulls together; 0 is 16.
	Parallel int
	// Ranges is how many requests a large blob is fetched by at once, where its registry serves ranges; 0 is 3, 1 is one stream.
	Ranges int
	// LayerGrace is how long complete layers and blobs of a pull that failed are kept for another try; 0 is 15 minutes.
	LayerGrace time.Duration
	// Verifiers are asked about each image that is pulled.
	Verifiers Verifiers
	// Limits bound what a layer may unpack to.
	Limits Limits
	// DiscardUnpacked has pulls from now on not keep the blobs of layers. Who needs one later, a push for instance, gets it
	// by its digest from where the image came from.
	DiscardUnpacked bool
	// Pinned are names or IDs ("sha256:...") of images that are reported as pinned.
	Pinned []string
	// Log gets what nobody is there to be told. Nil is slog.Default.
	Log *slog.Logger
}

const (
	defaultNoProgress = time.Minute
	defaultParallel   = 16
	defaultRanges     = 3
	lockTimeout       = 5 * time.Second // for the database's file lock
)

// Store is the image store. Its methods may be called concurrently. Errors are of errdefs kinds.
type Store struct {
	config     Config
	log        *slog.Logger
	libraryLog *log.Entry

	bolt      *bolt.DB
	db        *metadata.DB
	backend   *backend // below content: files without records
	content   content.Store
	images    images.Store
	leases    leases.Manager
	snapshots *snapshotter.Snapshotter

	index    *index
	underway underway
	keeper   *keeper
	pulls    *flights
	turns    *semaphore.Weighted
	gc       *collector

	closing sync.Once
	closed  error
}

var quieten sync.Once

// Open opens or makes the store below c.Root and removes what an earlier run left half-made. Close it when done.
func Open(ctx context.Context, c Config) (*Store, error) {
	if c.Root == "" {
		return nil, fmt.Errorf("image store: no root directory: %w", errdefs.ErrInvalidArgument)
	}
	if c.NoProgress == 0 {
		c.NoProgress = defaultNoProgress
	}
	if c.Parallel <= 0 {
		c.Parallel = defaultParallel
	}
	if c.Registry.Ranges == nil {
		c.Registry.Ranges = registry.NewRanges(cmp.Or(c.Ranges, defaultRanges))
	}
	if c.LayerGrace == 0 {
		c.LayerGrace = defaultLayerGrace
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	s := &Store{config: c, log: c.Log, libraryLog: libraryLog(c.Log), keeper: newKeeper(), turns: semaphore.NewWeighted(int64(c.Parallel))}
	// The libraries log where they have no context to take a logger from, too.
	quieten.Do(func() { log.L = s.libraryLog })
	ctx = s.storeContext(ctx)
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("image store %s: %w", c.Root, err), s.Close())
	}
	return s, nil
}

func (s *Store) open(ctx context.Context) (err error) {
	if s.index, err = newIndex(s.config.Pinned); err != nil {
		return err
	}
	if err := os.MkdirAll(s.config.Root, 0o700); err != nil {
		return err
	}
	files, err := local.NewLabeledStore(s.path("content"), nil)
	if err != nil {
		return err
	}
	s.backend = &backend{Store: files, root: s.path("content")}
	if err := s.backend.sweep(); err != nil {
		return err
	}
	s.bolt, err = bolt.Open(s.path("meta.db"), 0o600, &bolt.Options{Timeout: lockTimeout, NoFreelistSync: true, FreelistType: bolt.FreelistMapType})
	if err != nil {
		return fmt.Errorf("open meta.db: %w (does another daemon use this root?)", err)
	}
	s.db = metadata.NewDB(s.bolt, s.backend, nil)
	if err := s.db.Init(ctx); err != nil {
		return fmt.Errorf("open meta.db: %w", err)
	}
	s.content, s.images, s.leases = s.db.ContentStore(), metadata.NewImageStore(s.db), metadata.NewLeaseManager(s.db)
	options := []snapshotter.Option{snapshotter.WithLog(s.log), snapshotter.WithLayerGrace(s.config.LayerGrace), snapshotter.WithAsyncRemove()}
	if s.snapshots, err = snapshotter.New(s.path("snapshots"), options...); err != nil {
		return err
	}
	if err := s.backend.compare(s.path("snapshots")); err != nil {
		return err
	}
	if err := s.sweep(ctx); err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	if err := s.loadIndex(ctx); err != nil {
		return err
	}
	if s.config.Registry.Cache == nil {
		s.config.Registry.Cache = &registry.Cache{}
	}
	s.pulls = newFlights(ctx)
	s.gc = newCollector(ctx, s.collect, func(err error) { s.log.Warn("garbage stays", "err", err) })
	if err := s.endLeases(ctx); err != nil {
		return err
	}
	s.gc.kick()
	return nil
}

func (s *Store) path(name string) string { return filepath.Join(s.config.Root, name) }

// Close cancels the pulls that run, waits for them, and closes the databases. Closing twice is no error.
func (s *Store) Close() error {
	s.closing.Do(func() {
		if s.pulls != nil {
			s.pulls.close()
		}
		s.config.Registry.Cache.Close()
		if s.gc != nil {
			s.gc.close()
		}
		if s.snapshots != nil {
			s.closed = s.snapshots.Close()
		}
		if s.bolt != nil {
			s.closed = errors.Join(s.closed, s.bolt.Close())
		}
	})
	return s.closed
}

// List gives all images, sorted by ID.
func (s *Store) List(context.Context) ([]Image, error) { return s.index.list(), nil }

// Status resolves an ID, a name, or a unique prefix of an ID. errdefs.ErrNotFound when it is not here.
func (s *Store) Status(_ context.Context, ref string) (Image, error) {
	e, err := s.index.find(ref)
	if err != nil {
		return Image{}, err
	}
	return e.Image, nil
}

// Remove removes the image that ref means (as Status reads it) with all of its names, and its blobs and layers as far as
// nothing else needs them. One that is not here is no error, a pinned one is errdefs.ErrFailedPrecondition. Layers that
// containers use stay until those are gone.
func (s *Store) Remove(ctx context.Context, ref string) error {
	ctx = s.storeContext(ctx)
	removed, err := s.removeNames(ctx, ref)
	if err != nil || !removed {
		return err
	}
	// Whoever removes images to make room looks for it next.
	if err := s.gc.run(ctx); err != nil {
		return fmt.Errorf("image %s is removed, some of its files are not: %w", ref, err)
	}
	return nil
}

func (s *Store) removeNames(ctx context.Context, ref string) (bool, error) {
	s.index.changes.Lock()
	defer s.index.changes.Unlock()
	e, err := s.index.find(ref)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	names := s.index.names(e.ID)
	if err := s.refusePinned(append([]string{e.ID}, names...)); err != nil {
		return false, fmt.Errorf("remove image %s: %w", ref, err)
	}
	if err := s.deleteNames(ctx, names); err != nil {
		return false, fmt.Errorf("remove image %s: %w", ref, err)
	}
	s.forget(s.index.drop(names))
	return true, nil
}
