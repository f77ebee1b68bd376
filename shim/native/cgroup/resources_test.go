package cgroup

//lint:file-ignore SA1019 deprecated fields of the spec are tested too

import (
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestConvert(t *testing.T) {
	tests := map[string]struct {
		spec *specs.LinuxResources
		v    version
		want cgroups.Resources
	}{
		"nothing": {nil, v1, cgroups.Resources{}},
		"memory": {&specs.LinuxResources{Memory: &specs.LinuxMemory{
			Limit: new(int64(1 << 30)), Swap: new(int64(-1)), Reservation: new(int64(1 << 20)),
		}}, v1, cgroups.Resources{Memory: 1 << 30, MemorySwap: -1, MemoryReservation: 1 << 20}},
		"memory knobs": {&specs.LinuxResources{Memory: &specs.LinuxMemory{
			Swappiness: new(uint64(60)), DisableOOMKiller: new(true), CheckBeforeUpdate: new(true), UseHierarchy: new(true), Kernel: new(int64(-1)),
		}}, v1, cgroups.Resources{MemorySwappiness: new(uint64(60)), OomKillDisable: true, MemoryCheckBeforeUpdate: true}},
		"swappiness unset":   {&specs.LinuxResources{Memory: &specs.LinuxMemory{Swappiness: new(uint64(math.MaxUint64))}}, v2, cgroups.Resources{}},
		"oom killer left on": {&specs.LinuxResources{Memory: &specs.LinuxMemory{DisableOOMKiller: new(false)}}, v2, cgroups.Resources{}},
		"cpu v1": {&specs.LinuxResources{CPU: &specs.LinuxCPU{
			Shares: new(uint64(512)), Quota: new(int64(50000)), Period: new(uint64(100000)), Burst: new(uint64(10)), Cpus: "0-1", Mems: "0",
			RealtimeRuntime: new(int64(5)), RealtimePeriod: new(uint64(6)),
		}}, v1, cgroups.Resources{CpuShares: 512, CpuQuota: 50000, CpuPeriod: 100000, CpuBurst: new(uint64(10)), CpusetCpus: "0-1", CpusetMems: "0",
			CpuRtRuntime: 5, CpuRtPeriod: 6}},
		"shares 1024 are weight 100":    {shares(1024), v2, cgroups.Resources{CpuWeight: 100}},
		"shares 2 are weight 1":         {shares(2), v2, cgroups.Resources{CpuWeight: 1}},
		"shares 262144 are weight 1e4":  {shares(262144), v2, cgroups.Resources{CpuWeight: 10000}},
		"shares 0 are unset":            {shares(0), v2, cgroups.Resources{}},
		"shares beyond are the highest": {shares(1 << 40), v2, cgroups.Resources{CpuWeight: 10000}},
		"quota below -1 is unlimited":   {&specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: new(int64(-1000))}}, v2, cgroups.Resources{CpuQuota: -1}},
		"idle":                          {&specs.LinuxResources{CPU: &specs.LinuxCPU{Idle: new(int64(1))}}, v2, cgroups.Resources{CPUIdle: new(int64(1))}},
		"pids and pages": {&specs.LinuxResources{
			Pids:           &specs.LinuxPids{Limit: new(int64(-1))},
			HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}},
			Rdma:           map[string]specs.LinuxRdma{"mlx": {HcaHandles: new(uint32(3))}},
		}, v2, cgroups.Resources{
			PidsLimit:    new(int64(-1)),
			HugetlbLimit: []*cgroups.HugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}},
			Rdma:         map[string]cgroups.LinuxRdma{"mlx": {HcaHandles: new(uint32(3))}},
		}},
		"block io": {&specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{
			Weight:                  new(uint16(500)),
			WeightDevice:            []specs.LinuxWeightDevice{weightDevice(8, 0, 100)},
			ThrottleReadBpsDevice:   []specs.LinuxThrottleDevice{throttle(8, 0, 1000)},
			ThrottleWriteIOPSDevice: []specs.LinuxThrottleDevice{throttle(8, 16, 7)},
		}}, v2, cgroups.Resources{
			BlkioWeight:                  500,
			BlkioWeightDevice:            []*cgroups.WeightDevice{cgroups.NewWeightDevice(8, 0, 100, 0)},
			BlkioThrottleReadBpsDevice:   []*cgroups.ThrottleDevice{cgroups.NewThrottleDevice(8, 0, 1000)},
			BlkioThrottleWriteIOPSDevice: []*cgroups.ThrottleDevice{cgroups.NewThrottleDevice(8, 16, 7)},
		}},
		"network": {&specs.LinuxResources{Network: &specs.LinuxNetwork{
			ClassID: new(uint32(9)), Priorities: []specs.LinuxInterfacePriority{{Name: "eth0", Priority: 2}},
		}}, v1, cgroups.Resources{NetClsClassid: 9, NetPrioIfpriomap: []*cgroups.IfPrioMap{{Interface: "eth0", Priority: 2}}}},
		"unified": {&specs.LinuxResources{Unified: map[string]string{"memory.high": "1000"}}, v2,
			cgroups.Resources{Unified: map[string]string{"memory.high": "1000"}}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			test.want.SkipDevices = true
			got, err := convert(test.spec, test.v)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(*got, test.want) {
				t.Errorf("got %+v\nwant %+v", *got, test.want)
			}
		})
	}
}

