package spec

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// builder carries what the parts of Build share.
type builder struct {
	in  Input
	out Output
}

func (b *builder) warn(format string, args ...any) {
	b.out.Warnings = append(b.out.Warnings, fmt.Sprintf(format, args...))
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// Build makes the OCI runtime spec of a container. Errors are ErrInvalidArgument and name the field, or
// ErrFailedPrecondition when the host lacks what was asked for.
func Build(in Input) (Output, error) {
	b := &builder{in: in}
	s := &specs.Spec{
		Root:  &specs.Root{Path: "rootfs", Readonly: in.Container.Security.ReadonlyRootfs},
		Linux: &specs.Linux{CgroupsPath: in.CgroupsPath},
	}
	b.out.Spec = s
	for _, step := range []func(*specs.Spec) error{
		b.process, b.capabilities, b.namespaces, b.mounts, b.paths, b.devices, b.resources, b.appArmor, b.selinux, b.seccomp,
		b.base, b.annotations, b.defaultRlimits,
	} {
		if err := step(s); err != nil {
			return Output{}, err
		}
	}
	s.Version = LowestVersion(s)
	return b.out, nil
}

// LowestVersion is the oldest version of the runtime spec that has everything that s uses, so that the most runtimes
// accept it (ChangeLog of opencontainers/runtime-spec).
func LowestVersion(s *specs.Spec) string {
	if l := s.Linux; len(l.NetDevices) > 0 || l.MemoryPolicy != nil || l.IntelRdt != nil && (len(l.IntelRdt.Schemata) > 0 || l.IntelRdt.EnableMonitoring) {
		return "1.3.0"
	}
	version := "1.0.2"
	if len(s.Linux.TimeOffsets) > 0 || slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.TimeNamespace }) {
		version = "1.1.0"
	}
	if p := s.Process; p != nil && (p.Scheduler != nil || p.IOPriority != nil) {
		version = "1.1.0"
	}
	if len(s.Linux.Resources.Unified) > 0 {
		version = "1.1.0"
	}
	if sc := s.Linux.Seccomp; sc != nil {
		if sc.DefaultErrnoRet != nil || len(sc.Flags) > 0 || sc.ListenerPath != "" ||
			slices.ContainsFunc(sc.Syscalls, func(c specs.LinuxSyscall) bool { return c.ErrnoRet != nil }) {
			version = "1.1.0"
		}
	}
	for _, m := range s.Mounts {
		if slices.Contains(m.Options, "rro") || len(m.UIDMappings) > 0 {
			version = "1.1.0"
		}
	}
	return version
}

// namespaces names what the container joins and what it gets for itself.
func (b *builder) namespaces(s *specs.Spec) error {
	pod := b.in.Pod.Security.Namespaces
	add := func(t specs.LinuxNamespaceType, path string) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: t, Path: path})
	}
	join := func(t specs.LinuxNamespaceType, name string) {
		add(t, "")
		b.out.PodNamespaces = append(b.out.PodNamespaces, name)
	}
	add(specs.MountNamespace, "")
	if b.in.Pod.OwnNetwork() {
		if b.in.Netns == "" {
			return fmt.Errorf("pod %s has no network namespace, so it was not made ready: %w", b.in.Pod.ID, errdefs.ErrFailedPrecondition)
		}
		add(specs.NetworkNamespace, b.in.Netns)
		join(specs.UTSNamespace, "uts")
	}
	switch pod.IPC {
	case "", ModePod:
		join(specs.IPCNamespace, "ipc")
	case ModeContainer:
		add(specs.IPCNamespace, "")
	case ModeNode:
	default:
		return invalid("pod's ipc namespace %q: must be pod, container or node", pod.IPC)
	}
	if err := b.pidNamespace(add, join); err != nil {
		return err
	}
	if err := b.userNamespace(s); err != nil {
		return err
	}
	// A privileged container manages the host's cgroups and must see them.
	if !b.in.Container.Security.Privileged {
		add(specs.CgroupNamespace, "")
	}
	return nil
}

func (b *builder) pidNamespace(add, join func(specs.LinuxNamespaceType, string)) error {
	mode := b.in.Container.Security.Namespaces.PID
	if mode == "" {
		mode = b.in.Pod.Security.Namespaces.PID
	}
	// A container that wants its pod's namespace gets what the pod has: the host's, or one for each container.
	if pod := b.in.Pod.Security.Namespaces.PID; mode == ModePod {
		if pod == "" {
			pod = ModeContainer
		}
		mode = pod
	}
	switch mode {
	case "", ModeContainer:
		add(specs.PIDNamespace, "")
		b.out.OwnPID = true
	case ModePod:
		join(specs.PIDNamespace, "pid")
	case ModeTarget:
		target := b.in.Container.Security.Namespaces.Target
		if target == "" {
			return invalid("container's pid namespace is that of a target, but no target is named")
		}
		add(specs.PIDNamespace, "")
		b.out.PIDTarget = target
	case ModeNode:
	default:
		return invalid("container's pid namespace %q: must be pod, container, node or target", mode)
	}
	return nil
}

// OwnNetwork says that the pod has a network namespace of its own, and with it a hostname.
func (p *Pod) OwnNetwork() bool { return p.Security.Namespaces.Network != ModeNode }

// OwnIPC says that the pod's containers share an ipc namespace that is the pod's.
func (p *Pod) OwnIPC() bool {
	mode := p.Security.Namespaces.IPC
	return mode == "" || mode == ModePod
}

// OwnPID says that the pod has a pid namespace of its own.
func (p *Pod) OwnPID() bool { return p.Security.Namespaces.PID == ModePod }

// What Kubernetes hides of /proc and /sys, and what it leaves to be read (k8s.io/kubernetes, pkg/securitycontext).
var (
	defaultMasked = []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
		"/sys/devices/virtual/powercap",
	}
	defaultReadonly = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// paths sets what is masked and what is read-only. Nil lists mean the defaults, empty ones none.
func (b *builder) paths(s *specs.Spec) error {
	security := b.in.Container.Security
	if security.Privileged {
		return nil
	}
	s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = security.MaskedPaths, security.ReadonlyPaths
	if security.MaskedPaths == nil {
		s.Linux.MaskedPaths = slices.Clone(defaultMasked)
	}
	if security.ReadonlyPaths == nil {
		s.Linux.ReadonlyPaths = slices.Clone(defaultReadonly)
	}
	for _, p := range s.Linux.MaskedPaths {
		if !path.IsAbs(p) || strings.ContainsRune(p, 0) {
			return invalid("masked path %q: must be absolute", p)
		}
	}
	for _, p := range s.Linux.ReadonlyPaths {
		if !path.IsAbs(p) || strings.ContainsRune(p, 0) {
			return invalid("readonly path %q: must be absolute", p)
		}
	}
	return nil
}
