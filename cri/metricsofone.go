package cri

import (
	"github.com/criserver/criserver/engine"
	"github.com/criserver/criserver/engine/spec"
)

// ofProcesses is a metric with one value where the processes were looked at.
func ofProcesses(name, help string, value func(*engine.ProcessUsage) uint64) family {
	return family{name: name, help: help, kind: gauge, values: func(s *source, emit emitter) {
		if p := s.container.Processes; p != nil {
			emit(value(p), 0)
		}
	}}
}

// ofResources is a metric of a limit where one was asked for.
func ofResources(name, help string, value func(spec.Resources) uint64) family {
	return family{name: name, help: help, kind: gauge, values: func(s *source, emit emitter) {
		if v := value(s.container.Status.Container.Resources); v != 0 {
			emit(v, 0)
		}
	}}
}

// ofDisk is a metric of the filesystem of writable layers, and layer one of the container's own.
func ofDisk(name, help string, value func(*diskInfo) uint64) family {
	return family{name: name, help: help, kind: gauge, labels: []string{"device"}, values: func(s *source, emit emitter) {
		if d := s.host.disk; d != nil {
			emit(value(d), 0, d.device)
		}
	}}
}

// containerFamilies are those of containers only.
var containerFamilies = prepared([]family{
	ofProcesses("container_processes", "Processes of the container.", func(p *engine.ProcessUsage) uint64 { return p.Processes }),
	ofProcesses("container_threads", "Threads of the container's processes.", func(p *engine.ProcessUsage) uint64 { return p.Threads }),
	ofProcesses("container_file_descriptors", "File descriptors that the container's processes have open.",
		func(p *engine.ProcessUsage) uint64 { return p.Descriptors }),
	ofProcesses("container_sockets", "Sockets among those file descriptors.", func(p *engine.ProcessUsage) uint64 { return p.Sockets }),
	{name: "container_threads_max", help: "How many threads the container may have.", kind: gauge, values: func(s *source, emit emitter) {
		p := s.sample.Pids
		switch {
		case p != nil && p.Limit != 0:
			emit(p.Limit, 0)
		case s.container.Processes != nil:
			emit(s.container.Processes.ThreadsMax, 0)
		}
	}},
	{name: "container_ulimits_soft", help: "Soft limits of the container's first process.", kind: gauge, labels: []string{"ulimit"}, values: func(s *source, emit emitter) {
		if p := s.container.Processes; p != nil && p.MaxOpenFiles > 0 { // no limit cannot be told
			emit(uint64(p.MaxOpenFiles), 0, "max_open_files")
		}
	}},

	{name: "container_fs_usage_bytes", help: "What the writable layer takes on disk, in bytes.", kind: gauge, labels: []string{"device"}, values: func(s *source, emit emitter) {
		if l := s.container.Layer; l != nil && s.host.disk != nil {
			emit(l.Bytes, l.At.UnixNano(), s.host.disk.device)
		}
	}},
	ofDisk("container_fs_limit_bytes", "Size of the filesystem with the writable layer, in bytes.", func(d *diskInfo) uint64 { return d.bytes }),
	ofDisk("container_fs_inodes_total", "Inodes of the filesystem with the writable layer.", func(d *diskInfo) uint64 { return d.inodes }),
	ofDisk("container_fs_inodes_free", "Free inodes of the filesystem with the writable layer.", func(d *diskInfo) uint64 { return d.inodesFree }),

	ofResources("container_spec_cpu_period", "Period of the CPU quota, in microseconds.", func(r spec.Resources) uint64 { return r.CPUPeriod }),
	ofResources("container_spec_cpu_quota", "CPU time allowed in a period, in microseconds.", func(r spec.Resources) uint64 { return uint64(max(r.CPUQuota, 0)) }),
	ofResources("container_spec_cpu_shares", "CPU shares asked for.", func(r spec.Resources) uint64 { return r.CPUShares }),
})

// ofLinks is a metric with a value for each interface of a pod.
func ofLinks(name, help string, value func(p *engine.PodStats, i int) uint64) family {
	return family{name: "container_network_" + name + "_total", help: "All " + help + ".", kind: counter, labels: []string{"interface"}, values: func(s *source, emit emitter) {
		for i := range s.pod.Links {
			emit(value(s.pod, i), 0, s.pod.Links[i].Name)
		}
	}}
}

// networkFamilies are those of pods with a network of their own.
var networkFamilies = prepared([]family{
	ofLinks("receive_bytes", "bytes received", func(p *engine.PodStats, i int) uint64 { return p.Links[i].RxBytes }),
	ofLinks("receive_packets", "packets received", func(p *engine.PodStats, i int) uint64 { return p.Links[i].RxPackets }),
	ofLinks("receive_packets_dropped", "packets dropped while receiving", func(p *engine.PodStats, i int) uint64 { return p.Links[i].RxDropped }),
	ofLinks("receive_errors", "errors encountered while receiving", func(p *engine.PodStats, i int) uint64 { return p.Links[i].RxErrors }),
	ofLinks("transmit_bytes", "bytes transmitted", func(p *engine.PodStats, i int) uint64 { return p.Links[i].TxBytes }),
	ofLinks("transmit_packets", "packets transmitted", func(p *engine.PodStats, i int) uint64 { return p.Links[i].TxPackets }),
	ofLinks("transmit_packets_dropped", "packets dropped while transmitting", func(p *engine.PodStats, i int) uint64 { return p.Links[i].TxDropped }),
	ofLinks("transmit_errors", "errors encountered while transmitting", func(p *engine.PodStats, i int) uint64 { return p.Links[i].TxErrors }),
})
