package shimd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native"
)

const (
	// poststopFile in a container's directory says that hooks are to run once the container is deleted. It is made before the
	// first hook of a start runs, and removed after the last of those has.
	poststopFile = "poststop"
	// hookLimit bounds a hook that has no timeout.
	hookLimit = 60 * time.Second
)

// startLimit is how long the start of a container may take: hooks get their time besides.
func (c *container) startLimit() time.Duration {
	spec, err := c.loadSpec()
	if err != nil || spec.Hooks == nil {
		return startLimit
	}
	return startLimit + native.HooksLimit(spec, hookLimit)
}

// readyHooks makes what hooks need to be there: a place for the root filesystem, and the record that some are owed to the
// container's end. Those that an earlier start owes, which was cut short, run first.
func (s *Server) readyHooks(ctx context.Context, c *container, spec *specs.Spec) error {
	if spec.Hooks == nil || c.binary != nil { // a program runs them itself
		return nil
	}
	s.poststop(ctx, c.id, c.dir)
	if native.HasHooks(spec, native.Prestart, native.CreateRuntime, native.CreateContainer) && spec.Root != nil && !filepath.IsAbs(spec.Root.Path) {
		if err := os.MkdirAll(filepath.Join(c.dir, spec.Root.Path), 0o700); err != nil {
			return fmt.Errorf("root.path, for hooks: %w", err)
		}
	}
	if !native.HasHooks(spec, native.Poststop) {
		return nil
	}
	c.record.Poststop = true
	return os.WriteFile(filepath.Join(c.dir, poststopFile), nil, 0o600)
}

// poststop runs the hooks that are owed to the end of a container, if there are such. What fails is logged, and not repeated, as
// the OCI runtime spec says. Killed in between it runs them again.
func (s *Server) poststop(ctx context.Context, id, dir string) {
	owed := filepath.Join(dir, poststopFile)
	if _, err := os.Lstat(owed); err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.note.Error("it is not known whether hooks are to be run", "container", id, "error", err)
		}
		return
	}
	c := newContainer(id, dir)
	spec, err := c.loadSpec()
	if err == nil {
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), poststopLimit(spec))
		err = s.runtime.poststop(limited, native.HookConfig{ID: id, Spec: spec, Bundle: dir, Timeout: hookLimit})
		cancel()
	}
	if err != nil {
		s.note.Warn("poststop hooks failed", "container", id, "error", err)
	}
	if err := unix.Unlink(owed); err != nil {
		s.note.Error("poststop hooks would be run again", "container", id, "error", &os.PathError{Op: "unlink", Path: owed, Err: err})
	}
}

func poststopLimit(spec *specs.Spec) time.Duration {
	if spec.Hooks == nil {
		return hookLimit
	}
	return native.HooksLimit(&specs.Spec{Hooks: &specs.Hooks{Poststart: spec.Hooks.Poststop}}, hookLimit)
}
