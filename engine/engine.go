package engine

import (
	"context"
	"time"

	"github.com/containerd/errdefs"

	"github.com/criserver/criserver/engine/spec"
)

// Engine runs pods and containers. All methods may be called concurrently. Ids may be given as unique prefixes. Calls
// that change something go on when their context ends; a repeated call joins the one in flight and gets its result.
//
// Errors are of errdefs kinds: ErrInvalidArgument names the field, ErrNotFound the id, ErrFailedPrecondition the state
// and what to do first, ErrUnavailable a shim that did not come back in time.
type Engine struct{}

// Open reads the records below cfg.StateDir, matches them with what the shim runs, tears down what is left of another
// boot or half made, and follows what happens from then on.
func Open(ctx context.Context, cfg Config) (*Engine, error) { return nil, errdefs.ErrNotImplemented }

// Close stops following and waits for operations in flight. Workloads run on.
func (e *Engine) Close() error { return errdefs.ErrNotImplemented }

// RunPod makes a pod ready and answers its id. ID of p is chosen by the engine. A pod with the same name, namespace, uid
// and attempt that is being made or is ready with the same configuration is answered as it is.
func (e *Engine) RunPod(ctx context.Context, p spec.Pod) (string, error) {
	return "", errdefs.ErrNotImplemented
}

// StopPod kills the containers of a pod and lets go of its network and namespaces. An unknown pod is no error.
func (e *Engine) StopPod(ctx context.Context, id string) error { return errdefs.ErrNotImplemented }

// RemovePod stops a pod and removes it with its containers. An unknown pod is no error.
func (e *Engine) RemovePod(ctx context.Context, id string) error { return errdefs.ErrNotImplemented }

// Pod answers the status of one pod.
func (e *Engine) Pod(id string) (PodStatus, error) { return PodStatus{}, errdefs.ErrNotImplemented }

// Pods lists the pods that the filter selects, oldest first.
func (e *Engine) Pods(f PodFilter) []PodStatus { return nil }

// CreateContainer makes a container in the pod c.PodID and answers its id. ID, ImageID and ImageRef of c are filled by
// the engine. A container of the pod with the same name, attempt and configuration that was not started is answered as it is.
func (e *Engine) CreateContainer(ctx context.Context, c spec.Container) (string, error) {
	return "", errdefs.ErrNotImplemented
}

// StartContainer starts a created container. One that runs is no error.
func (e *Engine) StartContainer(ctx context.Context, id string) error {
	return errdefs.ErrNotImplemented
}

// StopContainer sends the stop signal, waits grace, kills, and returns when the container has exited. A grace of 0 or less
// kills at once. A shorter grace than that of a stop in flight shortens it. An unknown container, or one that does not run, is no error.
func (e *Engine) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	return errdefs.ErrNotImplemented
}

// RemoveContainer kills a container if it runs and removes it. An unknown container is no error.
func (e *Engine) RemoveContainer(ctx context.Context, id string) error {
	return errdefs.ErrNotImplemented
}

// Container answers the status of one container.
func (e *Engine) Container(id string) (ContainerStatus, error) {
	return ContainerStatus{}, errdefs.ErrNotImplemented
}

// Containers lists the containers that the filter selects, oldest first.
func (e *Engine) Containers(f ContainerFilter) []ContainerStatus { return nil }

// UpdateContainer changes the limits of a created or running container. Zero fields stay as they are.
func (e *Engine) UpdateContainer(ctx context.Context, id string, r spec.Resources) error {
	return errdefs.ErrNotImplemented
}

// Exec runs argv in a running container to its end; the process dies with ctx. When timeout (0: none) passes it is
// killed and the error is context.DeadlineExceeded.
func (e *Engine) Exec(ctx context.Context, id string, argv []string, timeout time.Duration) (ExecResult, error) {
	return ExecResult{}, errdefs.ErrNotImplemented
}

// ReopenLog opens the log of a running container again, after rotation.
func (e *Engine) ReopenLog(ctx context.Context, id string) error { return errdefs.ErrNotImplemented }

// Ready says what keeps the engine from running pods: shim is the error of the shim, network that of the network; nil when ready.
func (e *Engine) Ready(ctx context.Context) (shim, network error) {
	return errdefs.ErrNotImplemented, errdefs.ErrNotImplemented
}

// Drain stops every container with the grace, then every pod.
func (e *Engine) Drain(ctx context.Context, grace time.Duration) error {
	return errdefs.ErrNotImplemented
}
