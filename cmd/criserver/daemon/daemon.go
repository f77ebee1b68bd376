// Package daemon puts the parts together: it takes the directories, opens the image store, the network and the engine,
// sees to it that a shim runs, and serves CRI. It decides nothing itself.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/criserver/criserver/admin"
	"github.com/criserver/criserver/admin/api"
	"github.com/criserver/criserver/cmd/criserver/config"
	"github.com/criserver/criserver/cni"
	"github.com/criserver/criserver/cri"
	"github.com/criserver/criserver/engine"
	"github.com/criserver/criserver/image"
	"github.com/criserver/criserver/internal/idle"
)

// stopTimeout bounds how long calls in flight may take to end when the daemon stops.
const stopTimeout = 5 * time.Second

// Options are what is not in the configuration file.
type Options struct {
	// Version of the program, semantic.
	Version string
	// Log receives everything; nil is slog.Default.
	Log *slog.Logger
}

// Daemon is a daemon that serves.
type Daemon struct {
	cfg     config.Config
	log     *slog.Logger
	server  *grpc.Server
	served  chan error
	closers []closer // in the order in which they were opened
}

type closer struct {
	name  string
	close func() error
}

// Run serves until ctx ends, and then stops; workloads run on. It tells systemd when it is ready and when it stops.
func Run(ctx context.Context, cfg config.Config, o Options) error {
	d, err := Start(ctx, cfg, o)
	if err != nil {
		return err
	}
	d.notify(sd.SdNotifyReady)
	go idle.Trim(ctx, trimPeriod) // ends with ctx
	select {
	case <-ctx.Done():
	case err = <-d.served:
		err = fmt.Errorf("serve %s: %w", cfg.SocketPath(), err)
	}
	d.notify(sd.SdNotifyStopping)
	return errors.Join(err, d.Close())
}

// trimPeriod is how often is looked whether the daemon has nothing to do.
const trimPeriod = 10 * time.Second

func (d *Daemon) notify(state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		d.log.Warn("systemd was not told", "state", state, "error", err)
	}
}

// Start opens all parts and serves. When it fails nothing of the daemon is left running. ctx is for the start only.
func Start(ctx context.Context, cfg config.Config, o Options) (_ *Daemon, err error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	d := &Daemon{cfg: cfg, log: o.Log, served: make(chan error, 1)}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	if err := d.takeDirectories(); err != nil {
		return nil, err
	}
	images, err := openImages(ctx, cfg, d.log)
	if err != nil {
		return nil, err
	}
	d.opened("image store", images.Close)
	network, err := openNetwork(ctx, cfg, d.log)
	if err != nil {
		return nil, err
	}
	d.opened("network", network.Close)
	shims, err := d.startShim(ctx)
	if err != nil {
		return nil, err
	}
	eng, err := d.openEngine(ctx, images, network, shims, o.Version)
	if err != nil {
		return nil, err
	}
	if err := network.Reconcile(ctx, podsOf(eng)); err != nil {
		d.log.Warn("not all leftovers of the network could be removed", "error", err)
	}
	streams, err := d.openStreams()
	if err != nil {
		return nil, err
	}
	return d, d.serve(images, cri.New(cri.Config{
		Engine: eng, Images: images, Version: o.Version, Log: d.log, Info: map[string]any{"config": cfg},
		Streams: streams, StreamIdle: time.Duration(cfg.Streaming.IdleTimeout),
	}))
}

func (d *Daemon) opened(name string, close func() error) {
	d.closers = append(d.closers, closer{name, close})
}

// takeDirectories makes and locks root and state. Only root may look into root; the socket lies in state.
func (d *Daemon) takeDirectories() error {
	for dir, mode := range map[string]os.FileMode{d.cfg.Root: 0o700, d.cfg.State: 0o711, filepath.Dir(d.cfg.SocketPath()): 0o711} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return fmt.Errorf("make a directory of the daemon: %w", err)
		}
	}
	for _, dir := range []string{d.cfg.Root, d.cfg.State} {
		file, err := lock(dir)
		if err != nil {
			return err
		}
		d.opened("lock of "+dir, file.Close)
	}
	if !onTmpfs(d.cfg.State) {
		d.log.Warn("the state directory is not on tmpfs: records of an earlier boot must be recognised, and writing them costs more",
			"state", d.cfg.State)
	}
	return nil
}

