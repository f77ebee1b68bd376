package shim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
)

// startLimit is how long Ensure waits for a shim to serve, unless its context ends before.
const startLimit = 15 * time.Second

// Config says how shim and keeper are started.
type Config struct {
	StateDir   string   // absolute; it is made if it is missing
	KeeperPath string   // criserver-keeper
	ShimPath   string   // criserver-shim
	Log        *os.File // standard error of both; nil: the caller's. It should outlive the caller.
}

// Ensure starts a keeper, which starts a shim, when nothing answers at the socket, and waits until a shim does. The keeper
// runs in a session of its own and outlives the caller. Called by several at once, keeper.lock decides.
func Ensure(ctx context.Context, c Config) error {
	socket := filepath.Join(c.StateDir, SocketFile)
	if answers(ctx, socket) {
		return nil
	}
	if err := os.MkdirAll(c.StateDir, 0o711); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	ended, err := startKeeper(c)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	var failed error
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		if answers(ctx, socket) {
			return nil
		}
		select {
		case err := <-ended:
			// Without an error another keeper was faster.
			if err != nil {
				return fmt.Errorf("%s ended at once: %w: see its messages above or in the log: %w", c.KeeperPath, err, errdefs.ErrUnavailable)
			}
			ended = nil
		case <-time.After(pause):
		case <-ctx.Done():
			failed = context.Cause(ctx)
		}
		if failed != nil {
			return fmt.Errorf("no shim serves %s: %w: %w", socket, failed, errdefs.ErrUnavailable)
		}
	}
}

func answers(ctx context.Context, socket string) bool {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// startKeeper runs the keeper. The channel gets how it ended; its goroutine lives as long as the keeper, to reap it.
func startKeeper(c Config) (<-chan error, error) {
	keeper, err1 := filepath.Abs(c.KeeperPath)
	shim, err2 := filepath.Abs(c.ShimPath)
	state, err3 := filepath.Abs(c.StateDir)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	if _, err := os.Stat(shim); err != nil {
		return nil, fmt.Errorf("the shim's program is missing: %w: %w", err, errdefs.ErrUnavailable)
	}
	cmd := exec.Command(keeper, "--state", state, "--shim", shim, "--keeper", keeper)
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	if c.Log != nil {
		cmd.Stderr = c.Log
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the keeper: %w: %w", err, errdefs.ErrUnavailable)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	return ended, nil
}
