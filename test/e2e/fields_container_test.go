package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// groups is an image whose user is a member of a group.
const groups = "k8s-staging-cri-tools/test-image-predefined-group:latest"

// with changes a container's security context.
func with(change func(*runtimev1.LinuxContainerSecurityContext)) containerOption {
	return func(c *runtimev1.ContainerConfig) { change(c.Linux.SecurityContext) }
}

func capabilities(c *runtimev1.Capability) containerOption {
	return with(func(s *runtimev1.LinuxContainerSecurityContext) { s.Capabilities = c })
}

func asUser(uid int64) containerOption {
	return with(func(s *runtimev1.LinuxContainerSecurityContext) { s.RunAsUser = &runtimev1.Int64Value{Value: uid} })
}

func seccomp(kind runtimev1.SecurityProfile_ProfileType, path string) containerOption {
	return with(func(s *runtimev1.LinuxContainerSecurityContext) {
		s.Seccomp = &runtimev1.SecurityProfile{ProfileType: kind, LocalhostRef: path}
	})
}

func apparmor(kind runtimev1.SecurityProfile_ProfileType, name string) containerOption {
	return with(func(s *runtimev1.LinuxContainerSecurityContext) {
		s.Apparmor = &runtimev1.SecurityProfile{ProfileType: kind, LocalhostRef: name}
	})
}

func device(host, inside, permissions string) containerOption {
	return func(c *runtimev1.ContainerConfig) {
		c.Devices = append(c.Devices, &runtimev1.Device{HostPath: host, ContainerPath: inside, Permissions: permissions})
	}
}

func fromImage(name string) containerOption {
	return func(c *runtimev1.ContainerConfig) { c.Image.Image = image(name) }
}

// ofInit prints a line of /proc/1/status: of the container's first process.
func ofInit(field string) string { return "sed -n 's/^" + field + ":[[:space:]]*//p' /proc/1/status" }

// shown is a test of what is seen inside a container: each command prints what it is said to, white space made one.
type shown struct {
	asks   []containerOption
	inside map[string]string
}

