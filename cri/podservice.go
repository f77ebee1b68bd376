package cri

import (
	"context"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/engine"
	"github.com/criserver/criserver/engine/spec"
)

// RunPodSandbox implements RuntimeService.
func (s *runtimeService) RunPodSandbox(ctx context.Context, r *runtime.RunPodSandboxRequest) (*runtime.RunPodSandboxResponse, error) {
	if err := checkHandler(s.engine, "runtime_handler", r.GetRuntimeHandler()); err != nil {
		return nil, err
	}
	pod, err := podOf(r.GetConfig(), r.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	id, err := s.engine.RunPod(ctx, pod)
	if err != nil {
		return nil, err
	}
	return &runtime.RunPodSandboxResponse{PodSandboxId: id}, nil
}

// StopPodSandbox implements RuntimeService.
func (s *runtimeService) StopPodSandbox(ctx context.Context, r *runtime.StopPodSandboxRequest) (*runtime.StopPodSandboxResponse, error) {
	if r.GetPodSandboxId() == "" {
		return nil, required("pod_sandbox_id")
	}
	return &runtime.StopPodSandboxResponse{}, s.engine.StopPod(ctx, r.GetPodSandboxId())
}

// RemovePodSandbox implements RuntimeService.
func (s *runtimeService) RemovePodSandbox(ctx context.Context, r *runtime.RemovePodSandboxRequest) (*runtime.RemovePodSandboxResponse, error) {
	if r.GetPodSandboxId() == "" {
		return nil, required("pod_sandbox_id")
	}
	return &runtime.RemovePodSandboxResponse{}, s.engine.RemovePod(ctx, r.GetPodSandboxId())
}

// ListPodSandbox implements RuntimeService.
func (s *runtimeService) ListPodSandbox(_ context.Context, r *runtime.ListPodSandboxRequest) (*runtime.ListPodSandboxResponse, error) {
	items, err := s.listPods(r.GetFilter())
	if err != nil {
		return nil, err
	}
	return withItems(&runtime.ListPodSandboxResponse{}, items), nil
}

func (s *runtimeService) listPods(f *runtime.PodSandboxFilter) ([][]byte, error) {
	filter, ok := podFilter(f)
	if !ok {
		return nil, nil
	}
	return s.engine.ListPods(filter, encodePod)
}

func encodePod(p *engine.PodItem) ([]byte, error) { return encodeItem(podItem(p)) }

// PodSandboxStatus implements RuntimeService.
func (s *runtimeService) PodSandboxStatus(_ context.Context, r *runtime.PodSandboxStatusRequest) (*runtime.PodSandboxStatusResponse, error) {
	if r.GetPodSandboxId() == "" {
		return nil, required("pod_sandbox_id")
	}
	pod, containers, at, err := s.engine.PodSnapshot(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	response := &runtime.PodSandboxStatusResponse{Status: podStatus(pod), Timestamp: at.UnixNano()}
	for _, c := range containers {
		response.ContainersStatuses = append(response.ContainersStatuses, containerStatus(c))
	}
	if r.GetVerbose() {
		response.Info, err = s.podInfo(pod)
	}
	return response, err
}

// podFilter is false for a filter that selects nothing.
func podFilter(f *runtime.PodSandboxFilter) (engine.PodFilter, bool) {
	filter := engine.PodFilter{ID: f.GetId(), Labels: f.GetLabelSelector(), Owner: owner}
	if f.GetState() == nil {
		return filter, true
	}
	for state, value := range podStates {
		if value == f.GetState().GetState() {
			filter.State = state
		}
	}
	return filter, filter.State != ""
}

var podStates = map[engine.PodState]runtime.PodSandboxState{
	engine.PodReady:    runtime.PodSandboxState_SANDBOX_READY,
	engine.PodNotReady: runtime.PodSandboxState_SANDBOX_NOTREADY,
}

func podState(state engine.PodState) runtime.PodSandboxState {
	if value, known := podStates[state]; known {
		return value
	}
	return runtime.PodSandboxState_SANDBOX_NOTREADY
}

func podMetadata(pod spec.Pod) *runtime.PodSandboxMetadata {
	return &runtime.PodSandboxMetadata{Name: pod.Name, Uid: pod.UID, Namespace: pod.Namespace, Attempt: pod.Attempt}
}

func podItem(p *engine.PodItem) *runtime.PodSandbox {
	return &runtime.PodSandbox{
		Id:       p.ID,
		Metadata: &runtime.PodSandboxMetadata{Name: p.Name, Uid: p.UID, Namespace: p.Namespace, Attempt: p.Attempt},
		State:    podState(p.State), CreatedAt: p.CreatedAt.UnixNano(),
		Labels: p.Labels, Annotations: p.Annotations, RuntimeHandler: p.Handler,
	}
}

func podStatus(pod engine.PodStatus) *runtime.PodSandboxStatus {
	return &runtime.PodSandboxStatus{
		Id:        pod.Pod.ID,
		Metadata:  podMetadata(pod.Pod),
		State:     podState(pod.State),
		CreatedAt: pod.CreatedAt.UnixNano(),
		Network:   networkStatus(pod),
		Linux: &runtime.LinuxPodSandboxStatus{Namespaces: &runtime.Namespace{
			Options: namespaceOptions(pod.Pod.Security.Namespaces),
		}},
		Labels:         pod.Pod.Labels,
		Annotations:    pod.Pod.Annotations,
		RuntimeHandler: pod.Pod.Handler,
	}
}

func networkStatus(pod engine.PodStatus) *runtime.PodSandboxNetworkStatus {
	network := &runtime.PodSandboxNetworkStatus{}
	for i, ip := range pod.Network.IPs {
		if i == 0 {
			network.Ip = ip.String()
		} else {
			network.AdditionalIps = append(network.AdditionalIps, &runtime.PodIP{Ip: ip.String()})
		}
	}
	return network
}

func namespaceOptions(n spec.Namespaces) *runtime.NamespaceOption {
	return &runtime.NamespaceOption{
		Network: modeOf(n.Network), Pid: modeOf(n.PID), Ipc: modeOf(n.IPC), TargetId: n.Target, UsernsOptions: criUserNamespace(n.User),
	}
}

func modeOf(mode spec.Mode) runtime.NamespaceMode {
	for value, m := range modes {
		if m == mode {
			return value
		}
	}
	return runtime.NamespaceMode_POD
}
