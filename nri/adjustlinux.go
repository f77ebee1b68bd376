package nri

import (
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/engine"
)

func adjustLinux(s *specs.Spec, a *api.LinuxContainerAdjustment, names resolver, out *engine.Adjusted) error {
	if a == nil {
		return nil
	}
	if p := a.GetCgroupsPath(); p != "" {
		if !path.IsAbs(p) || path.Clean(p) != p || p == "/" || strings.ContainsRune(p, 0) {
			return invalid("linux.cgroups_path %q: must be an absolute and clean path below /", p)
		}
		s.Linux.CgroupsPath = p
	}
	if score := a.GetOomScoreAdj().Get(); score != nil {
		if *score < -1000 || *score > 1000 {
			return invalid("linux.oom_score_adj %d: must be between -1000 and 1000", *score)
		}
		s.Process.OOMScoreAdj = score
	}
	if p := a.GetIoPriority(); p != nil {
		s.Process.IOPriority = p.ToOCI()
		if s.Process.IOPriority.Class == "" || p.GetClass() == api.IOPrioClass_IOPRIO_CLASS_NONE {
			s.Process.IOPriority = nil
		}
	}
	if scheduler := a.GetScheduler(); scheduler != nil {
		s.Process.Scheduler = scheduler.ToOCI()
	}
	if policy := a.GetMemoryPolicy(); policy != nil {
		s.Linux.MemoryPolicy = policy.ToOCI()
	}
	if err := adjustDevices(s, a.GetDevices()); err != nil {
		return err
	}
	if err := adjustNamespaces(s, a.GetNamespaces(), out); err != nil {
		return err
	}
	adjustSeccomp(s, a.GetSeccompPolicy())
	s.Linux.Sysctl = adjustMap(s.Linux.Sysctl, a.GetSysctl())
	for device, d := range a.GetNetDevices() {
		name, marked := api.IsMarkedForRemoval(device)
		s.Linux.NetDevices = maps.Clone(s.Linux.NetDevices)
		if marked {
			delete(s.Linux.NetDevices, name)
			continue
		}
		if s.Linux.NetDevices == nil {
			s.Linux.NetDevices = map[string]specs.LinuxNetDevice{}
		}
		s.Linux.NetDevices[name] = d.ToOCI()
	}
	if err := named("linux.resources", adjustResources(s, a.GetResources(), names)); err != nil {
		return err
	}
	adjustRdt(s, a.GetRdt())
	return nil
}

func adjustDevices(s *specs.Spec, devices []*api.LinuxDevice) error {
	for _, d := range devices {
		name, marked := d.IsMarkedForRemoval()
		if !path.IsAbs(name) || path.Clean(name) != name || strings.ContainsRune(name, 0) {
			return invalid("linux.devices: path %q must be absolute and clean", name)
		}
		s.Linux.Devices = slices.DeleteFunc(slices.Clone(s.Linux.Devices), func(old specs.LinuxDevice) bool { return old.Path == name })
		if marked {
			continue
		}
		device := d.ToOCI()
		if !slices.Contains([]string{"c", "u", "b", "p"}, device.Type) {
			return invalid("linux.devices: type %q of %s must be c, u, b or p", device.Type, name)
		}
		s.Linux.Devices = append(s.Linux.Devices, device)
		if device.Type == "p" {
			continue
		}
		rule := specs.LinuxDeviceCgroup{Allow: true, Type: device.Type, Major: &device.Major, Minor: &device.Minor, Access: d.AccessString()}
		if rule.Type == "u" {
			rule.Type = "c"
		}
		limits(s).Devices = append(slices.Clip(limits(s).Devices), rule)
	}
	return nil
}

func limits(s *specs.Spec) *specs.LinuxResources {
	if s.Linux.Resources == nil {
		s.Linux.Resources = &specs.LinuxResources{}
	}
	return s.Linux.Resources
}

func adjustNamespaces(s *specs.Spec, namespaces []*api.LinuxNamespace, out *engine.Adjusted) error {
	for _, n := range namespaces {
		name, marked := n.IsMarkedForRemoval()
		kind := specs.LinuxNamespaceType(name)
		if !slices.Contains([]specs.LinuxNamespaceType{
			specs.PIDNamespace, specs.NetworkNamespace, specs.MountNamespace, specs.IPCNamespace, specs.UTSNamespace,
			specs.UserNamespace, specs.CgroupNamespace, specs.TimeNamespace,
		}, kind) {
			return invalid("linux.namespaces: type %q is not known", name)
		}
		out.Namespaces = append(out.Namespaces, kind)
		s.Linux.Namespaces = slices.DeleteFunc(slices.Clone(s.Linux.Namespaces), func(old specs.LinuxNamespace) bool { return old.Type == kind })
		if !marked {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: kind, Path: n.GetPath()})
		}
	}
	return nil
}

func adjustSeccomp(s *specs.Spec, policy *api.LinuxSeccomp) {
	if policy == nil {
		return
	}
	out := &specs.LinuxSeccomp{
		DefaultAction: specs.LinuxSeccompAction(policy.GetDefaultAction()), ListenerPath: policy.GetListenerPath(),
		ListenerMetadata: policy.GetListenerMetadata(), Syscalls: api.ToOCILinuxSyscalls(policy.GetSyscalls()),
	}
	if code := policy.GetDefaultErrno().Get(); code != nil {
		value := uint(*code)
		out.DefaultErrnoRet = &value
	}
	for _, arch := range policy.GetArchitectures() {
		out.Architectures = append(out.Architectures, specs.Arch(arch))
	}
	for _, flag := range policy.GetFlags() {
		out.Flags = append(out.Flags, specs.LinuxSeccompFlag(flag))
	}
	s.Linux.Seccomp = out
}

