package spec

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Settings are what an operator has decided for the containers of a handler. They are never changed once they are in use.
type Settings struct {
	// Base is a spec that the container's is laid over; nil is none. CheckBase says what can be in it.
	Base *specs.Spec
	// PodAnnotations and ContainerAnnotations are patterns (path.Match) of what the spec gets of either.
	PodAnnotations, ContainerAnnotations []string
	// PrivilegedWithoutHostDevices keeps the host's devices from privileged containers.
	PrivilegedWithoutHostDevices bool
	// CgroupWritable mounts /sys/fs/cgroup writable.
	CgroupWritable bool
	// Rlimits are those of a process for which nobody asks for others. They are cut to what the host lets us give.
	Rlimits []Rlimit
}

// annotations passes on what the patterns let through; a container's win over its pod's.
func (b *builder) annotations(s *specs.Spec) error {
	pass := func(all map[string]string, patterns []string) {
		for key, value := range all {
			if !slices.ContainsFunc(patterns, func(p string) bool { ok, err := path.Match(p, key); return ok && err == nil }) {
				continue
			}
			if s.Annotations == nil {
				s.Annotations = map[string]string{}
			}
			s.Annotations[key] = value
		}
	}
	pass(b.in.Pod.Annotations, b.in.Settings.PodAnnotations)
	pass(b.in.Container.Annotations, b.in.Settings.ContainerAnnotations)
	return nil
}

// defaultRlimits adds those that neither the container nor the base spec has.
func (b *builder) defaultRlimits(s *specs.Spec) error {
	for _, l := range b.in.Settings.Rlimits {
		if slices.ContainsFunc(s.Process.Rlimits, func(have specs.POSIXRlimit) bool { return have.Type == l.Type }) {
			continue
		}
		if most, known := b.in.Host.HardLimits[l.Type]; known {
			l.Hard = min(l.Hard, most)
			l.Soft = min(l.Soft, l.Hard)
		}
		s.Process.Rlimits = append(s.Process.Rlimits, specs.POSIXRlimit{Type: l.Type, Soft: l.Soft, Hard: l.Hard})
	}
	return nil
}

// CheckBase says what in a base spec cannot be honoured, because it is the pod's, the image's or the client's to say.
func CheckBase(s *specs.Spec) error {
	p, l := s.Process, s.Linux
	if p == nil {
		p = &specs.Process{}
	}
	if l == nil {
		l = &specs.Linux{}
	}
	for _, f := range []struct {
		field, why string
		asked      bool
	}{
		{"hostname", "is the pod's", s.Hostname != ""},
		{"domainname", "is the pod's", s.Domainname != ""},
		{"process.args", "are the container's", len(p.Args) > 0},
		{"process.commandLine", "is for Windows", p.CommandLine != ""},
		{"process.terminal", "is the container's", p.Terminal || p.ConsoleSize != nil},
		{"process.user", "is the container's or the image's; only umask can be set", p.User.UID != 0 || p.User.GID != 0 || len(p.User.AdditionalGids) > 0 || p.User.Username != ""},
		{"process.capabilities", "are the container's", p.Capabilities != nil},
		{"process.apparmorProfile", "is the container's", p.ApparmorProfile != ""},
		{"process.selinuxLabel", "is the container's", p.SelinuxLabel != ""},
		{"root.path", "is the image's", s.Root != nil && s.Root.Path != "" && s.Root.Path != "rootfs"},
		{"linux.cgroupsPath", "is the pod's", l.CgroupsPath != ""},
		{"linux.uidMappings", "are the pod's", len(l.UIDMappings)+len(l.GIDMappings) > 0},
		{"linux.mountLabel", "is the container's", l.MountLabel != ""},
		{"linux.sysctl", "are the pod's; set them by workload.default_sysctls", len(l.Sysctl) > 0},
		{"vm, solaris, windows or zos", "is for other systems", s.VM != nil || s.Solaris != nil || s.Windows != nil || s.ZOS != nil},
	} {
		if f.asked {
			return invalid("%s of a base spec %s", f.field, f.why)
		}
	}
	for _, n := range l.Namespaces {
		if n.Path != "" {
			return invalid("linux.namespaces of a base spec: the path %q: which namespaces are joined is the pod's", n.Path)
		}
	}
	for _, m := range s.Mounts {
		if !path.IsAbs(m.Destination) || path.Clean(m.Destination) == "/" {
			return invalid("mounts of a base spec: the destination %q must be an absolute path below /", m.Destination)
		}
	}
	return nil
}

// base puts what the base spec has beneath what was built: it fills in what nobody asked for.
func (b *builder) base(s *specs.Spec) error {
	if b.in.Settings.Base == nil {
		return nil
	}
	base, err := copySpec(b.in.Settings.Base) // others edit what Build answers with
	if err != nil {
		return err
	}
	if base.Root != nil && base.Root.Readonly {
		s.Root.Readonly = true
	}
	s.Hooks = base.Hooks
	s.Annotations = base.Annotations // those that are passed on come over them
	b.baseMounts(s, base.Mounts)
	if p := base.Process; p != nil {
		b.baseProcess(s.Process, p)
	}
	if l := base.Linux; l != nil {
		b.baseLinux(s.Linux, l)
	}
	return nil
}

