package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/criserver/criserver/engine"
	"github.com/criserver/criserver/shim"
)

// The keeper starts a dead shim again within milliseconds. What does not answer for shimPatience is dead together with
// its keeper, and the daemon starts both.
const (
	shimPatience = 500 * time.Millisecond
	shimPoll     = 50 * time.Millisecond
)

// startShim sees to it that a shim answers, now and until the daemon is closed. The shim itself outlives the daemon.
func (d *Daemon) startShim(ctx context.Context) (engine.Shims, error) {
	cfg, err := d.shimConfig()
	if err != nil {
		return nil, err
	}
	if cfg.Log, err = shimLog(d.cfg.State); err != nil {
		return nil, err
	}
	if cfg.Log != nil {
		d.opened("log of the shim", cfg.Log.Close)
	}
	if err := shim.Ensure(ctx, cfg); err != nil {
		return nil, fmt.Errorf("start the shim: %w", err)
	}
	client := shim.Dial(d.shimSocket())
	d.opened("connection to the shim", client.Close)
	watching, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var watch sync.WaitGroup
	watch.Go(func() { d.watchShim(watching, cfg) })
	d.opened("watch of the shim", func() error { cancel(); watch.Wait(); return nil })
	return client, nil
}

func (d *Daemon) shimSocket() string { return filepath.Join(d.cfg.State, shim.SocketFile) }

// shimLog is where keeper and shim write what they cannot tell the daemon. Nil, the daemon's own standard error, is right
// only for the journal: anything else may be gone when the daemon is, and they are not.
func shimLog(state string) (*os.File, error) {
	if os.Getenv("JOURNAL_STREAM") != "" {
		return nil, nil
	}
	file, err := os.OpenFile(filepath.Join(state, "shim.log"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the log of the shim: %w", err)
	}
	return file, nil
}

// shimConfig finds the programs: those configured, else those beside this one.
func (d *Daemon) shimConfig() (shim.Config, error) {
	self, err := os.Executable()
	if err != nil {
		return shim.Config{}, fmt.Errorf("find the shim beside this program: %w", err)
	}
	cfg := shim.Config{StateDir: d.cfg.State, KeeperPath: d.cfg.Shim.Keeper, ShimPath: d.cfg.Shim.Shim}
	for _, program := range []struct {
		path      *string
		name, key string
	}{{&cfg.KeeperPath, "criserver-keeper", "shim.keeper"}, {&cfg.ShimPath, "criserver-shim", "shim.shim"}} {
		if *program.path == "" {
			*program.path = filepath.Join(filepath.Dir(self), program.name)
		}
		if _, err := os.Stat(*program.path); errors.Is(err, fs.ErrNotExist) {
			return shim.Config{}, fmt.Errorf("%s is missing; install it or set %s", *program.path, program.key)
		}
	}
	return cfg, nil
}

// watchShim holds a connection that says nothing: its end is the end of the shim.
func (d *Daemon) watchShim(ctx context.Context, cfg shim.Config) {
	path := d.shimSocket()
	dead := time.Time{}
	for ctx.Err() == nil {
		connection, err := new(net.Dialer).DialContext(ctx, "unix", path)
		if err == nil {
			dead = time.Time{}
			waitForEnd(ctx, connection)
			continue
		}
		if dead.IsZero() {
			dead = time.Now()
		}
		if time.Since(dead) >= shimPatience {
			d.log.Warn("the shim does not answer, starting the keeper", "socket", path, "error", err)
			if err := shim.Ensure(ctx, cfg); err != nil && ctx.Err() == nil {
				d.log.Error("the shim could not be started", "error", err)
			}
			dead = time.Now()
		}
		sleep(ctx, shimPoll)
	}
}

// waitForEnd returns when the other side has closed the connection, or ctx has ended.
func waitForEnd(ctx context.Context, connection net.Conn) {
	stop := context.AfterFunc(ctx, func() { connection.Close() })
	defer stop()
	defer connection.Close()
	_, _ = connection.Read(make([]byte, 1))
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