func (s shown) check(t *testing.T, p *pod) {
	t.Helper()
	c := p.run(t, append([]containerOption{command("sleep", "1000")}, s.asks...)...)
	for script, want := range s.inside {
		if got := strings.Join(strings.Fields(c.output(t, "sh", "-c", script)), " "); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	c.stop(t, 0)
	c.remove(t)
}

// refuses prints a word when it is not possible to write at a path.
func refuses(command string) string { return "(" + command + ") 2>/dev/null || echo refused" }

// TestProcessFields sets what the first process of a container is.
func TestProcessFields(t *testing.T) {
	n := sharedNode(t)
	if err := n.pull(groups); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.forget(t, image(groups)) })
	p := n.runPod(t, hostNetwork)
	for name, one := range map[string]shown{
		"command and args": {[]containerOption{func(c *runtimev1.ContainerConfig) {
			c.Command, c.Args = []string{"sh", "-c"}, []string{"exec sleep $1", "sh", "1003"}
		}}, map[string]string{`tr '\0' ' ' </proc/1/cmdline`: "sleep 1003"}},
		"working_dir": {[]containerOption{func(c *runtimev1.ContainerConfig) { c.WorkingDir = "/var/log" }},
			map[string]string{"readlink /proc/1/cwd; pwd": "/var/log /var/log"}},
		"envs": {[]containerOption{func(c *runtimev1.ContainerConfig) {
			c.Envs = []*runtimev1.KeyValue{{Key: "GIVEN", Value: []byte("a=b")}, {Key: "EMPTY"}, {Key: "HOME", Value: []byte("/var")}}
		}}, map[string]string{`tr '\0' '\n' </proc/1/environ | grep -E '^(GIVEN|EMPTY|HOME)=' | sort`: "EMPTY= GIVEN=a=b HOME=/var"}},
		"run_as_user and run_as_group": {[]containerOption{asUser(1234), with(func(s *runtimev1.LinuxContainerSecurityContext) {
			s.RunAsGroup = &runtimev1.Int64Value{Value: 2345}
		})}, map[string]string{ofInit("Uid"): "1234 1234 1234 1234", ofInit("Gid"): "2345 2345 2345 2345", "id -u; id -g": "1234 2345"}},
		"run_as_username": {[]containerOption{with(func(s *runtimev1.LinuxContainerSecurityContext) { s.RunAsUsername = "www-data" })},
			map[string]string{ofInit("Uid"): "33 33 33 33", ofInit("Gid"): "33 33 33 33"}},
		"supplemental_groups": {[]containerOption{fromImage(groups), with(func(s *runtimev1.LinuxContainerSecurityContext) {
			s.SupplementalGroups = []int64{4242}
		})}, map[string]string{ofInit("Groups"): "1000 4242 50000", "id -u": "1000"}},
		"supplemental_groups_policy": {[]containerOption{fromImage(groups), with(func(s *runtimev1.LinuxContainerSecurityContext) {
			s.SupplementalGroups, s.SupplementalGroupsPolicy = []int64{4242}, runtimev1.SupplementalGroupsPolicy_Strict
		})}, map[string]string{ofInit("Groups"): "1000 4242"}},
		"no_new_privs": {[]containerOption{with(func(s *runtimev1.LinuxContainerSecurityContext) { s.NoNewPrivs = true })},
			map[string]string{ofInit("NoNewPrivs"): "1"}},
		"capabilities": {[]containerOption{capabilities(&runtimev1.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_ADMIN"}})},
			map[string]string{ofInit("CapEff"): fmt.Sprintf("%016x", 1<<12), ofInit("CapBnd"): fmt.Sprintf("%016x", 1<<12)}},
		"add_ambient_capabilities": {[]containerOption{asUser(1000), capabilities(&runtimev1.Capability{AddAmbientCapabilities: []string{"CAP_NET_BIND_SERVICE"}})},
			map[string]string{ofInit("CapAmb"): fmt.Sprintf("%016x", 1<<10), ofInit("CapEff"): fmt.Sprintf("%016x", 1<<10)}},
		"readonly_rootfs": {[]containerOption{with(func(s *runtimev1.LinuxContainerSecurityContext) { s.ReadonlyRootfs = true })},
			map[string]string{refuses(": >/x"): "refused", refuses(": >/etc/hosts"): "refused"}},
		"masked_paths and readonly_paths": {[]containerOption{with(func(s *runtimev1.LinuxContainerSecurityContext) {
			s.MaskedPaths, s.ReadonlyPaths = []string{"/etc/passwd", "/usr"}, []string{"/var"}
		})}, map[string]string{"cat /etc/passwd; ls /usr": "", refuses(": >/var/x"): "refused", ": >/tmp/x && echo written": "written"}},
	} {
		t.Run(name, func(t *testing.T) { one.check(t, p) })
	}
}

// TestPrivileged compares with what the node has; a pod that was not made for it refuses.
func TestPrivileged(t *testing.T) {
	n := sharedNode(t)
	privileged := with(func(s *runtimev1.LinuxContainerSecurityContext) { s.Privileged = true })
	_, err := n.runPod(t, hostNetwork).tryCreate(privileged)
	wantCode(t, err, codes.InvalidArgument, "privileged")

	var bounding string
	own, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(own)) {
		if value, ok := strings.CutPrefix(line, "CapBnd:"); ok {
			bounding = strings.TrimSpace(value)
		}
	}
	p := n.runPod(t, hostNetwork, func(c *runtimev1.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	shown{[]containerOption{privileged}, map[string]string{
		ofInit("CapEff"): bounding, ofInit("Seccomp"): "0", "grep -c ' /sys sysfs rw' /proc/mounts": "1", "test -c /dev/kmsg && echo device": "device",
	}}.check(t, p)
	shown{nil, map[string]string{"grep -c ' /sys sysfs ro' /proc/mounts": "1", "test -c /dev/kmsg || echo none": "none"}}.check(t, p)
}

// TestProfiles confines by seccomp and AppArmor, in the fields of today and in those of old.
func TestProfiles(t *testing.T) {
	n := sharedNode(t)
	profile := filepath.Join(place.Dir, "no-mkdir.json")
	text := `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]}`
	if err := os.WriteFile(profile, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(profile) })
	old := func(path string) containerOption {
		//lint:ignore SA1019 clients may still send the deprecated field
		return with(func(s *runtimev1.LinuxContainerSecurityContext) { s.SeccompProfilePath = path })
	}
	oldArmor := func(name string) containerOption {
		//lint:ignore SA1019 clients may still send the deprecated field
		return with(func(s *runtimev1.LinuxContainerSecurityContext) { s.ApparmorProfile = name })
	}
	const armor = "{ cat /proc/1/attr/current 2>/dev/null || echo off; } | sed 's/off/unconfined/'"
	p := n.runPod(t, hostNetwork)
	for name, one := range map[string]shown{
		"seccomp RuntimeDefault": {[]containerOption{seccomp(runtimev1.SecurityProfile_RuntimeDefault, "")}, map[string]string{ofInit("Seccomp"): "2", "mkdir /x && echo made": "made"}},
		"seccomp Unconfined":     {[]containerOption{seccomp(runtimev1.SecurityProfile_Unconfined, "")}, map[string]string{ofInit("Seccomp"): "0"}},
		"seccomp Localhost":      {[]containerOption{seccomp(runtimev1.SecurityProfile_Localhost, profile)}, map[string]string{ofInit("Seccomp"): "2", refuses("mkdir /x"): "refused"}},
		"seccomp_profile_path":   {[]containerOption{old("localhost/" + profile)}, map[string]string{ofInit("Seccomp"): "2", refuses("mkdir /x"): "refused"}},
		"the new field counts":   {[]containerOption{old("localhost/" + profile), seccomp(runtimev1.SecurityProfile_Unconfined, "")}, map[string]string{ofInit("Seccomp"): "0"}},
		"apparmor Unconfined":    {[]containerOption{apparmor(runtimev1.SecurityProfile_Unconfined, "")}, map[string]string{armor: "unconfined"}},
		"apparmor_profile":       {[]containerOption{oldArmor("unconfined")}, map[string]string{armor: "unconfined"}},
	} {
		t.Run(name, func(t *testing.T) { one.check(t, p) })
	}
	for name, one := range map[string]struct {
		ask      containerOption
		code     codes.Code
		mentions string
	}{
		"apparmor not loaded":          {apparmor(runtimev1.SecurityProfile_Localhost, "no-such-profile"), codes.FailedPrecondition, "no-such-profile"},
		"apparmor_profile not loaded":  {oldArmor("localhost/no-such-profile"), codes.FailedPrecondition, "no-such-profile"},
		"apparmor without a name":      {apparmor(runtimev1.SecurityProfile_Localhost, ""), codes.InvalidArgument, "apparmor.localhost_ref"},
		"apparmor_profile of no kind":  {oldArmor("x"), codes.InvalidArgument, "apparmor"},
		"seccomp of no file":           {seccomp(runtimev1.SecurityProfile_Localhost, "/no/such.json"), codes.InvalidArgument, "/no/such.json"},
		"seccomp of a relative path":   {seccomp(runtimev1.SecurityProfile_Localhost, "x.json"), codes.InvalidArgument, "seccomp.localhost_ref"},
		"seccomp of no type":           {seccomp(9, ""), codes.InvalidArgument, "seccomp.profile_type"},
		"seccomp_profile_path of none": {old("x"), codes.InvalidArgument, "seccomp"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := p.tryCreate(one.ask)
			wantCode(t, err, one.code, one.mentions)
		})
	}
}

