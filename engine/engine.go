package engine

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"

	"github.com/criserver/criserver/engine/spec"
)

// Engine runs pods and containers. All methods may be called concurrently. Ids may be given as unique prefixes. Calls
// that change something go on when their context ends; a repeated call joins the one in flight and gets its result.
//
// Errors are of errdefs kinds: ErrInvalidArgument names the field, ErrNotFound the id, ErrFailedPrecondition the state
// and what to do first, ErrAlreadyExists what has the name, ErrUnavailable a shim that did not come back in time.
type Engine struct {
	cfg   Config
	log   *slog.Logger
	store store
	host  spec.Host
	ops   *operations
	probe criuProbe
	users probed

	// ctx is that of operations and loops. Close ends it.
	ctx    context.Context
	cancel context.CancelFunc
	loops  sync.WaitGroup
	resync chan struct{} // wakes follow to ask the shim for its list
	layers *layerMeter
	events hub
	// connected says that the shim answered when it was last asked by follow.
	connected atomic.Bool

	classes classes // not changed once open

	// mu guards what is below and everything reachable from it. It is never held across I/O.
	mu         sync.RWMutex
	pods       map[string]*pod
	containers map[string]*container
}

// pod is a pod in memory. Its fields are guarded by Engine.mu.
type pod struct {
	record podRecord
	rate   rate // of a cgroup that only this pod is in; it guards itself
	steps  steps
	form   form // dropped when record changes
	// announced says that those who listen may know of it.
	announced bool
	told      told // what plugins know of it
}

// container is a container in memory. Its fields are guarded by Engine.mu, but for the channels.
type container struct {
	record containerRecord
	// ended is closed when the container has exited or is gone.
	ended   chan struct{}
	isEnded bool
	// deadline is when a stop in flight kills; zero when none was asked for. shortened is signalled when it changes.
	deadline  time.Time
	shortened chan struct{}
	// announced says that those who listen may know of it.
	announced bool
	// released says that the shim has let go of it.
	released bool
	// interrupt ends a checkpoint in progress; nil when there is none.
	interrupt context.CancelCauseFunc
	// process is that of config.json, read when first needed by Exec, and not changed.
	process *specs.Process
	form    form // dropped when record changes
	// rate, layer and steps guard themselves.
	rate  rate
	layer layerState
	told  told // what plugins know of it
	steps steps
}

func newContainer(r containerRecord) *container {
	c := &container{record: r, ended: make(chan struct{}), shortened: make(chan struct{}, 1), layer: layerState{key: r.Container.ID},
		announced: r.State != creating}
	if r.State == exited {
		c.end()
	}
	return c
}

// end says that the container has exited or is gone. Engine.mu is held, or nobody else knows the container.
func (c *container) end() {
	if !c.isEnded {
		c.isEnded = true
		close(c.ended)
	}
}

const (
	idLength = 64
	// closeWait is how long Close lets operations in flight end by themselves.
	closeWait = 10 * time.Second
	// undoWait bounds a rollback, which goes on when the operation's context has ended.
	undoWait = 30 * time.Second
	// shimLimit and attachLimit bound a call of a shim or plugin that hangs, well beyond what either takes, so that no
	// operation is stuck for good.
	shimLimit   = 3 * time.Minute
	attachLimit = 5 * time.Minute
)

