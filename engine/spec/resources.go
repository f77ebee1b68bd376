package spec

import (
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// devices are nodes to make, and the rules of the device cgroup.
func (b *builder) devices(s *specs.Spec) error {
	hostDevices := b.in.Container.Security.Privileged && !b.in.Settings.PrivilegedWithoutHostDevices
	if hostDevices {
		s.Linux.Devices = slices.Clone(b.in.Host.Devices)
		s.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}}
	} else {
		s.Linux.Resources = &specs.LinuxResources{Devices: defaultRules()}
	}
	for _, d := range b.in.Devices {
		if err := checkDevice(d); err != nil {
			return err
		}
		s.Linux.Devices = slices.DeleteFunc(s.Linux.Devices, func(other specs.LinuxDevice) bool { return other.Path == d.Path })
		b.own(&d.LinuxDevice)
		s.Linux.Devices = append(s.Linux.Devices, d.LinuxDevice)
		if !hostDevices {
			major, minor := d.Major, d.Minor
			s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{
				Allow: true, Type: d.Type, Major: &major, Minor: &minor, Access: d.Permissions,
			})
		}
	}
	return nil
}

// own gives a device to the user and the group that the container names, where the node is configured so.
func (b *builder) own(d *specs.LinuxDevice) {
	security, user := b.in.Container.Security, b.in.User
	if !b.in.Host.DeviceOwnership {
		return
	}
	if security.RunAsUser != nil || security.RunAsUsername != "" {
		d.UID = &user.UID
	}
	if security.RunAsGroup != nil {
		d.GID = &user.GID
	}
}

func checkDevice(d ResolvedDevice) error {
	switch {
	case !path.IsAbs(d.Path) || path.Clean(d.Path) != d.Path || strings.ContainsRune(d.Path, 0):
		return invalid("container path %q of a device: must be absolute and clean", d.Path)
	case d.Type != "c" && d.Type != "b" && d.Type != "p":
		return invalid("device %s has type %q: must be c, b or p", d.Path, d.Type)
	case d.Permissions == "" || strings.Trim(d.Permissions, "rwm") != "":
		return invalid("permissions %q of device %s: must be of the letters rwm", d.Permissions, d.Path)
	}
	return nil
}

// defaultRules deny everything but making nodes, and the devices of every container.
func defaultRules() []specs.LinuxDeviceCgroup {
	rule := func(kind string, access string, numbers ...int64) specs.LinuxDeviceCgroup {
		r := specs.LinuxDeviceCgroup{Allow: true, Type: kind, Access: access}
		if len(numbers) > 0 {
			r.Major = &numbers[0]
		}
		if len(numbers) > 1 {
			r.Minor = &numbers[1]
		}
		return r
	}
	return []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		rule("c", "m"), rule("b", "m"),
		rule("c", "rwm", 1, 3), // null
		rule("c", "rwm", 1, 5), // zero
		rule("c", "rwm", 1, 7), // full
		rule("c", "rwm", 1, 8), // random
		rule("c", "rwm", 1, 9), // urandom
		rule("c", "rwm", 5, 0), // tty
		rule("c", "rwm", 5, 1), // console
		rule("c", "rwm", 5, 2), // ptmx
		rule("c", "rwm", 136),  // pts
	}
}

func (b *builder) resources(s *specs.Spec) error {
	limits, err := LinuxResources(b.in.Container.Resources, b.in.Host)
	if err != nil {
		return err
	}
	limits.Devices, limits.BlockIO = s.Linux.Resources.Devices, b.in.BlockIO
	s.Linux.Resources = limits
	if b.in.RDTClass != "" {
		s.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: b.in.RDTClass}
	}
	return nil
}

// LinuxResources translates limits; zero fields are left unset. The rules for devices are not part of them.
func LinuxResources(r Resources, host Host) (*specs.LinuxResources, error) {
	out := &specs.LinuxResources{Unified: r.Unified}
	var cpu specs.LinuxCPU
	if r.CPUShares != 0 {
		cpu.Shares = &r.CPUShares
	}
	if r.CPUQuota != 0 {
		cpu.Quota = &r.CPUQuota
	}
	if r.CPUPeriod != 0 {
		cpu.Period = &r.CPUPeriod
	}
	cpu.Cpus, cpu.Mems = r.CPUs, r.Mems
	if cpu != (specs.LinuxCPU{}) {
		out.CPU = &cpu
	}
	if err := memory(out, r, host); err != nil {
		return nil, err
	}
	for size, limit := range r.HugepageLimit {
		out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: size, Limit: limit})
	}
	slices.SortFunc(out.HugepageLimits, func(a, b specs.LinuxHugepageLimit) int { return strings.Compare(a.Pagesize, b.Pagesize) })
	for key, value := range r.Unified {
		if key == "" || strings.ContainsAny(key, "/\x00") || strings.HasPrefix(key, "cgroup.") || strings.ContainsRune(value, 0) {
			return nil, invalid("unified resource %q: must be a file of a controller such as memory.high", key)
		}
	}
	return out, nil
}

// memory sets the limits of memory. A limit without one of swap allows no swap at all, as Kubernetes expects.
func memory(out *specs.LinuxResources, r Resources, host Host) error {
	if r.Memory == 0 && r.MemorySwap == 0 {
		return nil
	}
	if r.Memory > 0 && r.MemorySwap > 0 && r.MemorySwap < r.Memory {
		return invalid("memory and swap limit %d is below the memory limit %d", r.MemorySwap, r.Memory)
	}
	out.Memory = &specs.LinuxMemory{}
	if r.Memory != 0 {
		out.Memory.Limit = &r.Memory
	}
	if host.SwapAccounting {
		swap := r.MemorySwap
		if swap == 0 {
			swap = r.Memory
		}
		out.Memory.Swap = &swap
	}
	return nil
}
