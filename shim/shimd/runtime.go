package shimd

import (
	"context"
	"os"

	"github.com/criserver/criserver/shim/native"
)

// runtime makes processes: *native.Runtime is one, a handler another; tests have one that fails on order.
type runtime interface {
	create(ctx context.Context, c native.Config) (*process, error)
	exec(ctx context.Context, c native.ExecConfig) (*process, error)
	restore(ctx context.Context, c native.RestoreConfig) (*process, error)
	newPod(ctx context.Context, c native.PodConfig) (*native.Pod, error)
	// mapsOwners tells whether containers can have user namespaces with layers in a directory.
	mapsOwners(ctx context.Context, directory string) error
	// poststop runs the hooks of a container that is gone.
	poststop(ctx context.Context, c native.HookConfig) error
	// Attach is native.Runtime's.
	Attach(ctx context.Context, a native.Attachment) error
}

// process is a process that a runtime made. Who got it owns the files once start has succeeded; before, and when start
// fails, they are the runtime's.
type process struct {
	pid      int
	pidfd    *os.File
	console  *os.File // nil without a terminal
	warnings []string
	start    func(context.Context) error
	abandon  func()
}

type nativeRuntime struct{ *native.Runtime }

func (r nativeRuntime) create(ctx context.Context, c native.Config) (*process, error) {
	p, err := r.Create(ctx, c)
	if err != nil {
		return nil, err
	}
	return &process{pid: p.Pid, pidfd: p.Pidfd, console: p.Console, warnings: p.Warnings, start: p.Start, abandon: p.Abandon}, nil
}

func (r nativeRuntime) exec(ctx context.Context, c native.ExecConfig) (*process, error) {
	p, err := r.Exec(ctx, c)
	if err != nil {
		return nil, err
	}
	return &process{pid: p.Pid, pidfd: p.Pidfd, console: p.Console, warnings: p.Warnings}, nil
}

func (r nativeRuntime) restore(ctx context.Context, c native.RestoreConfig) (*process, error) {
	p, err := r.Restore(ctx, c)
	if err != nil {
		return nil, err
	}
	return &process{pid: p.Pid, pidfd: p.Pidfd, warnings: p.Warnings, start: p.Start, abandon: p.Abandon}, nil
}

func (r nativeRuntime) newPod(ctx context.Context, c native.PodConfig) (*native.Pod, error) {
	return r.NewPod(ctx, c)
}

func (r nativeRuntime) poststop(ctx context.Context, c native.HookConfig) error {
	return r.RunHooks(ctx, native.Poststop, c)
}

func (r nativeRuntime) mapsOwners(ctx context.Context, directory string) error {
	return r.MapsOwners(ctx, directory)
}
