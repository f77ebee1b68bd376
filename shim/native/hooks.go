package native

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native/cgroup"
	"github.com/criserver/criserver/shim/native/plan"
	"github.com/criserver/criserver/shim/native/stage"
)

// HookKind is a moment in a container's life at which the spec may have programs run.
type HookKind string

// The kinds, in the order in which they come.
const (
	Prestart        HookKind = "prestart"
	CreateRuntime   HookKind = "createRuntime"
	CreateContainer HookKind = "createContainer"
	StartContainer  HookKind = "startContainer"
	Poststart       HookKind = "poststart"
	Poststop        HookKind = "poststop"
)

// hookStates is the status that a hook is told, as the lifecycle of the OCI runtime spec has it at that moment.
var hookStates = map[HookKind]specs.ContainerState{
	Prestart: specs.StateCreating, CreateRuntime: specs.StateCreating, CreateContainer: specs.StateCreating,
	StartContainer: specs.StateCreated, Poststart: specs.StateRunning, Poststop: specs.StateStopped,
}

// HasHooks reports whether a spec has hooks of one of the kinds.
func HasHooks(spec *specs.Spec, kinds ...HookKind) bool {
	for _, kind := range kinds {
		if len(hooksOf(spec, kind)) > 0 {
			return true
		}
	}
	return false
}

func hooksOf(spec *specs.Spec, kind HookKind) []specs.Hook {
	h := spec.Hooks
	if h == nil {
		return nil
	}
	switch kind {
	case Prestart:
		//lint:ignore SA1019 deprecated, but not gone from specs
		return h.Prestart
	case CreateRuntime:
		return h.CreateRuntime
	case CreateContainer:
		return h.CreateContainer
	case StartContainer:
		return h.StartContainer
	case Poststart:
		return h.Poststart
	}
	return h.Poststop
}

// HooksLimit is how long all hooks of a spec may take that a start runs, each taking its time-out; of one that has none it is
// taken as the given.
func HooksLimit(spec *specs.Spec, without time.Duration) time.Duration {
	var sum time.Duration
	for _, kind := range []HookKind{Prestart, CreateRuntime, CreateContainer, StartContainer, Poststart} {
		for _, h := range hooksOf(spec, kind) {
			if h.Timeout != nil {
				sum += time.Duration(*h.Timeout) * time.Second
			} else {
				sum += without
			}
		}
	}
	return sum
}

func validateHooks(spec *specs.Spec) error {
	if spec.Hooks == nil {
		return nil
	}
	for kind := range hookStates {
		for i, h := range hooksOf(spec, kind) {
			if !path.IsAbs(h.Path) {
				return fmt.Errorf("hooks.%s[%d].path: %q is not absolute: %w", kind, i, h.Path, errdefs.ErrInvalidArgument)
			}
			if h.Timeout != nil && (*h.Timeout <= 0 || *h.Timeout > 1<<30) {
				return fmt.Errorf("hooks.%s[%d].timeout: %d is not a number of seconds above 0: %w", kind, i, *h.Timeout, errdefs.ErrInvalidArgument)
			}
		}
	}
	return nil
}

// HookConfig is the container whose hooks are run.
type HookConfig struct {
	ID     string
	Spec   *specs.Spec
	Bundle string // the directory of config.json, for the hooks to find it
	Pid    int    // of the container's process; 0: it is gone
	// Target is a pidfd of that process, for the hooks that run in its namespaces.
	Target *os.File
	Cgroup *cgroup.Cgroup // of the container, for the same; may be nil
	// Timeout is how long a hook may take that has none of its own; 0: as long as the context.
	Timeout time.Duration
}

// RunHooks runs the hooks of one kind in their order. It stops at the first that fails; after Poststop ones that fail it goes on,
// as the OCI runtime spec says, and the error is a warning.
func (r *Runtime) RunHooks(ctx context.Context, kind HookKind, c HookConfig) error {
	var errs []error
	for i, hook := range hooksOf(c.Spec, kind) {
		err := r.runHook(ctx, kind, hook, c)
		if err != nil {
			errs = append(errs, fmt.Errorf("hooks.%s[%d] %s: %w", kind, i, hook.Path, err))
		}
		if err != nil && kind != Poststop {
			break
		}
	}
	return errors.Join(errs...)
}

// afterHook is how long the output of a hook is waited for once it has ended: what it left behind may hold the pipe.
const afterHook = 100 * time.Millisecond

func (r *Runtime) runHook(ctx context.Context, kind HookKind, hook specs.Hook, c HookConfig) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	state, err := hookState(kind, c)
	if err != nil {
		return err
	}
	stdin, err := sealed(state)
	if err != nil {
		return err
	}
	defer stdin.Close()
	out, err := newTail()
	if err != nil {
		return err
	}
	defer out.close()
	timed, limit := ctx, c.Timeout
	if hook.Timeout != nil {
		limit = time.Duration(*hook.Timeout) * time.Second
	}
	if limit > 0 {
		var cancel context.CancelFunc
		timed, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	b, l, err := r.compileHook(kind, hook, c)
	if err != nil {
		return err
	}
	l.stdio = [3]*os.File{stdin, out.theirs, out.theirs}
	p, err := r.launch(timed, b, l)
	out.begin()
	if err == nil {
		err = p.await(timed)
	}
	text := out.end(afterHook)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case timed.Err() != nil:
		return fmt.Errorf("it took longer than its timeout of %v and was killed%s: %w", limit, text, errdefs.ErrFailedPrecondition)
	}
	return fmt.Errorf("%w%s", err, text)
}

