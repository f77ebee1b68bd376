package cri

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"slices"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/engine"
	"github.com/criserver/criserver/engine/spec"
)

// CreateContainer implements RuntimeService.
func (s *runtimeService) CreateContainer(ctx context.Context, r *runtime.CreateContainerRequest) (*runtime.CreateContainerResponse, error) {
	if r.GetPodSandboxId() == "" {
		return nil, required("pod_sandbox_id")
	}
	pod, err := s.engine.Pod(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if err := checkHandler(s.engine, "config.image.runtime_handler", r.GetConfig().GetImage().GetRuntimeHandler()); err != nil {
		return nil, err
	}
	container, err := containerOf(r.GetConfig(), pod.Pod)
	if err != nil {
		return nil, err
	}
	if !s.engine.StrictMounts() {
		if err := makeSources(ctx, container.Mounts); err != nil {
			return nil, err
		}
	}
	id, err := s.engine.CreateContainer(ctx, container)
	if err != nil {
		return nil, err
	}
	return &runtime.CreateContainerResponse{ContainerId: id}, nil
}

// makeSources makes a directory of every source that is missing, as clients have come to expect. A file system that
// hangs holds up this call only, and only as long as its caller waits.
func makeSources(ctx context.Context, mounts []spec.Mount) error {
	for _, mount := range mounts {
		if mount.Image != nil {
			continue
		}
		done := make(chan error, 1)
		go func() { done <- makeSource(mount.Source) }()
		select {
		case err := <-done:
			if err != nil {
				return fmt.Errorf("source of mount %s: %w", mount.Target, err)
			}
		case <-ctx.Done():
			return fmt.Errorf("source %s of mount %s does not answer: %w", mount.Source, mount.Target, ctx.Err())
		}
	}
	return nil
}

func makeSource(path string) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.MkdirAll(path, 0o755)
}

// StartContainer implements RuntimeService.
func (s *runtimeService) StartContainer(ctx context.Context, r *runtime.StartContainerRequest) (*runtime.StartContainerResponse, error) {
	if r.GetContainerId() == "" {
		return nil, required("container_id")
	}
	return &runtime.StartContainerResponse{}, s.engine.StartContainer(ctx, r.GetContainerId())
}

// StopContainer implements RuntimeService.
func (s *runtimeService) StopContainer(ctx context.Context, r *runtime.StopContainerRequest) (*runtime.StopContainerResponse, error) {
	if r.GetContainerId() == "" {
		return nil, required("container_id")
	}
	return &runtime.StopContainerResponse{}, s.engine.StopContainer(ctx, r.GetContainerId(), seconds(r.GetTimeout()))
}

// RemoveContainer implements RuntimeService.
func (s *runtimeService) RemoveContainer(ctx context.Context, r *runtime.RemoveContainerRequest) (*runtime.RemoveContainerResponse, error) {
	if r.GetContainerId() == "" {
		return nil, required("container_id")
	}
	return &runtime.RemoveContainerResponse{}, s.engine.RemoveContainer(ctx, r.GetContainerId())
}

// UpdateContainerResources implements RuntimeService.
func (s *runtimeService) UpdateContainerResources(ctx context.Context, r *runtime.UpdateContainerResourcesRequest) (*runtime.UpdateContainerResourcesResponse, error) {
	if r.GetContainerId() == "" {
		return nil, required("container_id")
	}
	if r.GetWindows() != nil {
		return nil, invalid("windows", "this node runs Linux containers")
	}
	resources, err := resourcesOf("linux", r.GetLinux())
	if err != nil {
		return nil, err
	}
	return &runtime.UpdateContainerResourcesResponse{}, s.engine.UpdateContainer(ctx, r.GetContainerId(), resources)
}

// ReopenContainerLog implements RuntimeService.
func (s *runtimeService) ReopenContainerLog(ctx context.Context, r *runtime.ReopenContainerLogRequest) (*runtime.ReopenContainerLogResponse, error) {
	if r.GetContainerId() == "" {
		return nil, required("container_id")
	}
	return &runtime.ReopenContainerLogResponse{}, s.engine.ReopenLog(ctx, r.GetContainerId())
}

// ListContainers implements RuntimeService.
func (s *runtimeService) ListContainers(_ context.Context, r *runtime.ListContainersRequest) (*runtime.ListContainersResponse, error) {
	items, err := s.listContainers(r.GetFilter())
	if err != nil {
		return nil, err
	}
	return withItems(&runtime.ListContainersResponse{}, items), nil
}

func (s *runtimeService) listContainers(f *runtime.ContainerFilter) ([][]byte, error) {
	filter, ok := containerFilter(f)
	if !ok {
		return nil, nil
	}
	return s.engine.ListContainers(filter, encodeContainer)
}

func encodeContainer(c *engine.ContainerItem) ([]byte, error) { return encodeItem(containerItem(c)) }

