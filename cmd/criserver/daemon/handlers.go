package daemon

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/criserver/criserver/cmd/criserver/config"
	"github.com/criserver/criserver/engine"
	"github.com/criserver/criserver/shim/runc"
)

// handlersOf makes handlers of the programs of the configuration. One that cannot be run keeps the node from nothing but
// the pods that name it, which are told why.
func handlersOf(ctx context.Context, cfg config.Config, log *slog.Logger) map[string]engine.Handler {
	var mu sync.Mutex
	all := map[string]engine.Handler{}
	var probes sync.WaitGroup
	for name, runtime := range cfg.Runtimes {
		if name == config.NativeRuntime {
			continue
		}
		probes.Go(func() {
			h := engine.Handler{Path: runtime.Path, Root: runtime.Root, Args: runtime.Args, SystemdCgroup: cfg.Workload.CgroupDriver == "systemd"}
			if h.Root == "" {
				h.Root = filepath.Join(cfg.State, "runtimes", name)
			}
			features, err := runc.Probe(ctx, h.Path)
			if err == nil {
				err = os.MkdirAll(h.Root, 0o711)
			}
			if err != nil {
				log.Warn("a runtime of the configuration cannot be run; pods that name it are refused", "runtime", name, "error", err)
				h.Problem = err
			}
			h.RecursiveReadonly, h.UserNamespaces, h.MappedMounts = features.RecursiveReadonly, features.UserNamespaces, features.MappedMounts
			mu.Lock()
			defer mu.Unlock()
			all[name] = h
		})
	}
	probes.Wait()
	return all
}
