// Package snapshotter keeps the layers of images and the writable layers of containers on overlayfs. It implements
// containerd's snapshots.Snapshotter.
//
// Layers and snapshots are two things. A layer is a directory, known by its diffID (or by its chainID where its content
// depends on what is below) and shared by all snapshots that have it. A committed snapshot is a name for a layer on top of a
// parent snapshot. An active snapshot or a view is a key for a directory of its own on top of a parent.
//
// On disk (docs/on-disk.md), under the root:
//
//	layers/<n>/                    the files of a committed layer, or of one that is being written
//	active/<n>/{fs,work,record.json}  an active snapshot or a view
//	trash/<directory>-<n>          what is being removed
//	snapshots.db                   layers and committed snapshots
//
// The truth about committed layers and snapshots is snapshots.db, about active ones their record.json, which appears last
// when one is made and goes first when one is removed. A directory without a record is garbage; Cleanup removes it.
//
// What survives: a process may be killed at any instant. Committed snapshots are durable when Commit, Chain or
// Layer.Commit returns. Active snapshots are durable when Prepare returns, except volatile ones, whose making costs no
// sync: those last until the machine restarts, and are garbage after.
package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// LabelVolatile on an active snapshot, with any value, makes it one that lasts until the machine restarts: nothing is
// synced for it, neither by Prepare nor by its overlay (mount option volatile, Linux 5.10). Use Volatile.
const LabelVolatile = "criserver.io/volatile"

// Volatile makes Prepare set LabelVolatile.
func Volatile() snapshots.Opt { return snapshots.WithLabels(map[string]string{LabelVolatile: "true"}) }

// defaultLayerGrace is how long a committed layer that no snapshot uses is kept.
const defaultLayerGrace = 15 * time.Minute

// Snapshotter keeps layers and snapshots under one root directory, of which it is the only user. All methods may be
// called concurrently. Its index of all records is in memory, so that what only reads does no I/O.
type Snapshotter struct {
	root       string
	log        *slog.Logger
	async      bool
	grace      time.Duration
	options    []string // of every overlay mount
	db         *store
	syncer     *syncer
	cleaning   chan struct{} // of capacity one: one Cleanup at a time
	updating   sync.Mutex    // one Update at a time, so that none undoes another; nothing else takes it
	closeOnce  sync.Once
	closeError error

	mu    sync.Mutex // guards index; never held across I/O
	index index

	behind behind
}

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
)

// Option changes how a Snapshotter works.
type Option func(*Snapshotter)

// WithLog says where what nobody is there to be told goes. The default is slog.Default.
func WithLog(log *slog.Logger) Option { return func(s *Snapshotter) { s.log = log } }

// WithAsyncRemove makes Remove delete the files of active snapshots after it has returned. What is not deleted by Close is
// left to the next Cleanup.
func WithAsyncRemove() Option { return func(s *Snapshotter) { s.async = true } }

// WithLayerGrace says how long Cleanup keeps a committed layer that no snapshot uses, counted from its commit, for a pull
// that is tried again. The default is 15 minutes.
func WithLayerGrace(d time.Duration) Option { return func(s *Snapshotter) { s.grace = d } }

// New opens the snapshotter at root, making the directory when it is missing. It finishes what a kill interrupted, and
// logs each record that is broken; Problems lists them. Close it when done.
func New(root string, opts ...Option) (*Snapshotter, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	if strings.ContainsAny(root, ":,\\") {
		return nil, fmt.Errorf("open snapshots at %q: overlayfs takes no path with ':', ',' or '\\'; choose another root directory: %w",
			root, errdefs.ErrInvalidArgument)
	}
	s := &Snapshotter{
		root: root, log: slog.Default(), grace: defaultLayerGrace, options: overlayOptions(), cleaning: make(chan struct{}, 1),
	}
	for _, opt := range opts {
		opt(s)
	}
	if err := s.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("open snapshots at %s: %w", root, err), s.Close())
	}
	return s, nil
}

func (s *Snapshotter) open() (err error) {
	for _, dir := range []string{s.root, s.path(layersDir), s.path(activeDir), s.path(trashDir)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if s.syncer, err = newSyncer(s.root); err != nil {
		return err
	}
	if s.db, err = openStore(s.path("snapshots.db")); err != nil {
		return err
	}
	return s.load()
}

// Close lets go of the database. Holds on layers must have been released. Closing twice is no error.
func (s *Snapshotter) Close() error {
	s.closeOnce.Do(func() {
		s.behind.close()
		if s.db != nil {
			s.closeError = errors.Join(s.closeError, s.db.close())
		}
		if s.syncer != nil {
			s.closeError = errors.Join(s.closeError, s.syncer.close())
		}
	})
	return s.closeError
}

// The directories under the root.
const (
	layersDir = "layers"
	activeDir = "active"
	trashDir  = "trash"
)

func (s *Snapshotter) path(elements ...string) string {
	return filepath.Join(append([]string{s.root}, elements...)...)
}

func number(n uint64) string { return strconv.FormatUint(n, 10) }

func (s *Snapshotter) layerPath(n uint64) string  { return s.path(layersDir, number(n)) }
func (s *Snapshotter) activePath(n uint64) string { return s.path(activeDir, number(n)) }

// Stat answers the record of a snapshot. It does no I/O.
func (s *Snapshotter) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.index.get(key)
	if err != nil {
		return snapshots.Info{}, err
	}
	return n.info(), nil
}