func newID() string {
	var b [idLength / 2]byte
	_, _ = rand.Read(b[:]) // it never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// Open reads the records below cfg.StateDir, matches them with what the shim runs, tears down what is left of another
// boot or half made, and follows what happens from then on. A shim that cannot be reached is waited for, and then
// followed when it comes.
func Open(ctx context.Context, cfg Config) (*Engine, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	e := &Engine{
		cfg: cfg, log: cfg.Log, store: store{pods: filepath.Join(cfg.StateDir, "pods")}, ops: newOperations(),
		resync: make(chan struct{}, 1), pods: map[string]*pod{}, containers: map[string]*container{},
	}
	if err := os.MkdirAll(cfg.StateDir, 0o711); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if err := makeDir(e.store.pods, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	var err error
	if e.host, err = hostFacts(cfg.UnsetSeccomp, cfg.AppArmorProfile); err != nil {
		return nil, err
	}
	if err := openSELinux(cfg.SELinux, &e.host); err != nil {
		return nil, err
	}
	if e.classes, err = openClasses(cfg.BlockIOConfig, cfg.RDTConfig, e.log); err != nil {
		return nil, err
	}
	e.host.DeviceOwnership = cfg.DeviceOwnership
	e.ctx, e.cancel = context.WithCancel(context.WithoutCancel(ctx))
	e.layers = newLayerMeter(e.ctx, cfg.Rootfs, e.log)
	if err := e.restore(ctx); err != nil {
		_ = e.Close()
		return nil, err
	}
	e.loops.Go(e.follow)
	e.loops.Go(e.tidy)
	e.loops.Go(e.finishUpdates)
	if err := e.sweep(ctx); err != nil {
		_ = e.Close()
		return nil, err
	}
	return e, nil
}

func (c *Config) complete() error {
	switch {
	case !filepath.IsAbs(c.StateDir) || !filepath.IsAbs(c.RootDir):
		return fmt.Errorf("state directory %q and root directory %q: must be absolute: %w", c.StateDir, c.RootDir, errdefs.ErrInvalidArgument)
	case c.Rootfs == nil || c.Network == nil || c.Shims == nil:
		return fmt.Errorf("an engine needs a rootfs, a network and shims: %w", errdefs.ErrInvalidArgument)
	}
	if c.UnsetSeccomp == "" {
		c.UnsetSeccomp = spec.Unconfined
	}
	if c.UnsetSeccomp != spec.Unconfined && c.UnsetSeccomp != spec.RuntimeDefault {
		return fmt.Errorf("seccomp profile for containers that name none is %q: must be %s or %s: %w",
			c.UnsetSeccomp, spec.Unconfined, spec.RuntimeDefault, errdefs.ErrInvalidArgument)
	}
	if c.SELinux == "" {
		c.SELinux = SELinuxAuto
	}
	if err := c.completeCgroups(); err != nil {
		return err
	}
	if c.DefaultSysctls == nil {
		c.DefaultSysctls = DefaultSysctls
	}
	c.completeHandlers()
	if c.Criu == "" {
		c.Criu = "criu"
	}
	if c.ShimWait == 0 {
		c.ShimWait = 5 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return nil
}

// Close stops following and waits for operations in flight, for 10 s at most before they are told to end. Workloads run on.
func (e *Engine) Close() error {
	e.ops.close()
	done := make(chan struct{})
	go func() {
		e.ops.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(closeWait):
		e.log.Warn("operations in flight are told to end, since they did not within the time to close", "wait", closeWait)
	}
	e.cancel()
	<-done
	e.loops.Wait()
	e.layers.close()
	return nil
}

// Ready says what keeps the engine from running pods: shim is the error of the shim, network that of the network; nil when ready.
func (e *Engine) Ready(ctx context.Context) (shim, network error) {
	_, shim = e.cfg.Shims.Info(ctx)
	return shim, e.cfg.Network.Ready(ctx)
}

// Drain stops every container with the grace, then every pod. It goes on past errors.
func (e *Engine) Drain(ctx context.Context, grace time.Duration) error {
	var g errgroup.Group
	g.SetLimit(16)
	var mu sync.Mutex
	var failed []error
	for _, p := range e.Pods(PodFilter{State: PodReady}) {
		g.Go(func() error {
			err := e.drainPod(ctx, p.Pod.ID, grace)
			mu.Lock()
			defer mu.Unlock()
			failed = append(failed, err)
			return nil
		})
	}
	_ = g.Wait()
	return errors.Join(failed...)
}

func (e *Engine) drainPod(ctx context.Context, id string, grace time.Duration) error {
	var g errgroup.Group
	for _, c := range e.Containers(ContainerFilter{PodID: id, State: ContainerRunning}) {
		g.Go(func() error { return e.StopContainer(ctx, c.Container.ID, grace) })
	}
	return errors.Join(g.Wait(), e.StopPod(ctx, id))
}

// shim calls fn until it answers something else than that the shim cannot be reached, for cfg.ShimWait at most: a dead
// shim is started again. What fn asks for must be repeatable.
func (e *Engine) shim(ctx context.Context, fn func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, shimLimit)
	defer cancel()
	giveUp := time.Now().Add(e.cfg.ShimWait)
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		err := fn(ctx)
		if !errdefs.IsUnavailable(err) || ctx.Err() != nil || time.Now().Add(pause).After(giveUp) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}

// undo is a context for what must be done although ctx may have ended.
func undo(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), undoWait)
}