// TestDevices makes a device of the node known under another name, with part of the permissions.
func TestDevices(t *testing.T) {
	n := sharedNode(t)
	p := n.runPod(t, hostNetwork)
	for permissions, want := range map[string]string{"w": "1:b open", "r": "1:b refused"} {
		t.Run(permissions, func(t *testing.T) {
			shown{[]containerOption{device("/dev/kmsg", "/dev/mine", permissions)}, map[string]string{
				"stat -c %t:%T /dev/mine; " + refuses(": >/dev/mine && echo open"): want,
			}}.check(t, p)
		})
	}
	_, err := p.tryCreate(device("/dev/null", "/dev/mine", "x"))
	wantCode(t, err, codes.InvalidArgument, "config.devices[0].permissions")
	_, err = p.tryCreate(device("/no/such/device", "/dev/mine", "r"))
	wantCode(t, err, codes.InvalidArgument, "/no/such/device")
}

// TestLimits sets every limit and reads it from the cgroup, and from the status.
func TestLimits(t *testing.T) {
	p := sharedNode(t).runPod(t, hostNetwork)
	asked := &runtimev1.LinuxContainerResources{
		CpuPeriod: 50000, CpuQuota: 25000, CpuShares: 300, CpusetCpus: "0", CpusetMems: "0",
		MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 96 << 20, OomScoreAdj: 500,
	}
	c := p.run(t, command("sleep", "1000"), resources(asked))
	path := c.cgroup(t)
	want := limits{strconv.Itoa(64 << 20), "25000 50000", weight("300", "39"), "0"}
	if got := limitsOf(t, path); got != want {
		t.Errorf("limits are %+v, want %+v", got, want)
	}
	if got := cgroupFile(t, path, "cpuset.mems", "cpuset.mems"); got != "0" {
		t.Errorf("cpuset.mems is %q", got)
	}
	if swap := swapLimit(path); swap != "" && swap != weight(strconv.Itoa(96<<20), strconv.Itoa(32<<20)) {
		t.Errorf("the limit of swap is %s", swap)
	}
	for pid, score := range scores(t, path) {
		if score != "500" {
			t.Errorf("process %s has the score %s", pid, score)
		}
	}
	got := c.status(t).GetResources().GetLinux()
	if got.CpuPeriod != 50000 || got.CpuQuota != 25000 || got.CpuShares != 300 || got.CpusetCpus != "0" || got.CpusetMems != "0" ||
		got.MemoryLimitInBytes != 64<<20 || got.MemorySwapLimitInBytes != 96<<20 || got.OomScoreAdj != 500 {
		t.Errorf("the status has %v", got)
	}
	for field, r := range map[string]*runtimev1.LinuxContainerResources{
		"cpu_period": {CpuPeriod: -1}, "cpu_quota": {CpuQuota: -2}, "cpu_shares": {CpuShares: -1}, "memory_limit_in_bytes": {MemoryLimitInBytes: -2},
		"memory_swap_limit_in_bytes": {MemorySwapLimitInBytes: -2}, "oom_score_adj": {OomScoreAdj: 1001}, "cpuset_cpus": {CpusetCpus: "a"},
		"cpuset_mems": {CpusetMems: "0-"}, "unified": {Unified: map[string]string{"x/y": "1"}},
		"hugepage_limits.page_size": {HugepageLimits: []*runtimev1.HugepageLimit{{PageSize: "2"}}},
	} {
		_, err := p.tryCreate(resources(r))
		wantCode(t, err, codes.InvalidArgument, "config.linux.resources."+field)
	}
}