func onTmpfs(dir string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(dir, &fs) == nil && fs.Type == unix.TMPFS_MAGIC
}

func (d *Daemon) openEngine(ctx context.Context, images *image.Store, network *cni.Network, shims engine.Shims, version string) (*engine.Engine, error) {
	// Opened before the engine and so closed after it: its operations in flight may need them.
	plugins, err := d.openPlugins(version)
	if err != nil {
		return nil, err
	}
	var cdiDirs []string
	if d.cfg.CDI.Enabled {
		cdiDirs = d.cfg.CDI.SpecDirs
	}
	settings, err := settings(d.cfg)
	if err != nil {
		return nil, err
	}
	systemdCgroup, cgroupParent, err := cgroupDriver(d.cfg.Workload)
	if err != nil {
		return nil, err
	}
	eng, err := engine.Open(ctx, engine.Config{
		Plugins:  plugins.engine(),
		StateDir: d.cfg.State, RootDir: d.cfg.Root,
		Settings: settings, DefaultSysctls: sysctls(d.cfg.Workload),
		BlockIOConfig: d.cfg.Workload.BlockIOConfig, RDTConfig: d.cfg.Workload.RDTConfig,
		Rootfs: rootfs{images}, Network: network, Shims: shims,
		SystemdCgroup: systemdCgroup, CgroupParent: cgroupParent, UnsetSeccomp: d.cfg.Workload.UnsetSeccomp,
		SELinux:         d.cfg.Workload.SELinux,
		AppArmorProfile: loadAppArmor(d.cfg.Workload.AppArmor, d.log),
		Handlers:        handlersOf(ctx, d.cfg, d.log),
		CDIDirs:         cdiDirs,
		Criu:            d.cfg.Checkpoint.Criu, RestoreImages: d.cfg.Checkpoint.RestoreImages,
		StrictMounts: d.cfg.Workload.StrictMounts, DeviceOwnership: d.cfg.Workload.DeviceOwnership,
		Log: d.log,
	})
	if err != nil {
		return nil, fmt.Errorf("open the engine: %w", err)
	}
	d.opened("engine", eng.Close)
	return eng, plugins.start(eng)
}

func podsOf(eng *engine.Engine) []string {
	var ids []string
	for _, pod := range eng.Pods(engine.PodFilter{}) {
		ids = append(ids, pod.Pod.ID)
	}
	return ids
}

func (d *Daemon) serve(images *image.Store, front *cri.Server) error {
	listener, err := listen(d.cfg.SocketPath(), d.cfg.SocketGroup)
	if err != nil {
		return err
	}
	d.opened("socket", func() error { return removeSocket(listener, d.cfg.SocketPath()) })
	d.server = grpc.NewServer(front.Options()...)
	front.Register(d.server)
	api.RegisterImagesServer(d.server, admin.NewImages(images))
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := d.server.Serve(listener); err != nil {
			d.served <- err
		}
	})
	d.opened("server", func() error { front.EndStreams(); d.stopServer(); serving.Wait(); return nil })
	d.log.Info("serving", "socket", d.cfg.SocketPath(), "root", d.cfg.Root, "state", d.cfg.State)
	return nil
}

func removeSocket(listener net.Listener, path string) error {
	if err := listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return os.Remove(path)
}

// stopServer lets calls in flight end for a while, then ends them: what they began goes on in the engine or is undone.
func (d *Daemon) stopServer() {
	timer := time.AfterFunc(stopTimeout, d.server.Stop)
	defer timer.Stop()
	d.server.GracefulStop()
}

// Close stops serving and closes all parts, the last one opened first. Workloads run on.
func (d *Daemon) Close() error {
	var all []error
	for len(d.closers) > 0 {
		last := d.closers[len(d.closers)-1]
		d.closers = d.closers[:len(d.closers)-1]
		if err := last.close(); err != nil {
			all = append(all, fmt.Errorf("close the %s: %w", last.name, err))
		}
	}
	return errors.Join(all...)
}
