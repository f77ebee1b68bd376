package cri

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/engine"
)

const (
	runtimeName = "criserver"
	apiVersion  = "v1"
	// kubeletVersion is what every client has expected in VersionResponse.version since CRI began.
	kubeletVersion = "0.1.0"
)

// Version implements RuntimeService.
func (s *runtimeService) Version(context.Context, *runtime.VersionRequest) (*runtime.VersionResponse, error) {
	return &runtime.VersionResponse{
		Version: kubeletVersion, RuntimeName: runtimeName, RuntimeVersion: s.version, RuntimeApiVersion: apiVersion,
	}, nil
}

// Status implements RuntimeService.
func (s *runtimeService) Status(ctx context.Context, r *runtime.StatusRequest) (*runtime.StatusResponse, error) {
	shim, network := s.engine.Ready(ctx)
	users := s.engine.UserNamespaces(ctx) == nil
	response := &runtime.StatusResponse{
		Status: &runtime.RuntimeStatus{Conditions: []*runtime.RuntimeCondition{
			condition(runtime.RuntimeReady, "ShimNotReady", shim),
			condition(runtime.NetworkReady, "NetworkNotReady", network),
		}},
		RuntimeHandlers: handlersOf(s.engine.Handlers(), users),
		Features:        &runtime.RuntimeFeatures{SupplementalGroupsPolicy: true, MountOptions: true, UserNamespacesHostNetwork: users},
	}
	if !r.GetVerbose() {
		return response, nil
	}
	info, err := s.statusInfo()
	response.Info = info
	return response, err
}

// statusInfo is what a verbose Status says besides its fields.
func (s *runtimeService) statusInfo() (map[string]string, error) {
	values := map[string]any{}
	maps.Copy(values, s.info)
	values["version"], values["engine"] = s.version, s.engine.Summary()
	var err error
	if values["cdi"], err = s.engine.CDI(); err != nil {
		return nil, err
	}
	return infoOf(values)
}

func condition(kind, reason string, err error) *runtime.RuntimeCondition {
	if err == nil {
		return &runtime.RuntimeCondition{Type: kind, Status: true}
	}
	return &runtime.RuntimeCondition{Type: kind, Reason: reason, Message: err.Error()}
}

// checkHandler says whether a field names a handler of this node.
func checkHandler(e *engine.Engine, field, name string) error {
	err := e.CheckHandler(name)
	if errdefs.IsInvalidArgument(err) {
		return fmt.Errorf("%s: %w", field, err)
	}
	return err
}

// handlersOf says what is known of the handlers, the default one with the empty name first. One that cannot be used is
// left out: kubelet takes what is listed for what it can have.
func handlersOf(handlers map[string]engine.Handler, users bool) []*runtime.RuntimeHandler {
	one := func(name string, h engine.Handler) *runtime.RuntimeHandler {
		return &runtime.RuntimeHandler{Name: name, Features: &runtime.RuntimeHandlerFeatures{
			RecursiveReadOnlyMounts: h.RecursiveReadonly, UserNamespaces: users && h.UserNamespaces,
		}}
	}
	all := []*runtime.RuntimeHandler{one("", handlers[engine.NativeHandler])}
	for _, name := range slices.Sorted(maps.Keys(handlers)) {
		if handlers[name].Problem == nil {
			all = append(all, one(name, handlers[name]))
		}
	}
	return all
}

// infoOf encodes what a verbose answer carries besides its fields.
func infoOf(values map[string]any) (map[string]string, error) {
	info := make(map[string]string, len(values))
	for key, value := range values {
		data, err := json.Marshal(value)
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", key, err)
		}
		info[key] = string(data)
	}
	return info, nil
}

// RuntimeConfig implements RuntimeService.
func (s *runtimeService) RuntimeConfig(context.Context, *runtime.RuntimeConfigRequest) (*runtime.RuntimeConfigResponse, error) {
	driver := runtime.CgroupDriver_CGROUPFS
	if s.engine.SystemdCgroup() {
		driver = runtime.CgroupDriver_SYSTEMD
	}
	return &runtime.RuntimeConfigResponse{Linux: &runtime.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}
