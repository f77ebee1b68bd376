package engine

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/criserver/criserver/engine/spec"
	"github.com/criserver/criserver/shim/api"
)

// NativeHandler is the name of our own runtime, which is always there. A pod that names no handler gets it.
const NativeHandler = "native"

// Handler is what a RuntimeClass can name: our own runtime, or a program with runc's command line.
type Handler struct {
	Path          string   // of the program; "": our own runtime
	Root          string   // where the program keeps its state
	SystemdCgroup bool     // have the program make cgroups by way of systemd
	Args          []string // further arguments of the program, before the command

	// RecursiveReadonly: mounts can be read-only with all that is mounted below them.
	RecursiveReadonly bool
	// UserNamespaces: pods can have user namespaces, if the node can.
	UserNamespaces bool
	// MappedMounts: the owners of mounts can be mapped.
	MappedMounts bool
	// Problem is why the handler cannot be used; nil when it can.
	Problem error
}

// Handlers lists the handlers by their names. The map is shared and must not be changed.
func (e *Engine) Handlers() map[string]Handler { return e.cfg.Handlers }

// completeHandlers adds what needs no configuration.
func (c *Config) completeHandlers() {
	c.Handlers = maps.Clone(c.Handlers)
	if c.Handlers == nil {
		c.Handlers = map[string]Handler{}
	}
	c.Handlers[NativeHandler] = Handler{RecursiveReadonly: true, UserNamespaces: true, MappedMounts: true}
}

// handler finds the handler of a pod by its name, which may be empty.
func (e *Engine) handler(name string) (Handler, error) {
	if name == "" {
		name = NativeHandler
	}
	h, ok := e.cfg.Handlers[name]
	switch {
	case !ok && strings.HasPrefix(name, "io.containerd."):
		return h, fmt.Errorf("runtime handler %q is a shim of containerd, which speaks a protocol of containerd's own; this node runs programs with runc's command line. It has %s: %w",
			name, e.handlerNames(), errdefs.ErrInvalidArgument)
	case !ok:
		return h, fmt.Errorf("runtime handler %q is not configured on this node, which has %s: %w", name, e.handlerNames(), errdefs.ErrInvalidArgument)
	case h.Problem != nil:
		return h, fmt.Errorf("runtime handler %q cannot be used: %w: %w", name, h.Problem, errdefs.ErrFailedPrecondition)
	}
	return h, nil
}

// CheckHandler says whether pods can name this handler. Errors name those that they can.
func (e *Engine) CheckHandler(name string) error {
	_, err := e.handler(name)
	return err
}

func (e *Engine) handlerNames() string {
	names := slices.Sorted(maps.Keys(e.cfg.Handlers))
	for i := range names {
		names[i] = fmt.Sprintf("%q", names[i])
	}
	return strings.Join(names, ", ")
}

// runtimeOf is what the shim is told of a pod's handler: nothing for our own runtime.
func (e *Engine) runtimeOf(name string) (*api.Runtime, error) {
	h, err := e.handler(name)
	if err != nil || h.Path == "" {
		return nil, err
	}
	return &api.Runtime{Path: h.Path, Root: h.Root, SystemdCgroup: h.SystemdCgroup, Args: h.Args}, nil
}

// checkMappedMounts refuses mounts with mappings that the program of a handler would pass over.
func (e *Engine) checkMappedMounts(handler string, mounts []spec.Mount) error {
	for _, m := range mounts {
		if len(m.UIDs)+len(m.GIDs) == 0 {
			continue
		}
		if h, err := e.handler(handler); err != nil || !h.MappedMounts {
			return errors.Join(err, fmt.Errorf("mount at %s has mappings of owners: the program of runtime handler %q does not say that it has those (features: linux.mountExtensions.idmap): %w",
				m.Target, handler, errdefs.ErrInvalidArgument))
		}
	}
	return nil
}
