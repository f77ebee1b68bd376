package cri

import (
	"slices"
	"strconv"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/internal/cgstat"
)

const (
	counter = runtime.MetricType_COUNTER
	gauge   = runtime.MetricType_GAUGE
)

// families are all metrics; the descriptors are made of them, and never change while the daemon runs.
var families = slices.Concat(cgroupFamilies, containerFamilies, networkFamilies)

// one is a metric with one value.
func one(name, help string, kind runtime.MetricType, value func(*source) uint64) family {
	return family{name: name, help: help, kind: kind, values: func(s *source, emit emitter) { emit(value(s), 0) }}
}

// ofMemory is a metric with one value where memory is accounted for.
func ofMemory(name, help string, kind runtime.MetricType, value func(*cgstat.Memory) uint64) family {
	return family{name: name, help: help, kind: kind, values: func(s *source, emit emitter) {
		if s.sample.Memory != nil {
			emit(value(s.sample.Memory), 0)
		}
	}}
}

func inSeconds(nanoseconds uint64) uint64 { return nanoseconds / uint64(time.Second) }

// ofPressure is a metric of one kind of stall.
func ofPressure(resource, kind, help string, of func(*cgstat.Sample) *cgstat.Pressure, stall func(*cgstat.Pressure) cgstat.Stall) family {
	return family{name: "container_pressure_" + resource + "_" + kind + "_seconds_total", help: help, kind: counter, values: func(s *source, emit emitter) {
		if p := of(s.sample); p != nil {
			emit(inSeconds(stall(p).Total), 0)
		}
	}}
}

// ofDevices is a metric with a value for each block device.
func ofDevices(name, help string, value func(cgstat.Device) uint64) family {
	return family{name: name, help: help, kind: counter, labels: []string{"device"}, values: func(s *source, emit emitter) {
		for _, d := range s.sample.Devices {
			emit(value(d), 0, s.host.device(d))
		}
	}}
}

func ofHugeTLB(name, help string, kind runtime.MetricType, value func(cgstat.HugeTLB) uint64) family {
	return family{name: name, help: help, kind: kind, labels: []string{"pagesize"}, values: func(s *source, emit emitter) {
		for _, h := range s.sample.HugeTLB {
			emit(value(h), 0, h.PageSize)
		}
	}}
}

func cpuPressure(s *cgstat.Sample) *cgstat.Pressure    { return s.CPUPressure }
func memoryPressure(s *cgstat.Sample) *cgstat.Pressure { return s.MemoryPressure }
func ioPressure(s *cgstat.Sample) *cgstat.Pressure     { return s.IOPressure }
func some(p *cgstat.Pressure) cgstat.Stall             { return p.Some }
func full(p *cgstat.Pressure) cgstat.Stall             { return p.Full }

