package cri

import (
	"path/filepath"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/engine/spec"
)

// securityContext is what the contexts of pods and of containers have in common.
type securityContext interface {
	GetSelinuxOptions() *runtime.SELinuxOption
	GetRunAsUser() *runtime.Int64Value
	GetRunAsGroup() *runtime.Int64Value
	GetReadonlyRootfs() bool
	GetSupplementalGroups() []int64
	GetSupplementalGroupsPolicy() runtime.SupplementalGroupsPolicy
	GetPrivileged() bool
	GetSeccomp() *runtime.SecurityProfile
	GetApparmor() *runtime.SecurityProfile
	GetSeccompProfilePath() string
}

const (
	profileUnconfined = "unconfined"
	profileDefault    = "runtime/default"
	profileLocalhost  = "localhost"
)

// maxID is the largest uid or gid: the all-ones value means "unchanged" to the kernel.
const maxID = 1<<32 - 2

func podSecurity(context *runtime.LinuxSandboxSecurityContext) (spec.Security, error) {
	const at = "config.linux.security_context"
	s, err := commonSecurity(at, context)
	if err != nil {
		return spec.Security{}, err
	}
	if s.RunAsGroup != nil && s.RunAsUser == nil {
		return spec.Security{}, invalid(at+".run_as_group", "needs run_as_user")
	}
	if s.AppArmor, err = profileOf(at+".apparmor", context.GetApparmor(), "", false); err != nil {
		return spec.Security{}, err
	}
	if s.Namespaces, err = namespacesOf(at+".namespace_options", context.GetNamespaceOptions()); err != nil {
		return spec.Security{}, err
	}
	if s.Namespaces.PID == spec.ModeTarget {
		return spec.Security{}, invalid(at+".namespace_options.pid", "TARGET is for containers only")
	}
	s.Namespaces.User, err = userNamespaceOf(at+".namespace_options.userns_options", context.GetNamespaceOptions().GetUsernsOptions())
	if err != nil {
		return spec.Security{}, err
	}
	return s, nil
}

// containerSecurity translates a container's context. Without namespace options it uses the pod's.
func containerSecurity(context *runtime.LinuxContainerSecurityContext, pod spec.Namespaces) (spec.Security, error) {
	const at = "config.linux.security_context"
	s, err := commonSecurity(at, context)
	if err != nil {
		return spec.Security{}, err
	}
	s.CapAdd = context.GetCapabilities().GetAddCapabilities()
	s.CapDrop = context.GetCapabilities().GetDropCapabilities()
	s.CapAmbient = context.GetCapabilities().GetAddAmbientCapabilities()
	s.RunAsUsername = context.GetRunAsUsername()
	s.NoNewPrivs = context.GetNoNewPrivs()
	if s.RunAsUser != nil && s.RunAsUsername != "" {
		return spec.Security{}, invalid(at+".run_as_username", "only one of run_as_user and run_as_username may be given")
	}
	if s.RunAsGroup != nil && s.RunAsUser == nil && s.RunAsUsername == "" {
		return spec.Security{}, invalid(at+".run_as_group", "needs run_as_user or run_as_username")
	}
	if err := text(at+".run_as_username", s.RunAsUsername); err != nil {
		return spec.Security{}, err
	}
	if context != nil {
		// With a context, empty lists mean that nothing is masked; without one, nil lets the engine choose.
		if s.MaskedPaths, err = paths(at+".masked_paths", context.GetMaskedPaths()); err != nil {
			return spec.Security{}, err
		}
		if s.ReadonlyPaths, err = paths(at+".readonly_paths", context.GetReadonlyPaths()); err != nil {
			return spec.Security{}, err
		}
	}
	//lint:ignore SA1019 clients may still send the deprecated field
	old := context.GetApparmorProfile()
	if s.AppArmor, err = profileOf(at+".apparmor", context.GetApparmor(), old, false); err != nil {
		return spec.Security{}, err
	}
	if options := context.GetNamespaceOptions(); options != nil {
		if s.Namespaces, err = namespacesOf(at+".namespace_options", options); err != nil {
			return spec.Security{}, err
		}
		if err := sharedAsPod(at+".namespace_options", s.Namespaces, pod); err != nil {
			return spec.Security{}, err
		}
		err = sameUserNamespace(at+".namespace_options.userns_options", options.GetUsernsOptions(), pod.User)
	} else {
		s.Namespaces = pod
		s.Namespaces.User = nil // it is the pod's in any case
	}
	return s, err
}

func commonSecurity(at string, context securityContext) (spec.Security, error) {
	s := spec.Security{
		Privileged:         context.GetPrivileged(),
		ReadonlyRootfs:     context.GetReadonlyRootfs(),
		SupplementalGroups: context.GetSupplementalGroups(),
		SELinux:            selinuxOf(context.GetSelinuxOptions()),
	}
	var err error
	if s.RunAsUser, err = idOf(at+".run_as_user", context.GetRunAsUser()); err != nil {
		return s, err
	}
	if s.RunAsGroup, err = idOf(at+".run_as_group", context.GetRunAsGroup()); err != nil {
		return s, err
	}
	for _, group := range s.SupplementalGroups {
		if group < 0 || group > maxID {
			return s, invalid(at+".supplemental_groups", "%d is not a group id", group)
		}
	}
	switch policy := context.GetSupplementalGroupsPolicy(); policy {
	case runtime.SupplementalGroupsPolicy_Merge:
	case runtime.SupplementalGroupsPolicy_Strict:
		s.SupplementalStrict = true
	default:
		return s, invalid(at+".supplemental_groups_policy", "%d is not a policy", policy)
	}
	s.Seccomp, err = profileOf(at+".seccomp", context.GetSeccomp(), context.GetSeccompProfilePath(), true)
	return s, err
}