// swapLimit is "" where the kernel accounts no swap.
func swapLimit(path string) string {
	for _, file := range []string{"/sys/fs/cgroup/memory" + path + "/memory.memsw.limit_in_bytes", "/sys/fs/cgroup" + path + "/memory.swap.max"} {
		if text, err := os.ReadFile(file); err == nil {
			return strings.TrimSpace(string(text))
		}
	}
	return ""
}

// TestUnifiedLimits needs cgroup v2 for memory; where there is none it is refused by name. Huge pages are limited in either.
func TestUnifiedLimits(t *testing.T) {
	p := sharedNode(t).runPod(t, hostNetwork)
	c := p.create(t, command("sleep", "1000"), resources(&runtimev1.LinuxContainerResources{Unified: map[string]string{"memory.high": strconv.Itoa(32 << 20)}}))
	switch err := c.tryStart(); {
	case onV1():
		if err == nil || !strings.Contains(err.Error(), "memory.high") {
			t.Errorf("memory.high on cgroup v1: %v", err)
		}
	case err != nil:
		t.Error(err)
	default:
		if got := cgroupFile(t, c.cgroup(t), "", "memory.high"); got != strconv.Itoa(32<<20) {
			t.Errorf("memory.high is %s", got)
		}
	}
	if _, err := os.Stat("/sys/kernel/mm/hugepages/hugepages-2048kB"); err != nil {
		t.Skip("the kernel has no huge pages of 2 MiB")
	}
	c = p.run(t, command("sleep", "1000"), resources(&runtimev1.LinuxContainerResources{HugepageLimits: []*runtimev1.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}}}))
	if got := cgroupFile(t, c.cgroup(t), "hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max"); got != strconv.Itoa(4<<20) {
		t.Errorf("the limit of huge pages is %s", got)
	}
}

