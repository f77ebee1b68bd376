package nri

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/engine"
	"github.com/criserver/criserver/engine/spec"
)

// showPod is a pod as plugins see it.
func showPod(p engine.PodStatus) *api.PodSandbox {
	shown := &api.PodSandbox{
		Id: p.Pod.ID, Name: p.Pod.Name, Uid: p.Pod.UID, Namespace: p.Pod.Namespace, Labels: maps.Clone(p.Pod.Labels),
		Annotations: maps.Clone(p.Pod.Annotations), RuntimeHandler: p.Pod.Handler, Pid: uint32(p.HolderPID),
		Linux: &api.LinuxPodSandbox{
			CgroupParent: p.Pod.CgroupParent, PodResources: showResources(p.Pod.Resources), PodOverhead: showResources(p.Pod.Overhead),
		},
	}
	for _, ip := range p.Network.IPs {
		shown.Ips = append(shown.Ips, ip.String())
	}
	if p.Network.Netns != "" {
		shown.Linux.Namespaces = []*api.LinuxNamespace{{Type: string(specs.NetworkNamespace), Path: p.Network.Netns}}
	}
	return shown
}

// show is a container as plugins see it, with the spec that it was created with. One whose spec cannot be read is shown
// without.
func (p *Plugins) show(c engine.ContainerStatus) *api.Container {
	var s specs.Spec
	data, err := os.ReadFile(filepath.Join(c.Dir, "config.json"))
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err != nil {
		p.log.Debug("a container is shown to plugins without its spec", "container", c.Container.ID, "error", err)
	}
	return showContainer(c, &s)
}

var shownStates = map[engine.ContainerState]api.ContainerState{
	engine.ContainerCreated: api.ContainerState_CONTAINER_CREATED,
	engine.ContainerRunning: api.ContainerState_CONTAINER_RUNNING,
	engine.ContainerExited:  api.ContainerState_CONTAINER_STOPPED,
}

// showContainer is a container as plugins see it. Annotations that only the spec has are shown as well. It shares no map
// or slice with c and s: the library changes what is shown to one plugin by what the one before it wanted.
func showContainer(c engine.ContainerStatus, s *specs.Spec) *api.Container {
	shown := &api.Container{
		Id: c.Container.ID, PodSandboxId: c.Container.PodID, Name: c.Container.Name, State: shownStates[c.State],
		Labels: maps.Clone(c.Container.Labels), Annotations: annotations(c.Container.Annotations, s.Annotations),
		Mounts: api.FromOCIMounts(s.Mounts), Hooks: api.FromOCIHooks(s.Hooks), Linux: showLinux(c.Container.Security, s),
		Pid: uint32(c.PID), CreatedAt: c.CreatedAt.UnixNano(), ExitCode: int32(c.ExitCode),
		StatusReason: c.Reason, StatusMessage: c.Message,
		User:  &api.User{Uid: c.User.UID, Gid: c.User.GID, AdditionalGids: slices.Clone(c.User.AdditionalGIDs)},
		Image: showImage(c.Container),
	}
	if !c.StartedAt.IsZero() {
		shown.StartedAt = c.StartedAt.UnixNano()
	}
	if !c.FinishedAt.IsZero() {
		shown.FinishedAt = c.FinishedAt.UnixNano()
	}
	if s.Process != nil {
		shown.Args, shown.Env = slices.Clone(s.Process.Args), slices.Clone(s.Process.Env)
		for i, entry := range shown.Env { // a plugin takes text only; a value that it does not touch stays what it is
			shown.Env[i] = strings.ToValidUTF8(entry, "\ufffd")
		}
		for _, l := range s.Process.Rlimits {
			shown.Rlimits = append(shown.Rlimits, &api.POSIXRlimit{Type: l.Type, Hard: l.Hard, Soft: l.Soft})
		}
	}
	for _, name := range c.Container.CDIDevices {
		shown.CDIDevices = append(shown.CDIDevices, &api.CDIDevice{Name: name})
	}
	return shown
}

func annotations(asked, inSpec map[string]string) map[string]string {
	all := map[string]string{}
	maps.Copy(all, inSpec)
	maps.Copy(all, asked)
	return all
}

func showImage(c spec.Container) *api.Image {
	name := c.Image
	if c.UserImage != "" {
		name = c.UserImage
	}
	_, digest, _ := strings.Cut(c.ImageRef, "@")
	return &api.Image{Name: name, Digest: digest, ConfigDigest: c.ImageID}
}

func showLinux(security spec.Security, s *specs.Spec) *api.LinuxContainer {
	shown := &api.LinuxContainer{SeccompProfile: showProfile(security, s)}
	if s.Process != nil {
		shown.OomScoreAdj = api.Int(s.Process.OOMScoreAdj)
		shown.IoPriority = api.FromOCILinuxIOPriority(s.Process.IOPriority)
		shown.Scheduler = api.FromOCILinuxScheduler(s.Process.Scheduler)
	}
	l := s.Linux
	if l == nil {
		return shown
	}
	shown.Namespaces, shown.Devices = api.FromOCILinuxNamespaces(l.Namespaces), api.FromOCILinuxDevices(l.Devices)
	shown.Resources, shown.CgroupsPath = api.FromOCILinuxResources(l.Resources, nil), l.CgroupsPath
	shown.Sysctl = maps.Clone(l.Sysctl)
	if l.Seccomp != nil {
		shown.SeccompPolicy = api.FromOCILinuxSeccomp(l.Seccomp)
	}
	shown.NetDevices = api.FromOCILinuxNetDevices(l.NetDevices)
	if rdt := l.IntelRdt; rdt != nil {
		shown.Rdt = &api.LinuxRdt{
			ClosId: api.String(rdt.ClosID), Schemata: api.RepeatedString(rdt.Schemata), EnableMonitoring: api.Bool(rdt.EnableMonitoring),
		}
	}
	return shown
}

func showProfile(security spec.Security, s *specs.Spec) *api.SecurityProfile {
	switch {
	case s.Linux == nil || s.Linux.Seccomp == nil:
		return &api.SecurityProfile{ProfileType: api.SecurityProfile_UNCONFINED}
	case security.Seccomp.Kind == spec.Localhost:
		return &api.SecurityProfile{ProfileType: api.SecurityProfile_LOCALHOST, LocalhostRef: security.Seccomp.Path}
	}
	return &api.SecurityProfile{ProfileType: api.SecurityProfile_RUNTIME_DEFAULT}
}