func idOf(field string, value *runtime.Int64Value) (*int64, error) {
	if value == nil {
		return nil, nil
	}
	id := value.GetValue()
	if id < 0 || id > maxID {
		return nil, invalid(field, "%d is not an id", id)
	}
	return &id, nil
}

func paths(field string, all []string) ([]string, error) {
	cleaned := make([]string, 0, len(all))
	for _, path := range all {
		clean, err := absolute(field, path)
		if err != nil {
			return nil, err
		}
		cleaned = append(cleaned, clean)
	}
	return cleaned, nil
}

func selinuxOf(o *runtime.SELinuxOption) *spec.SELinux {
	label := spec.SELinux{User: o.GetUser(), Role: o.GetRole(), Type: o.GetType(), Level: o.GetLevel()}
	if label == (spec.SELinux{}) {
		return nil
	}
	return &label
}

// profileOf translates a seccomp or AppArmor profile. old is the deprecated field, which counts when the other is unset.
func profileOf(field string, profile *runtime.SecurityProfile, old string, isPath bool) (spec.Profile, error) {
	p := spec.Profile{Path: profile.GetLocalhostRef()}
	switch {
	case profile == nil:
		p.Kind = old
		if path, found := strings.CutPrefix(old, profileLocalhost+"/"); found {
			p = spec.Profile{Kind: profileLocalhost, Path: path}
		} else if old == "docker/default" {
			p.Kind = profileDefault
		} else if old != "" && old != profileDefault && old != profileUnconfined {
			return spec.Profile{}, invalid(field, "%q is no profile; use runtime/default, unconfined or localhost/NAME", old)
		}
	case profile.GetProfileType() == runtime.SecurityProfile_RuntimeDefault:
		p.Kind = profileDefault
	case profile.GetProfileType() == runtime.SecurityProfile_Unconfined:
		p.Kind = profileUnconfined
	case profile.GetProfileType() == runtime.SecurityProfile_Localhost:
		p.Kind = profileLocalhost
	default:
		return spec.Profile{}, invalid(field+".profile_type", "%d is not a type", profile.GetProfileType())
	}
	if p.Kind != profileLocalhost {
		p.Path = ""
		return p, nil
	}
	if !isPath { // clients of old write the name of an AppArmor profile so in either field
		p.Path = strings.TrimPrefix(p.Path, profileLocalhost+"/")
	}
	if p.Path == "" {
		return spec.Profile{}, required(field + ".localhost_ref")
	}
	if err := text(field+".localhost_ref", p.Path); err != nil {
		return spec.Profile{}, err
	}
	if isPath && !filepath.IsAbs(p.Path) {
		return spec.Profile{}, invalid(field+".localhost_ref", "%q is not an absolute path", p.Path)
	}
	return p, nil
}

// sharedAsPod refuses the node's network or ipc namespace in a pod that has its own: they are all its containers'. The other
// way round nothing is refused: POD is what a client sends that says nothing.
func sharedAsPod(at string, own, pod spec.Namespaces) error {
	for field, modes := range map[string][2]spec.Mode{"network": {own.Network, pod.Network}, "ipc": {own.IPC, pod.IPC}} {
		if modes[0] == spec.ModeNode && modes[1] != spec.ModeNode {
			return invalid(at+"."+field, "NODE, but the pod has a namespace of its own; ask for NODE in the pod")
		}
	}
	return nil
}

var modes = map[runtime.NamespaceMode]spec.Mode{
	runtime.NamespaceMode_POD: spec.ModePod, runtime.NamespaceMode_CONTAINER: spec.ModeContainer,
	runtime.NamespaceMode_NODE: spec.ModeNode, runtime.NamespaceMode_TARGET: spec.ModeTarget,
}

// namespacesOf translates the modes. Without options they are POD, as api.proto has it.
func namespacesOf(at string, options *runtime.NamespaceOption) (spec.Namespaces, error) {
	n := spec.Namespaces{
		Network: modes[options.GetNetwork()], PID: modes[options.GetPid()], IPC: modes[options.GetIpc()],
	}
	shared := func(mode spec.Mode) bool { return mode == spec.ModePod || mode == spec.ModeNode }
	if !shared(n.Network) {
		return n, invalid(at+".network", "%s: only POD and NODE are known", options.GetNetwork())
	}
	if !shared(n.IPC) {
		return n, invalid(at+".ipc", "%s: only POD and NODE are known", options.GetIpc())
	}
	if n.PID == "" {
		return n, invalid(at+".pid", "%d is not a mode", options.GetPid())
	}
	if n.PID == spec.ModeTarget {
		if n.Target = options.GetTargetId(); n.Target == "" {
			return n, required(at + ".target_id")
		}
	}
	return n, nil
}