// adjustResources lays limits over those of the spec. What they are based on is shared with nobody afterwards.
func adjustResources(s *specs.Spec, r *api.LinuxResources, names resolver) error {
	if r == nil {
		return nil
	}
	to := *limits(s)
	s.Linux.Resources = &to
	to.CPU, to.Memory = adjustCPU(to.CPU, r.GetCpu()), adjustMemory(to.Memory, r.GetMemory())
	for _, h := range r.GetHugepageLimits() {
		if h.GetPageSize() == "" {
			return invalid("hugepage_limits: page_size is empty")
		}
		to.HugepageLimits = slices.DeleteFunc(slices.Clone(to.HugepageLimits), func(old specs.LinuxHugepageLimit) bool {
			return old.Pagesize == h.GetPageSize()
		})
		to.HugepageLimits = append(to.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	for key, value := range r.GetUnified() {
		if key == "" || strings.ContainsAny(key, "/\x00") || strings.HasPrefix(key, "cgroup.") || strings.ContainsRune(value, 0) {
			return invalid("unified %q: must be a file of a controller such as memory.high", key)
		}
	}
	if len(r.GetUnified()) > 0 {
		to.Unified = adjustMap(to.Unified, r.GetUnified())
	}
	if pids := r.GetPids(); pids != nil {
		limit := pids.GetLimit()
		to.Pids = &specs.LinuxPids{Limit: &limit}
		if limit < 0 {
			to.Pids = nil
		}
	}
	for _, d := range r.GetDevices() {
		to.Devices = append(slices.Clip(to.Devices), specs.LinuxDeviceCgroup{
			Allow: d.GetAllow(), Type: d.GetType(), Major: d.GetMajor().Get(), Minor: d.GetMinor().Get(), Access: d.GetAccess(),
		})
	}
	if class := r.GetRdtClass().Get(); class != nil {
		s.Linux.IntelRdt = nil
		if *class != "" {
			s.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: *class}
		}
	}
	class := r.GetBlockioClass().Get()
	if class == nil {
		return nil
	}
	to.BlockIO = nil
	if *class == "" {
		return nil
	}
	limits, err := names.blockIO(*class)
	to.BlockIO = limits
	return err
}

func adjustCPU(old *specs.LinuxCPU, c *api.LinuxCPU) *specs.LinuxCPU {
	var to specs.LinuxCPU
	if old != nil {
		to = *old
	}
	set(&to.Shares, c.GetShares().Get())
	set(&to.Quota, c.GetQuota().Get())
	set(&to.Period, c.GetPeriod().Get())
	set(&to.RealtimeRuntime, c.GetRealtimeRuntime().Get())
	set(&to.RealtimePeriod, c.GetRealtimePeriod().Get())
	if cpus := c.GetCpus(); cpus != "" {
		to.Cpus = cpus
	}
	if mems := c.GetMems(); mems != "" {
		to.Mems = mems
	}
	if to == (specs.LinuxCPU{}) {
		return nil
	}
	return &to
}

// adjustMemory allows no swap where a limit is set and swap is not spoken of, as everywhere.
func adjustMemory(old *specs.LinuxMemory, m *api.LinuxMemory) *specs.LinuxMemory {
	var to specs.LinuxMemory
	if old != nil {
		to = *old
	}
	if limit := m.GetLimit().Get(); limit != nil {
		to.Limit, to.Swap = limit, limit
	}
	set(&to.Swap, m.GetSwap().Get())
	set(&to.Reservation, m.GetReservation().Get())
	//lint:ignore SA1019 the runtime says that it does not do it
	set(&to.Kernel, m.GetKernel().Get())
	set(&to.KernelTCP, m.GetKernelTcp().Get())
	set(&to.Swappiness, m.GetSwappiness().Get())
	set(&to.DisableOOMKiller, m.GetDisableOomKiller().Get())
	set(&to.UseHierarchy, m.GetUseHierarchy().Get())
	if to == (specs.LinuxMemory{}) {
		return nil
	}
	return &to
}

func set[T any](to **T, value *T) {
	if value != nil {
		*to = value
	}
}

func adjustRdt(s *specs.Spec, r *api.LinuxRdt) {
	nothing := r.GetClosId() == nil && r.GetSchemata() == nil && r.GetEnableMonitoring() == nil
	if nothing && !r.GetRemove() {
		return
	}
	var to specs.LinuxIntelRdt
	if s.Linux.IntelRdt != nil && !r.GetRemove() {
		to = *s.Linux.IntelRdt
	}
	if id := r.GetClosId().Get(); id != nil {
		to.ClosID = *id
	}
	if schemata := r.GetSchemata().Get(); schemata != nil {
		to.Schemata = *schemata
	}
	if monitoring := r.GetEnableMonitoring().Get(); monitoring != nil {
		to.EnableMonitoring = *monitoring
	}
	s.Linux.IntelRdt = &to
	if nothing {
		s.Linux.IntelRdt = nil
	}
}