func TestConvertRefuses(t *testing.T) {
	memory := func(m specs.LinuxMemory) *specs.LinuxResources { return &specs.LinuxResources{Memory: &m} }
	cpu := func(c specs.LinuxCPU) *specs.LinuxResources { return &specs.LinuxResources{CPU: &c} }
	device := func(d specs.LinuxDeviceCgroup) *specs.LinuxResources {
		return &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{d}}
	}
	tests := map[string]struct {
		spec  *specs.LinuxResources
		v     version
		is    func(error) bool
		names string
	}{
		"negative limit":    {memory(specs.LinuxMemory{Limit: new(int64(-2))}), v1, errdefs.IsInvalidArgument, "memory.limit"},
		"swap below limit":  {memory(specs.LinuxMemory{Limit: new(int64(9)), Swap: new(int64(8))}), v2, errdefs.IsInvalidArgument, "memory.swap"},
		"swap alone v2":     {memory(specs.LinuxMemory{Swap: new(int64(8))}), v2, errdefs.IsInvalidArgument, "memory.swap"},
		"kernel memory":     {memory(specs.LinuxMemory{Kernel: new(int64(9))}), v1, errdefs.IsNotImplemented, "memory.kernel"},
		"tcp memory":        {memory(specs.LinuxMemory{KernelTCP: new(int64(9))}), v1, errdefs.IsNotImplemented, "memory.kernelTCP"},
		"no hierarchy":      {memory(specs.LinuxMemory{UseHierarchy: new(false)}), v1, errdefs.IsNotImplemented, "memory.useHierarchy"},
		"oom killer v2":     {memory(specs.LinuxMemory{DisableOOMKiller: new(true)}), v2, errdefs.IsNotImplemented, "memory.disableOOMKiller"},
		"swappiness v2":     {memory(specs.LinuxMemory{Swappiness: new(uint64(1))}), v2, errdefs.IsNotImplemented, "memory.swappiness"},
		"swappiness 101":    {memory(specs.LinuxMemory{Swappiness: new(uint64(101))}), v1, errdefs.IsInvalidArgument, "memory.swappiness"},
		"realtime v2":       {cpu(specs.LinuxCPU{RealtimeRuntime: new(int64(1))}), v2, errdefs.IsNotImplemented, "cpu.realtimeRuntime"},
		"idle 2":            {cpu(specs.LinuxCPU{Idle: new(int64(2))}), v1, errdefs.IsInvalidArgument, "cpu.idle"},
		"idle with a share": {cpu(specs.LinuxCPU{Idle: new(int64(1)), Shares: new(uint64(5))}), v2, errdefs.IsInvalidArgument, "cpu.idle"},
		"network v2":        {&specs.LinuxResources{Network: &specs.LinuxNetwork{ClassID: new(uint32(1))}}, v2, errdefs.IsNotImplemented, "network"},
		"unified path":      {&specs.LinuxResources{Unified: map[string]string{"../a.b": ""}}, v2, errdefs.IsInvalidArgument, "../a.b"},
		"unified procs":     {&specs.LinuxResources{Unified: map[string]string{"cgroup.procs": "1"}}, v2, errdefs.IsInvalidArgument, "cgroup.procs"},
		"leaf weight":       {&specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{LeafWeight: new(uint16(10))}}, v1, errdefs.IsNotImplemented, "leafWeight"},
		"weight 5":          {&specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: new(uint16(5))}}, v1, errdefs.IsInvalidArgument, "blockIO.weight"},
		"page size":         {&specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "../x"}}}, v1, errdefs.IsInvalidArgument, "hugepageLimits"},
		"device type":       {device(specs.LinuxDeviceCgroup{Type: "p"}), v1, errdefs.IsInvalidArgument, "devices[0].type"},
		"device access":     {device(specs.LinuxDeviceCgroup{Type: "c", Access: "rx"}), v1, errdefs.IsInvalidArgument, "devices[0].access"},
		"device number":     {device(specs.LinuxDeviceCgroup{Type: "c", Major: new(int64(-7))}), v1, errdefs.IsInvalidArgument, "devices[0].major"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := convert(test.spec, test.v)
			if err == nil || !test.is(err) || !strings.Contains(err.Error(), test.names) {
				t.Errorf("got error %v, want one that names %s", err, test.names)
			}
		})
	}
}