// TestContainerAsAsked finds what is only kept in the answers, and has a signal of its own stop a container.
func TestContainerAsAsked(t *testing.T) {
	n := sharedNode(t)
	p := n.runPod(t, hostNetwork)
	ctx, cancel := callContext()
	defer cancel()
	found, err := n.d.Images.ImageStatus(ctx, &runtimev1.ImageStatusRequest{Image: &runtimev1.ImageSpec{Image: image(busybox)}})
	if err != nil {
		t.Fatal(err)
	}
	c := p.run(t, shell("trap 'exit 7' USR1; echo ready; while :; do sleep 0.1; done"), func(c *runtimev1.ContainerConfig) {
		c.Metadata.Attempt = 3
		c.Labels, c.Annotations = map[string]string{"label": "l"}, map[string]string{"annotation": "a"}
		c.StopSignal = runtimev1.Signal_SIGNAL_SIGUSR1
		c.Image = &runtimev1.ImageSpec{
			Image: found.Image.Id, UserSpecifiedImage: image(busybox), RuntimeHandler: "native",
			Annotations: map[string]string{"of.the/image": "has no effect"}, ImageRef: found.Image.Id,
		}
	})
	s := c.status(t)
	if s.Metadata.Attempt != 3 || s.Labels["label"] != "l" || s.Annotations["annotation"] != "a" || s.StopSignal != runtimev1.Signal_SIGNAL_SIGUSR1 ||
		s.Image.UserSpecifiedImage != image(busybox) || s.ImageId != found.Image.Id || s.LogPath != c.logFile {
		t.Errorf("the status is %v", s)
	}
	eventually(t, callTimeout, func() error {
		if got := c.logText(t, "stdout"); got != "ready\n" {
			return fmt.Errorf("log %q", got)
		}
		return nil
	})
	c.stop(t, 20)
	if s := c.status(t); s.ExitCode != 7 {
		t.Errorf("exit code %d after stop_signal", s.ExitCode)
	}
	for field, change := range map[string]containerOption{
		"config.image.runtime_handler": func(c *runtimev1.ContainerConfig) { c.Image.RuntimeHandler = "nothing" },
		"config.stop_signal":           func(c *runtimev1.ContainerConfig) { c.StopSignal = 999 },
		"config.windows":               func(c *runtimev1.ContainerConfig) { c.Windows = &runtimev1.WindowsContainerConfig{} },
		"config.working_dir":           func(c *runtimev1.ContainerConfig) { c.WorkingDir = "x" },
		"config.log_path":              func(c *runtimev1.ContainerConfig) { c.LogPath = "../x" },
		"config.stdin_once":            func(c *runtimev1.ContainerConfig) { c.StdinOnce = true },
		"config.envs.key":              func(c *runtimev1.ContainerConfig) { c.Envs = []*runtimev1.KeyValue{{Key: "A=B"}} },
		"add_capabilities":             capabilities(&runtimev1.Capability{AddCapabilities: []string{"NO_SUCH"}}),
		"drop_capabilities":            capabilities(&runtimev1.Capability{DropCapabilities: []string{"NO_SUCH"}}),
		"add_ambient_capabilities":     capabilities(&runtimev1.Capability{AddAmbientCapabilities: []string{"NO_SUCH"}}),
		"security_context.run_as_user": asUser(-1),
		"run_as_username": with(func(s *runtimev1.LinuxContainerSecurityContext) {
			s.RunAsUser, s.RunAsUsername = &runtimev1.Int64Value{Value: 1}, "root"
		}),
		"run_as_group":               with(func(s *runtimev1.LinuxContainerSecurityContext) { s.RunAsGroup = &runtimev1.Int64Value{Value: 1} }),
		"nobody-at-all":              with(func(s *runtimev1.LinuxContainerSecurityContext) { s.RunAsUsername = "nobody-at-all" }),
		"supplemental_groups":        with(func(s *runtimev1.LinuxContainerSecurityContext) { s.SupplementalGroups = []int64{-1} }),
		"supplemental_groups_policy": with(func(s *runtimev1.LinuxContainerSecurityContext) { s.SupplementalGroupsPolicy = 9 }),
		"masked_paths":               with(func(s *runtimev1.LinuxContainerSecurityContext) { s.MaskedPaths = []string{"x"} }),
		"readonly_paths":             with(func(s *runtimev1.LinuxContainerSecurityContext) { s.ReadonlyPaths = []string{"x"} }),
		"namespace_options.network":  namespaces(&runtimev1.NamespaceOption{Network: runtimev1.NamespaceMode_CONTAINER}),
		"namespace_options.ipc":      namespaces(&runtimev1.NamespaceOption{Network: runtimev1.NamespaceMode_NODE, Ipc: runtimev1.NamespaceMode_NODE}),
		"namespace_options.target_id": namespaces(&runtimev1.NamespaceOption{
			Network: runtimev1.NamespaceMode_NODE, Pid: runtimev1.NamespaceMode_TARGET,
		}),
	} {
		t.Run(field, func(t *testing.T) {
			_, err := p.tryCreate(change)
			wantCode(t, err, codes.InvalidArgument, field)
		})
	}
}