// compileHook plans a hook. Those of the container's namespaces join those of the target, before (createContainer, with all
// privileges, the host's root still there) or after (startContainer, with those of the process) the container's root was entered.
func (r *Runtime) compileHook(kind HookKind, hook specs.Hook, c HookConfig) (*built, launch, error) {
	args := hook.Args
	if len(args) == 0 {
		args = []string{hook.Path}
	}
	process := &specs.Process{Args: args, Env: hook.Env, Cwd: "/"}
	l := launch{}
	if kind == StartContainer || kind == CreateContainer {
		l.extra, l.cgroup = []*os.File{c.Target}, c.Cgroup
	}
	if kind == StartContainer {
		asked := *c.Spec.Process
		asked.Args, asked.Env, asked.Terminal, asked.ConsoleSize = process.Args, process.Env, false, nil
		in, _, err := r.input(c.Spec, &asked, c.Cgroup)
		if err != nil {
			return nil, l, err
		}
		in.program, in.target = hook.Path, stage.Extra
		b, err := compileExec(in)
		return b, l, err
	}
	in := &input{spec: c.Spec, process: process, host: r.host, program: hook.Path}
	if kind == CreateContainer {
		in.target, in.rootAt = stage.Extra, rootPath(c.Bundle, c.Spec)
		if c.Cgroup != nil {
			in.tasks, in.unified = c.Cgroup.TasksFiles(), c.Cgroup.UnifiedDir()
		}
	} else {
		in.rootAt = c.Bundle
	}
	return compileHostHook(in), l, nil
}

// compileHostHook plans a hook that has the host's root and all privileges; with a target in the container's namespaces.
func compileHostHook(in *input) *built {
	c := &compiler{Plan: plan.New(execOperations), in: in}
	b := &built{plan: c.Plan, argv: []string{in.program}}
	c.cgroups()
	c.At("hook")
	// The shim's own protection is not for what it runs.
	c.writeFile("/proc/self/oom_score_adj", fmt.Sprint(max(0, in.host.LeastOOMScoreAdj)))
	if in.target != 0 {
		flags := unix.CLONE_NEWNS
		for _, n := range namespaceFlags {
			if c.namespaceOf(n.kind) == nil {
				continue
			}
			if n.kind == specs.PIDNamespace {
				// Whoever is in a pid namespace already could get at the host's root by a process with all privileges.
				if c.joins(n.kind) {
					continue
				}
				b.forks = true
			}
			flags |= n.flag
		}
		c.Setns(in.target, flags)
	}
	c.Simple(unix.SYS_UMASK, "umask", plan.Octal(0o022))
	c.Chdir("/")
	if in.rootAt != "" {
		c.Chdir(in.rootAt)
	}
	if b.forks {
		c.fork()
	}
	c.Simple(unix.SYS_SETSID, "setsid")
	c.CloseRange(3, unix.CLOSE_RANGE_CLOEXEC)
	c.execve()
	return b
}

// stopForHooks lets the runner have hooks run before the root is entered, when there are such.
func (c *compiler) stopForHooks() bool {
	if !HasHooks(c.in.spec, Prestart, CreateRuntime, CreateContainer) {
		return false
	}
	c.At("hooks")
	c.wait()
	return true
}

// rootPath is where hooks look for the root filesystem: root.path of the bundle.
func rootPath(bundle string, spec *specs.Spec) string {
	switch {
	case spec.Root == nil || spec.Root.Path == "":
		return ""
	case filepath.IsAbs(spec.Root.Path):
		return filepath.Clean(spec.Root.Path)
	case bundle == "":
		return ""
	}
	return filepath.Join(bundle, spec.Root.Path)
}

// rootPlace is where the root filesystem is attached until it is entered: where hooks look for it, or else out of the way.
func (c *compiler) rootPlace(otherwise string) string {
	if c.in.rootAt != "" {
		return c.in.rootAt
	}
	return otherwise
}

// hookState is what a hook reads from its standard input.
func hookState(kind HookKind, c HookConfig) ([]byte, error) {
	pid := c.Pid
	if kind == CreateContainer || kind == StartContainer { // as the container sees it
		inner, err := innermostPid(pid)
		if err != nil {
			return nil, err
		}
		pid = inner
	}
	return json.Marshal(specs.State{
		Version: c.Spec.Version, ID: c.ID, Status: hookStates[kind], Pid: pid, Bundle: c.Bundle, Annotations: c.Spec.Annotations,
	})
}

// hooked is what the hooks of a container need, from its creation to its start.
type hooked struct {
	runtime *Runtime
	config  HookConfig
}

func (r *Runtime) hooked(c Config) *hooked {
	if c.Spec.Hooks == nil {
		return nil
	}
	return &hooked{r, HookConfig{ID: c.ID, Spec: c.Spec, Bundle: c.Bundle, Cgroup: c.Cgroup, Timeout: c.HookTimeout}}
}

// run runs hooks for a process that is being made. A nil hooked has none.
func (h *hooked) run(ctx context.Context, p *Process, kinds ...HookKind) error {
	if h == nil {
		return nil
	}
	c := h.config
	c.Pid, c.Target = p.Pid, p.Pidfd
	for _, kind := range kinds {
		if err := h.runtime.RunHooks(ctx, kind, c); err != nil {
			return err
		}
	}
	return nil
}
