package cri

import (
	"context"
	"path/filepath"
	"strconv"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/engine/spec"
)

// CheckpointContainer implements RuntimeService.
func (s *runtimeService) CheckpointContainer(ctx context.Context, r *runtime.CheckpointContainerRequest) (*runtime.CheckpointContainerResponse, error) {
	if r.GetContainerId() == "" {
		return nil, required("container_id")
	}
	location, err := absolute("location", r.GetLocation())
	if err != nil {
		return nil, err
	}
	if r.GetTimeout() < 0 {
		return nil, invalid("timeout", "%d is negative", r.GetTimeout())
	}
	return &runtime.CheckpointContainerResponse{}, s.engine.CheckpointContainer(ctx, r.GetContainerId(), location, seconds(r.GetTimeout()))
}

// CheckpointPod implements RuntimeService.
func (s *runtimeService) CheckpointPod(ctx context.Context, r *runtime.CheckpointPodRequest) (*runtime.CheckpointPodResponse, error) {
	if r.GetPodSandboxId() == "" {
		return nil, required("pod_sandbox_id")
	}
	output, err := absolute("output_path", r.GetOutputPath())
	if err != nil {
		return nil, err
	}
	if len(r.GetContainerIds()) == 0 {
		return nil, required("container_ids")
	}
	for _, id := range r.GetContainerIds() {
		if id == "" {
			return nil, invalid("container_ids", "an id is empty")
		}
	}
	if err := podCheckpoint(ctx, r.GetOptions()); err != nil {
		return nil, err
	}
	return &runtime.CheckpointPodResponse{}, s.engine.CheckpointPod(ctx, r.GetPodSandboxId(), output, r.GetContainerIds())
}

// podCheckpoint checks what both calls for pods have in common: there is no option, and a deadline must be there.
func podCheckpoint(ctx context.Context, options map[string]string) error {
	for key := range options {
		return invalid("options["+key+"]", "is not an option of the native runtime, which has none")
	}
	if _, ok := ctx.Deadline(); !ok {
		return &fieldError{"the call", "has no deadline; set one", errdefs.ErrInvalidArgument}
	}
	return nil
}

// RestorePod implements RuntimeService.
func (s *runtimeService) RestorePod(ctx context.Context, r *runtime.RestorePodRequest) (*runtime.RestorePodResponse, error) {
	path, err := absolute("checkpoint_path", r.GetCheckpointPath())
	if err != nil {
		return nil, err
	}
	if err := checkHandler(s.engine, "runtime_handler", r.GetRuntimeHandler()); err != nil {
		return nil, err
	}
	pod, err := podOf(r.GetConfig(), r.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	if err := podCheckpoint(ctx, r.GetOptions()); err != nil {
		return nil, err
	}
	containers, err := restoredOf(r.GetContainerConfigs(), pod)
	if err != nil {
		return nil, err
	}
	for _, c := range containers {
		if s.engine.StrictMounts() {
			continue
		}
		if err := makeSources(ctx, c.Mounts); err != nil {
			return nil, err
		}
	}
	id, restored, err := s.engine.RestorePod(ctx, path, pod, containers)
	if err != nil {
		return nil, err
	}
	response := &runtime.RestorePodResponse{PodSandboxId: id}
	for _, c := range restored {
		response.RestoredContainers = append(response.RestoredContainers, &runtime.RestoredContainer{Name: c.Name, ContainerId: c.ID})
	}
	return response, nil
}

// restoredOf checks and translates the configurations of containers that are restored with their pod.
func restoredOf(configs []*runtime.ContainerConfig, pod spec.Pod) ([]spec.Container, error) {
	if len(configs) == 0 {
		return nil, required("container_configs")
	}
	var containers []spec.Container
	seen := map[string]bool{}
	for i, config := range configs {
		at := "container_configs[" + strconv.Itoa(i) + "]"
		c, err := containerOf(config, pod)
		if err != nil {
			return nil, &fieldError{at, err.Error(), err}
		}
		if seen[c.Name] {
			return nil, invalid(at+".metadata.name", "%q is given twice", c.Name)
		}
		if c.Checkpoint != "" {
			return nil, invalid(at+".image.image", "%q is a checkpoint: give the image that the container ran", c.Image)
		}
		seen[c.Name] = true
		containers = append(containers, c)
	}
	return containers, nil
}

// checkpointOf is the archive that an image's name is the path of: a container is made from it by clients that have one at
// hand instead of an image.
func checkpointOf(image string) string {
	if !filepath.IsAbs(image) {
		return ""
	}
	return filepath.Clean(image)
}