func namespaces(o *runtimev1.NamespaceOption) containerOption {
	return with(func(s *runtimev1.LinuxContainerSecurityContext) { s.NamespaceOptions = o })
}

// TestUpdateAsAsked has an update with annotations, which say nothing to this engine, and one for Windows.
func TestUpdateAsAsked(t *testing.T) {
	c := sharedNode(t).runPod(t, hostNetwork).run(t, command("sleep", "1000"), memoryLimit(64<<20))
	ctx, cancel := callContext()
	defer cancel()
	_, err := c.p.n.d.Runtime.UpdateContainerResources(ctx, &runtimev1.UpdateContainerResourcesRequest{
		ContainerId: c.id, Linux: &runtimev1.LinuxContainerResources{MemoryLimitInBytes: 32 << 20}, Annotations: map[string]string{"a": "b"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := limitsOf(t, c.cgroup(t)).memory; got != strconv.Itoa(32<<20) {
		t.Errorf("the limit is %s", got)
	}
	_, err = c.p.n.d.Runtime.UpdateContainerResources(ctx, &runtimev1.UpdateContainerResourcesRequest{
		ContainerId: c.id, Windows: &runtimev1.WindowsContainerResources{},
	})
	wantCode(t, err, codes.InvalidArgument, "windows")
}
