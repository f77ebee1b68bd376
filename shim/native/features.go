package native

import (
	"maps"
	"os"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"

	"github.com/criserver/criserver/shim/native/seccomp"
)

// Features is what this runtime can do here, in the form of the OCI runtime spec.
func (r *Runtime) Features() features.Features {
	yes, no := true, false
	apparmor := strings.HasPrefix(fileText("/sys/module/apparmor/parameters/enabled"), "Y")
	selinux := fileText("/sys/fs/selinux/enforce") != ""
	v1, v2 := cgroupVersions()
	f := features.Features{
		OCIVersionMin: "1.0.0", OCIVersionMax: specs.Version,
		MountOptions: mountOptionNames(),
		Linux: &features.Linux{
			Namespaces:      []string{string(specs.MountNamespace)},
			Cgroup:          &features.Cgroup{V1: &v1, V2: &v2, Systemd: &no, SystemdUser: &no},
			Seccomp:         seccompFeatures(),
			Apparmor:        &features.Apparmor{Enabled: &apparmor},
			Selinux:         &features.Selinux{Enabled: &selinux},
			IntelRdt:        &features.IntelRdt{Enabled: &yes, Schemata: &no, Monitoring: &no},
			MemoryPolicy:    memoryPolicyFeatures(),
			MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: &yes}},
			NetDevices:      &features.NetDevices{Enabled: &no},
		},
	}
	f.Linux.Seccomp.Enabled = &yes
	for _, kind := range []HookKind{Prestart, CreateRuntime, CreateContainer, StartContainer, Poststart, Poststop} {
		f.Hooks = append(f.Hooks, string(kind))
	}
	for _, n := range namespaceFlags {
		f.Linux.Namespaces = append(f.Linux.Namespaces, string(n.kind))
	}
	for name, number := range capabilityNumbers() {
		if number <= r.host.LastCapability {
			f.Linux.Capabilities = append(f.Linux.Capabilities, name)
		}
	}
	slices.Sort(f.Linux.Namespaces)
	slices.Sort(f.Linux.Capabilities)
	return f
}

// mountOptionNames are the options that are not left to the filesystem.
func mountOptionNames() []string {
	names := []string{"bind", "rbind", "defaults", "async", "loud", "norelatime", "nostrictatime"}
	for name := range settable {
		names = append(names, name)
		if !strings.HasSuffix(name, "atime") || strings.HasSuffix(name, "diratime") {
			names = append(names, "r"+name)
		}
	}
	names = append(names, slices.Collect(maps.Keys(propagationOptions))...)
	slices.Sort(names)
	return slices.Compact(names)
}

func seccompFeatures() *features.Seccomp {
	f := &features.Seccomp{
		Operators: []string{
			string(specs.OpNotEqual), string(specs.OpLessThan), string(specs.OpLessEqual), string(specs.OpEqualTo),
			string(specs.OpGreaterEqual), string(specs.OpGreaterThan), string(specs.OpMaskedEqual),
		},
		KnownFlags: []string{string(specs.LinuxSeccompFlagLog), string(specs.LinuxSeccompFlagSpecAllow), string(specs.LinuxSeccompFlagWaitKillableRecv)},
	}
	f.Actions, f.Archs, f.SupportedFlags = seccomp.Supported()
	return f
}

func memoryPolicyFeatures() *features.MemoryPolicy {
	var f features.MemoryPolicy
	for _, mode := range slices.Sorted(maps.Keys(memoryPolicies)) {
		f.Modes = append(f.Modes, string(mode))
	}
	for _, flag := range slices.Sorted(maps.Keys(memoryPolicyFlags)) {
		f.Flags = append(f.Flags, string(flag))
	}
	return &f
}

func cgroupVersions() (v1, v2 bool) {
	mounts := fileText("/proc/self/mountinfo")
	return strings.Contains(mounts, " - cgroup "), strings.Contains(mounts, " - cgroup2 ")
}

func fileText(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(b)
}
