package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/criserver/criserver/engine/spec"
	"github.com/criserver/criserver/shim/api"
)

// StartContainer starts a created container. One that runs is no error; one that has exited is not started again.
func (e *Engine) StartContainer(ctx context.Context, id string) error {
	id, err := e.resolveContainer(id)
	if err != nil {
		return err
	}
	err = e.ops.do(ctx, e.ctx, containerKey(id), "start", func(ctx context.Context) error { return e.startContainer(ctx, id) })
	if err != nil {
		return fmt.Errorf("start container %s: %w", id, err)
	}
	return nil
}

// startContainer is the operation of StartContainer. That the container is created is recorded already, so that a
// process which the shim has and we have not heard of is known to be its.
func (e *Engine) startContainer(ctx context.Context, id string) error {
	record, ok := e.containerRecord(id)
	switch {
	case !ok:
		return errdefs.ErrNotFound
	case record.State == running:
		return nil
	case record.State != created:
		return fmt.Errorf("it is %s; a container is started once, so create another: %w", record.State, errdefs.ErrFailedPrecondition)
	}
	defer e.containerStep(id, "start")()
	pod, ok := e.podRecord(record.Container.PodID)
	if !ok || pod.State != ready {
		return fmt.Errorf("its pod %s is not ready: %w", record.Container.PodID, errdefs.ErrFailedPrecondition)
	}
	if record.LogPath != "" {
		if err := os.MkdirAll(filepath.Dir(record.LogPath), 0o755); err != nil {
			return fmt.Errorf("log directory: %w", err)
		}
	}
	if err := e.tellContainer(ctx, ContainerStart, id); err != nil {
		err = fmt.Errorf("a plugin refuses it: %w", err)
		return errors.Join(err, e.startFailed(ctx, id, err))
	}
	end := e.containerStep(id, "process")
	answer, err := e.startProcess(ctx, &pod, record)
	end()
	switch {
	case errdefs.IsUnavailable(err) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		// Whether it runs is not known. It stays created: a repeated start, or the shim's list, will tell.
		return err
	case err != nil:
		err = aboutProcess(id, err)
		return errors.Join(err, e.startFailed(ctx, id, err))
	}
	for _, warning := range answer.Warnings {
		e.log.Warn(warning, "container", id, "name", record.Container.Name)
	}
	if err := e.started(id, answer); err != nil {
		return err
	}
	e.logPlugin(e.tellContainer(ctx, ContainerPostStart, id), ContainerPostStart, "container", id)
	return nil
}

// startProcess has the shim start a container; where the shim has lost the pod's namespaces they are made anew first.
func (e *Engine) startProcess(ctx context.Context, pod *podRecord, record containerRecord) (*api.StartResponse, error) {
	runtime, err := e.runtimeOf(pod.Pod.Handler)
	if err != nil {
		return nil, err
	}
	r := &api.StartRequest{
		Id: record.Container.ID, PodId: record.Container.PodID,
		Dir:           e.store.containerDir(record.Container.PodID, record.Container.ID),
		Rootfs:        &api.Mount{Type: record.Rootfs.Type, Source: record.Rootfs.Source, Options: record.Rootfs.Options},
		PodNamespaces: record.PodNamespaces, PidTarget: record.PIDTarget,
		LogPath: record.LogPath, Stdin: record.Container.Stdin, Runtime: runtime, Env: wireEnv(record.RawEnv),
	}
	restore, err := e.restoreRequest(ctx, record)
	if err != nil {
		return nil, err
	}
	r.Restore = restore
	if r.LogPath != "" {
		r.LogFormat = api.LogFormat_LOG_FORMAT_CRI
	}
	var answer *api.StartResponse
	start := func() error {
		return e.shim(ctx, func(ctx context.Context) (err error) {
			answer, err = e.cfg.Shims.Start(ctx, r)
			return err
		})
	}
	err = start()
	if !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) || len(record.PodNamespaces) == 0 {
		return answer, err
	}
	// The shim may have lost the pod, or it is something else that is missing: once more with the pod there will tell.
	e.log.Debug("a container is started once more, with its pod's namespaces made sure of", "container", r.Id, "error", err)
	sysctls, sysctlErr := spec.PodSysctls(&pod.Pod, e.cfg.DefaultSysctls)
	if sysctlErr != nil {
		return nil, sysctlErr
	}
	if _, err := e.startNamespaces(ctx, pod, pod.Network.Netns, sysctls); err != nil {
		return nil, err
	}
	err = start()
	return answer, err
}

// started records a process. It may have been seen to exit already.
func (e *Engine) started(id string, answer *api.StartResponse) error {
	set := func(r *containerRecord) { r.PID, r.StartedAt = int(answer.Pid), time.Unix(0, answer.StartedAt) }
	record, err := e.changeContainer(id, running, set)
	if err != nil && record.State == exited {
		record, err = e.changeContainer(id, exited, set)
	}
	if err != nil {
		return err
	}
	return e.store.saveContainer(record)
}

// startFailed makes a container that could not be started one that has exited, with the cause as its message.
func (e *Engine) startFailed(ctx context.Context, id string, cause error) error {
	ctx, cancel := undo(ctx)
	defer cancel()
	record, err := e.changeContainer(id, exited, func(r *containerRecord) {
		if r.Exit == nil {
			r.Exit = &exitRecord{Code: StartErrorCode, FinishedAt: time.Now(), Reason: ReasonStartError, Message: cause.Error()}
		}
	})
	if err != nil {
		return err
	}
	err = errors.Join(e.store.saveContainer(record), e.releaseProcess(ctx, record))
	e.tellEnd(ctx, id)
	return err
}

// processError is what the shim says of a process, in the words that are left when the container is named by others.
type processError struct {
	text string
	kind error
}

func (e *processError) Error() string { return e.text }
func (e *processError) Unwrap() error { return e.kind }

// aboutProcess makes an error of the shim one of ours. What it does not find is a file in the container: to a client of
// ours, not found would mean that there is no such container.
func aboutProcess(id string, err error) error {
	out := &processError{text: strings.TrimPrefix(err.Error(), "container "+id+": "), kind: err}
	if errdefs.IsNotFound(err) {
		out.text, out.kind = strings.TrimSuffix(out.text, ": "+errdefs.ErrNotFound.Error()), errdefs.ErrFailedPrecondition
	}
	return out
}