// ContainerStatus implements RuntimeService.
func (s *runtimeService) ContainerStatus(_ context.Context, r *runtime.ContainerStatusRequest) (*runtime.ContainerStatusResponse, error) {
	if r.GetContainerId() == "" {
		return nil, required("container_id")
	}
	c, err := s.engine.Container(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	response := &runtime.ContainerStatusResponse{Status: containerStatus(c)}
	if r.GetVerbose() {
		response.Info, err = s.containerInfo(c)
	}
	return response, err
}

// seconds turns a timeout of a request into a duration; a negative one is none.
func seconds(n int64) time.Duration {
	n = max(n, 0)
	if n > math.MaxInt64/int64(time.Second) {
		return math.MaxInt64
	}
	return time.Duration(n) * time.Second
}

var containerStates = map[engine.ContainerState]runtime.ContainerState{
	engine.ContainerCreated: runtime.ContainerState_CONTAINER_CREATED,
	engine.ContainerRunning: runtime.ContainerState_CONTAINER_RUNNING,
	engine.ContainerExited:  runtime.ContainerState_CONTAINER_EXITED,
	engine.ContainerUnknown: runtime.ContainerState_CONTAINER_UNKNOWN,
}

func containerState(state engine.ContainerState) runtime.ContainerState {
	if value, known := containerStates[state]; known {
		return value
	}
	return runtime.ContainerState_CONTAINER_UNKNOWN
}

// containerFilter is false for a filter that selects nothing.
func containerFilter(f *runtime.ContainerFilter) (engine.ContainerFilter, bool) {
	filter := engine.ContainerFilter{ID: f.GetId(), PodID: f.GetPodSandboxId(), Labels: f.GetLabelSelector(), Owner: owner}
	if f.GetState() == nil {
		return filter, true
	}
	for state, value := range containerStates {
		if value == f.GetState().GetState() {
			filter.State = state
		}
	}
	return filter, filter.State != ""
}

func containerMetadata(c spec.Container) *runtime.ContainerMetadata {
	return &runtime.ContainerMetadata{Name: c.Name, Attempt: c.Attempt}
}

func imageSpec(c spec.Container) *runtime.ImageSpec {
	return &runtime.ImageSpec{Image: shownImage(c.Image, c.UserImage), UserSpecifiedImage: c.UserImage}
}

// shownImage is the name that the user gave, when the container was made from an ID.
func shownImage(name, user string) string {
	if user != "" {
		return user
	}
	return name
}

func containerItem(c *engine.ContainerItem) *runtime.Container {
	return &runtime.Container{
		Id: c.ID, PodSandboxId: c.PodID, Metadata: &runtime.ContainerMetadata{Name: c.Name, Attempt: c.Attempt},
		Image:    &runtime.ImageSpec{Image: shownImage(c.Image, c.UserImage), UserSpecifiedImage: c.UserImage},
		ImageRef: c.ImageRef, ImageId: c.ImageID, State: containerState(c.State), CreatedAt: c.CreatedAt.UnixNano(),
		Labels: c.Labels, Annotations: c.Annotations,
	}
}

func containerStatus(c engine.ContainerStatus) *runtime.ContainerStatus {
	status := &runtime.ContainerStatus{
		Id:          c.Container.ID,
		Metadata:    containerMetadata(c.Container),
		State:       containerState(c.State),
		CreatedAt:   c.CreatedAt.UnixNano(),
		StartedAt:   nanoseconds(c.StartedAt),
		FinishedAt:  nanoseconds(c.FinishedAt),
		ExitCode:    int32(c.ExitCode),
		Image:       imageSpec(c.Container),
		ImageRef:    c.Container.ImageRef,
		ImageId:     c.Container.ImageID,
		Reason:      c.Reason,
		Message:     c.Message,
		Labels:      c.Container.Labels,
		Annotations: c.Container.Annotations,
		LogPath:     c.LogPath,
		Resources:   &runtime.ContainerResources{Linux: linuxResources(c.Container.Resources)},
		User:        &runtime.ContainerUser{Linux: linuxUser(c.User)},
		StopSignal:  signalOf(c.StopSignal),
	}
	for _, m := range c.Container.Mounts {
		status.Mounts = append(status.Mounts, criMount(m))
	}
	return status
}

// nanoseconds since the epoch; 0 for the zero time, as CRI has "not specified".
func nanoseconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func criMount(m spec.Mount) *runtime.Mount {
	mount := &runtime.Mount{
		HostPath: m.Source, ContainerPath: m.Target, Readonly: m.Readonly, RecursiveReadOnly: m.RecursiveReadonly,
		SelinuxRelabel: m.SELinuxRelabel, MountOptions: m.Options, UidMappings: criMappings(m.UIDs), GidMappings: criMappings(m.GIDs),
	}
	mount.Image, mount.ImageSubPath = criVolume(m.Image)
	for value, name := range propagations {
		if name == m.Propagation {
			mount.Propagation = value
		}
	}
	return mount
}

func linuxResources(r spec.Resources) *runtime.LinuxContainerResources {
	resources := &runtime.LinuxContainerResources{
		CpuPeriod: int64(r.CPUPeriod), CpuQuota: r.CPUQuota, CpuShares: int64(r.CPUShares),
		MemoryLimitInBytes: r.Memory, MemorySwapLimitInBytes: r.MemorySwap, OomScoreAdj: r.OOMScoreAdj,
		CpusetCpus: r.CPUs, CpusetMems: r.Mems, Unified: r.Unified,
	}
	for _, size := range slices.Sorted(maps.Keys(r.HugepageLimit)) {
		resources.HugepageLimits = append(resources.HugepageLimits,
			&runtime.HugepageLimit{PageSize: size, Limit: r.HugepageLimit[size]})
	}
	return resources
}

func linuxUser(u spec.User) *runtime.LinuxContainerUser {
	user := &runtime.LinuxContainerUser{Uid: int64(u.UID), Gid: int64(u.GID)}
	for _, gid := range u.AdditionalGIDs {
		user.SupplementalGroups = append(user.SupplementalGroups, int64(gid))
	}
	return user
}