func TestConvertDevices(t *testing.T) {
	deny := specs.LinuxDeviceCgroup{Access: "rwm"}
	rules := func(devices ...specs.LinuxDeviceCgroup) []string {
		t.Helper()
		r, err := convert(&specs.LinuxResources{Devices: devices}, v1)
		if err != nil {
			t.Fatal(err)
		}
		if r.SkipDevices {
			t.Error("device rules are skipped")
		}
		var got []string
		for _, d := range r.Devices {
			verb := "deny "
			if d.Allow {
				verb = "allow "
			}
			got = append(got, verb+d.CgroupString())
		}
		return got
	}
	got := rules(deny, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: new(int64(10)), Minor: new(int64(229)), Access: "rw"})
	if got[0] != "deny a *:* rwm" || got[len(got)-1] != "allow c 10:229 rw" || got[3] != "allow c 1:3 rwm" || len(got) != 13 {
		t.Errorf("rules are %q", got)
	}
	// A wildcard type that is narrower than everything must not become the kernel's "a".
	got = rules(specs.LinuxDeviceCgroup{Allow: true, Access: "r"})
	if want := []string{"allow b *:* r", "allow c *:* r"}; !reflect.DeepEqual(got[11:], want) {
		t.Errorf("a read-only wildcard became %q, want %q", got[11:], want)
	}
}

func TestNewLayout(t *testing.T) {
	mount := func(dir, fstype, options string) *mountinfo.Info {
		return &mountinfo.Info{Mountpoint: dir, FSType: fstype, VFSOptions: options}
	}
	l, err := newLayout([]*mountinfo.Info{
		mount("/c/cpu,cpuacct", "cgroup", "rw,cpu,cpuacct"),
		mount("/c/systemd", "cgroup", "rw,xattr,name=systemd"),
		mount("/c/other", "cgroup", "rw,name=other"),
		mount("/again", "cgroup", "rw,cpuacct,cpu"),
		mount("/c/unified", "cgroup2", "rw"),
		mount("/c/memory", "cgroup", "rw,memory"),
	})
	if err != nil {
		t.Fatal(err)
	}
	var dirs []string
	for _, h := range l.all() {
		dirs = append(dirs, h.dir)
	}
	if want := []string{"/c/cpu,cpuacct", "/c/systemd", "/c/memory", "/c/unified"}; !reflect.DeepEqual(dirs, want) {
		t.Errorf("hierarchies are %q, want %q", dirs, want)
	}
	if l.pure() || l.v1With("cpuacct").dir != "/c/cpu,cpuacct" || l.v1With("hugetlb") != nil {
		t.Errorf("layout is %+v", l)
	}
	if _, err := newLayout(nil); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("no mounts: error %v", err)
	}
}

func TestRelative(t *testing.T) {
	for path, ok := range map[string]bool{
		"/a": true, "/kubepods/pod1/c1": true, "/a b": true,
		"": false, "/": false, "a": false, "/a/../b": false, "/a//b": false, "/a/": false, "/./a": false,
		"a.slice:cri:x": false, "/a\nb": false, "/" + strings.Repeat("x", 256): false,
	} {
		_, err := relative(path)
		if ok != (err == nil) || !ok && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: error %v", path, err)
		}
	}
}

func TestParseOOMKills(t *testing.T) {
	for content, want := range map[string]uint64{
		"oom_kill_disable 0\nunder_oom 0\noom_kill 3\n":  3,
		"low 0\nhigh 0\nmax 7\noom 1\noom_kill 12\n":     12,
		"low 0\noom_group_kill 4\noom_kill 0\nother 1\n": 0,
	} {
		if got, err := parseOOMKills(content); err != nil || got != want {
			t.Errorf("%q: got %d, %v, want %d", content, got, err, want)
		}
	}
	if _, err := parseOOMKills("oom_kill_disable 0"); err == nil {
		t.Error("no line: no error")
	}
}

func shares(n uint64) *specs.LinuxResources {
	return &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: &n}}
}

func weightDevice(major, minor int64, weight uint16) specs.LinuxWeightDevice {
	d := specs.LinuxWeightDevice{Weight: &weight}
	d.Major, d.Minor = major, minor
	return d
}

func throttle(major, minor int64, rate uint64) specs.LinuxThrottleDevice {
	d := specs.LinuxThrottleDevice{Rate: rate}
	d.Major, d.Minor = major, minor
	return d
}
