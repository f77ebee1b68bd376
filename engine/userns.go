package engine

import (
	"context"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
)

// probed is what was found out about the node once and for all.
type probed struct {
	mu    sync.Mutex
	known bool
	err   error
}

// UserNamespaces is nil when pods can have user namespaces on this node; else the error says what is missing. The shim is asked
// until it has answered once.
func (e *Engine) UserNamespaces(ctx context.Context) error {
	e.users.mu.Lock()
	known, err := e.users.known, e.users.err
	e.users.mu.Unlock()
	if known {
		return err
	}
	err = e.cfg.Shims.MapsOwners(ctx, e.cfg.RootDir)
	if err != nil {
		err = fmt.Errorf("user namespaces: %w", err)
	}
	if err == nil || errdefs.IsFailedPrecondition(err) {
		e.users.mu.Lock()
		e.users.known, e.users.err = true, err
		e.users.mu.Unlock()
	}
	return err
}