func copySpec(s *specs.Spec) (*specs.Spec, error) {
	data, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("base spec: %w", err)
	}
	out := &specs.Spec{}
	return out, json.Unmarshal(data, out)
}

func (b *builder) baseProcess(to, p *specs.Process) {
	to.Env = layEnv(p.Env, to.Env)
	if p.Cwd != "" && b.in.Container.WorkingDir == "" && b.in.Image.WorkingDir == "" {
		to.Cwd = path.Join("/", p.Cwd)
	}
	to.NoNewPrivileges = to.NoNewPrivileges || p.NoNewPrivileges && !b.in.Container.Security.Privileged
	to.User.Umask = p.User.Umask
	to.Scheduler, to.IOPriority, to.ExecCPUAffinity = p.Scheduler, p.IOPriority, p.ExecCPUAffinity
	if p.OOMScoreAdj != nil && b.in.Container.Resources.OOMScoreAdj == 0 {
		score, warning := OOMScoreAdj(Resources{OOMScoreAdj: int64(*p.OOMScoreAdj)}, b.in.Host)
		if to.OOMScoreAdj = &score; warning != "" {
			b.warn("%s", warning)
		}
	}
	for _, l := range p.Rlimits {
		if !slices.ContainsFunc(to.Rlimits, func(have specs.POSIXRlimit) bool { return have.Type == l.Type }) {
			to.Rlimits = append(to.Rlimits, l)
		}
	}
}

// layEnv lays an environment over another. The default PATH gives way to another.
func layEnv(below, over []string) []string {
	names := map[string]bool{}
	for _, entry := range over {
		name, _, _ := strings.Cut(entry, "=")
		names[name] = true
	}
	out := slices.Clone(over)
	for _, entry := range below {
		name, _, _ := strings.Cut(entry, "=")
		if !names[name] {
			out = append(out, entry)
		} else if i := slices.Index(out, defaultPath); i >= 0 && name == "PATH" {
			out[i] = entry
		}
	}
	return out
}

// baseMounts has the base's mounts take the place of the system's with the same destination, or follow them. What the
// container and its pod mount wins; shared memory stays the pod's.
func (b *builder) baseMounts(s *specs.Spec, mounts []specs.Mount) {
	system := len(b.systemMounts())
	var front, rest []specs.Mount
	for i, m := range s.Mounts {
		if i < system && slices.ContainsFunc(b.systemMounts(), func(d specs.Mount) bool { return d.Destination == m.Destination && d.Type == m.Type }) {
			front = append(front, m)
		} else {
			rest = append(rest, m)
		}
	}
	for _, m := range mounts {
		i := slices.IndexFunc(front, func(have specs.Mount) bool { return have.Destination == m.Destination })
		switch {
		case m.Destination == shmPath || shadowed(m.Destination, rest):
		case i >= 0:
			front[i] = m
		default:
			front = append(front, m)
		}
	}
	s.Mounts = append(front, rest...)
}

func (b *builder) baseLinux(to, l *specs.Linux) {
	privileged := b.in.Container.Security.Privileged
	to.Personality, to.NetDevices, to.MemoryPolicy = l.Personality, l.NetDevices, l.MemoryPolicy
	to.TimeOffsets = l.TimeOffsets
	if to.IntelRdt == nil {
		to.IntelRdt = l.IntelRdt
	}
	if to.RootfsPropagation == "" {
		to.RootfsPropagation = l.RootfsPropagation
	}
	if security := b.in.Container.Security; !privileged {
		if security.MaskedPaths == nil && l.MaskedPaths != nil {
			to.MaskedPaths = l.MaskedPaths
		}
		if security.ReadonlyPaths == nil && l.ReadonlyPaths != nil {
			to.ReadonlyPaths = l.ReadonlyPaths
		}
		if security.Seccomp.Kind == "" && l.Seccomp != nil {
			to.Seccomp = l.Seccomp
		}
	}
	for _, n := range l.Namespaces {
		if n.Type == specs.TimeNamespace { // all others are the pod's to say
			to.Namespaces = append(to.Namespaces, n)
		}
	}
	for _, d := range l.Devices {
		if !slices.ContainsFunc(to.Devices, func(have specs.LinuxDevice) bool { return have.Path == d.Path }) {
			to.Devices = append(to.Devices, d)
		}
	}
	if l.Resources == nil {
		return
	}
	rules := to.Resources.Devices
	for _, r := range l.Resources.Devices {
		if r.Allow && !privileged {
			rules = append(rules, r) // what is not allowed is denied as it is
		}
	}
	to.Resources = layResources(l.Resources, to.Resources)
	to.Resources.Devices = rules
}