// cgroupFamilies are those of containers and of pods with a cgroup of their own.
var cgroupFamilies = prepared([]family{
	{name: "container_cpu_usage_seconds_total", help: "CPU time used, in seconds.", kind: counter, labels: []string{"cpu"}, values: func(s *source, emit emitter) {
		emit(inSeconds(s.sample.CPU.Usage), 0, "total")
	}},
	one("container_cpu_user_seconds_total", "CPU time used in user mode, in seconds.", counter,
		func(s *source) uint64 { return inSeconds(s.sample.CPU.User) }),
	one("container_cpu_system_seconds_total", "CPU time used in the kernel, in seconds.", counter,
		func(s *source) uint64 { return inSeconds(s.sample.CPU.System) }),
	one("container_cpu_cfs_periods_total", "Periods in which the CPU quota applied.", counter,
		func(s *source) uint64 { return s.sample.CPU.Periods }),
	one("container_cpu_cfs_throttled_periods_total", "Periods in which the CPU quota was used up.", counter,
		func(s *source) uint64 { return s.sample.CPU.Throttled }),
	one("container_cpu_cfs_throttled_seconds_total", "Time for which tasks waited for the next period, in seconds.", counter,
		func(s *source) uint64 { return inSeconds(s.sample.CPU.ThrottledTime) }),

	ofMemory("container_memory_usage_bytes", "Memory in use, page cache included, in bytes.", gauge,
		func(m *cgstat.Memory) uint64 { return m.Usage }),
	ofMemory("container_memory_working_set_bytes", "Memory in use without file pages that were not used lately, in bytes.", gauge, (*cgstat.Memory).WorkingSet),
	ofMemory("container_memory_rss", "Anonymous memory in bytes.", gauge, func(m *cgstat.Memory) uint64 { return m.Anon }),
	ofMemory("container_memory_cache", "Page cache in bytes.", gauge, func(m *cgstat.Memory) uint64 { return m.File }),
	ofMemory("container_memory_mapped_file", "Page cache that is mapped, in bytes.", gauge, func(m *cgstat.Memory) uint64 { return m.Mapped }),
	ofMemory("container_memory_total_active_file_bytes", "File pages that were used lately, in bytes.", gauge,
		func(m *cgstat.Memory) uint64 { return m.ActiveFile }),
	ofMemory("container_memory_total_inactive_file_bytes", "File pages that were not used lately, in bytes.", gauge,
		func(m *cgstat.Memory) uint64 { return m.InactiveFile }),
	ofMemory("container_memory_kernel_usage", "Memory that the kernel uses for it, in bytes.", gauge, func(m *cgstat.Memory) uint64 { return m.Kernel }),
	ofMemory("container_memory_max_usage_bytes", "The most memory that was in use, in bytes.", gauge, func(m *cgstat.Memory) uint64 { return m.Peak }),
	ofMemory("container_memory_failcnt", "How often the memory limit was hit.", counter, func(m *cgstat.Memory) uint64 { return m.Failures }),
	{name: "container_memory_swap", help: "Memory that is swapped out, in bytes.", kind: gauge, values: func(s *source, emit emitter) {
		if m := s.sample.Memory; m != nil && m.HasSwap {
			emit(m.Swap, 0)
		}
	}},
	{name: "container_memory_failures_total", help: "Page faults by type, of the cgroup alone and with those below it.", kind: counter, labels: []string{"failure_type", "scope"}, values: func(s *source, emit emitter) {
		if m := s.sample.Memory; m != nil {
			emit(m.OwnPageFaults, 0, "pgfault", "container")
			emit(m.OwnMajorFaults, 0, "pgmajfault", "container")
			emit(m.PageFaults, 0, "pgfault", "hierarchy")
			emit(m.MajorFaults, 0, "pgmajfault", "hierarchy")
		}
	}},
	one("container_oom_events_total", "Processes that the kernel killed for want of memory.", counter,
		func(s *source) uint64 { return s.sample.OOMKills }),

	ofPressure("cpu", "waiting", "Time for which some task waited for a CPU, in seconds.", cpuPressure, some),
	ofPressure("cpu", "stalled", "Time for which all tasks waited for a CPU, in seconds.", cpuPressure, full),
	ofPressure("memory", "waiting", "Time for which some task waited for memory, in seconds.", memoryPressure, some),
	ofPressure("memory", "stalled", "Time for which all tasks waited for memory, in seconds.", memoryPressure, full),
	ofPressure("io", "waiting", "Time for which some task waited for a disk, in seconds.", ioPressure, some),
	ofPressure("io", "stalled", "Time for which all tasks waited for a disk, in seconds.", ioPressure, full),

	ofHugeTLB("container_hugetlb_usage_bytes", "Huge pages in use, in bytes.", gauge, func(h cgstat.HugeTLB) uint64 { return h.Usage }),
	ofHugeTLB("container_hugetlb_max_usage_bytes", "The most huge pages that were in use, in bytes.", gauge, func(h cgstat.HugeTLB) uint64 { return h.Peak }),
	ofHugeTLB("container_hugetlb_failcnt", "How often the limit of huge pages was hit.", counter, func(h cgstat.HugeTLB) uint64 { return h.Failures }),

	ofDevices("container_fs_reads_bytes_total", "Bytes read from a block device.", func(d cgstat.Device) uint64 { return d.ReadBytes }),
	ofDevices("container_fs_writes_bytes_total", "Bytes written to a block device.", func(d cgstat.Device) uint64 { return d.WriteBytes }),
	ofDevices("container_fs_reads_total", "Reads from a block device.", func(d cgstat.Device) uint64 { return d.Reads }),
	ofDevices("container_fs_writes_total", "Writes to a block device.", func(d cgstat.Device) uint64 { return d.Writes }),
	{name: "container_blkio_device_usage_total", help: "Bytes that went to and from a block device, by operation.", kind: counter, labels: []string{"device", "major", "minor", "operation"}, values: func(s *source, emit emitter) {
		for _, d := range s.sample.Devices {
			device, major, minor := s.host.device(d), strconv.FormatUint(uint64(d.Major), 10), strconv.FormatUint(uint64(d.Minor), 10)
			emit(d.ReadBytes, 0, device, major, minor, "Read")
			emit(d.WriteBytes, 0, device, major, minor, "Write")
			emit(d.DiscardBytes, 0, device, major, minor, "Discard")
		}
	}},

	ofMemory("container_spec_memory_limit_bytes", "Memory limit in bytes, 0 for none.", gauge, func(m *cgstat.Memory) uint64 { return m.Limit }),
	ofMemory("container_spec_memory_swap_limit_bytes", "Limit of swap in bytes, 0 for none.", gauge, func(m *cgstat.Memory) uint64 { return m.SwapLimit }),
	one("container_last_seen", "When this was read, in seconds since 1970.", gauge, func(s *source) uint64 { return uint64(s.sample.At.Unix()) }),
	one("container_start_time_seconds", "When it was started, in seconds since 1970.", gauge, func(s *source) uint64 {
		if s.container != nil {
			return uint64(s.container.Status.StartedAt.Unix())
		}
		return uint64(s.pod.Status.CreatedAt.Unix())
	}),
})
