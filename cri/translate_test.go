package cri

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/engine/spec"
)

var update = flag.Bool("update", false, "write the golden files")

// golden compares value, as indented JSON, with testdata/name.
func golden(t *testing.T, name string, value any) {
	t.Helper()
	got, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("%s differs (go test -update writes it):\n%s", path, got)
	}
}

// message reads testdata/name as the JSON form of a request.
func message(t *testing.T, name string, m proto.Message) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := protojson.Unmarshal(data, m); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

func TestGoldenPods(t *testing.T) {
	for _, name := range []string{"pod-minimal", "pod-full", "pod-host", "pod-user"} {
		t.Run(name, func(t *testing.T) {
			var config runtime.PodSandboxConfig
			message(t, name+".in.json", &config)
			pod, err := podOf(&config, "")
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name+".out.json", pod)
		})
	}
}

func TestGoldenContainers(t *testing.T) {
	var config runtime.PodSandboxConfig
	message(t, "pod-full.in.json", &config)
	pod, err := podOf(&config, "")
	if err != nil {
		t.Fatal(err)
	}
	pod.ID = "pod1"
	for _, name := range []string{"container-minimal", "container-full"} {
		t.Run(name, func(t *testing.T) {
			var config runtime.ContainerConfig
			message(t, name+".in.json", &config)
			container, err := containerOf(&config, pod)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name+".out.json", container)
		})
	}
}

// kind is the one error kind that tests expect, by its name.
func kind(err error) string {
	switch {
	case errdefs.IsInvalidArgument(err):
		return "invalid"
	case errdefs.IsNotImplemented(err):
		return "unsupported"
	}
	return "other"
}

func TestPodErrors(t *testing.T) {
	for want, change := range map[string]func(*runtime.PodSandboxConfig){
		"invalid config.metadata.name: required":   func(c *runtime.PodSandboxConfig) { c.Metadata.Name = "" },
		"invalid config.metadata.name: required ":  func(c *runtime.PodSandboxConfig) { c.Metadata = nil },
		"invalid config.metadata.namespace: requi": func(c *runtime.PodSandboxConfig) { c.Metadata.Namespace = "" },
		"invalid config.metadata.uid: contains":    func(c *runtime.PodSandboxConfig) { c.Metadata.Uid = "a\x00" },
		"invalid config.windows":                   func(c *runtime.PodSandboxConfig) { c.Windows = &runtime.WindowsPodSandboxConfig{} },
		"invalid config.hostname: \"a\\nb\"":       func(c *runtime.PodSandboxConfig) { c.Hostname = "a\nb" },
		"invalid config.hostname: \"xxx":           func(c *runtime.PodSandboxConfig) { c.Hostname = strings.Repeat("x", 65) },
		"invalid config.log_directory":             func(c *runtime.PodSandboxConfig) { c.LogDirectory = "logs" },
		"invalid config.dns_config.servers":        func(c *runtime.PodSandboxConfig) { c.DnsConfig.Servers = []string{"dns"} },
		"invalid config.dns_config.searches":       func(c *runtime.PodSandboxConfig) { c.DnsConfig.Searches = []string{"a\nnameserver b"} },
		"invalid config.dns_config.options":        func(c *runtime.PodSandboxConfig) { c.DnsConfig.Options = []string{""} },
		"invalid config.port_mappings.host_port":   func(c *runtime.PodSandboxConfig) { c.PortMappings[0].HostPort = 65536 },
		"invalid config.port_mappings.host_port ":  func(c *runtime.PodSandboxConfig) { c.PortMappings[0].HostPort = -1 },
		"invalid config.port_mappings.container_":  func(c *runtime.PodSandboxConfig) { c.PortMappings[0].ContainerPort = 0 },
		"invalid config.port_mappings.host_ip":     func(c *runtime.PodSandboxConfig) { c.PortMappings[0].HostIp = "here" },
		"invalid config.port_mappings.protocol":    func(c *runtime.PodSandboxConfig) { c.PortMappings[0].Protocol = 9 },
		"invalid config.linux.cgroup_parent":       func(c *runtime.PodSandboxConfig) { c.Linux.CgroupParent = "/a/../../b" },
		"invalid config.linux.sysctls":             func(c *runtime.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"": "1"} },
		"invalid config.linux.security_context.run_as_group": func(c *runtime.PodSandboxConfig) {
			c.Linux.SecurityContext.RunAsUser, c.Linux.SecurityContext.RunAsGroup = nil, &runtime.Int64Value{Value: 1}
		},
		"invalid config.linux.security_context.namespace_options.network": func(c *runtime.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Network = runtime.NamespaceMode_TARGET
		},
		"invalid config.linux.security_context.namespace_options.ipc": func(c *runtime.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Ipc = runtime.NamespaceMode_CONTAINER
		},
		"invalid config.linux.security_context.namespace_options.pid": func(c *runtime.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Pid = 77
		},
		"invalid config.linux.security_context.namespace_options.userns_options.mode": func(c *runtime.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtime.UserNamespace{Mode: runtime.NamespaceMode_CONTAINER}
		},
		"invalid config.linux.security_context.seccomp.localhost_ref": func(c *runtime.PodSandboxConfig) {
			c.Linux.SecurityContext.Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost}
		},
	} {
		t.Run(want, func(t *testing.T) {
			var config runtime.PodSandboxConfig
			message(t, "pod-full.in.json", &config)
			change(&config)
			_, err := podOf(&config, "")
			expect(t, err, want)
		})
	}
	_, err := podOf(nil, "")
	expect(t, err, "invalid config: required")
}

func expect(t *testing.T, err error, want string) {
	t.Helper()
	want = strings.TrimSpace(want)
	if err == nil {
		t.Fatalf("no error, want %q", want)
	}
	if got := kind(err) + " " + err.Error(); !strings.HasPrefix(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestContainerErrors(t *testing.T) {
	security := func(change func(*runtime.LinuxContainerSecurityContext)) func(*runtime.ContainerConfig) {
		return func(c *runtime.ContainerConfig) { change(c.Linux.SecurityContext) }
	}
	mount := func(change func(*runtime.Mount)) func(*runtime.ContainerConfig) {
		return func(c *runtime.ContainerConfig) { change(c.Mounts[0]) }
	}
	const context = "invalid config.linux.security_context."
	for want, change := range map[string]func(*runtime.ContainerConfig){
		"invalid config.metadata.name: required":    func(c *runtime.ContainerConfig) { c.Metadata = nil },
		"invalid config.image.image: required":      func(c *runtime.ContainerConfig) { c.Image = nil },
		"invalid config.windows":                    func(c *runtime.ContainerConfig) { c.Windows = &runtime.WindowsContainerConfig{} },
		"invalid config.CDI_devices[0].name":        func(c *runtime.ContainerConfig) { c.CDIDevices = []*runtime.CDIDevice{{Name: "v/d"}} },
		"invalid config.annotations[cdi.k8s.io/x]":  func(c *runtime.ContainerConfig) { c.Annotations["cdi.k8s.io/x"] = "v/d=1,w" },
		"invalid config.command: contains":          func(c *runtime.ContainerConfig) { c.Command = []string{"a\x00"} },
		"invalid config.args: contains":             func(c *runtime.ContainerConfig) { c.Args = []string{"a\x00"} },
		"invalid config.working_dir":                func(c *runtime.ContainerConfig) { c.WorkingDir = "tmp" },
		"invalid config.log_path":                   func(c *runtime.ContainerConfig) { c.LogPath = "../../etc/passwd" },
		"invalid config.log_path ":                  func(c *runtime.ContainerConfig) { c.LogPath = "/etc/passwd" },
		"invalid config.stdin_once":                 func(c *runtime.ContainerConfig) { c.Stdin, c.StdinOnce = false, true },
		"invalid config.stop_signal":                func(c *runtime.ContainerConfig) { c.StopSignal = 99 },
		"invalid config.envs.key: required":         func(c *runtime.ContainerConfig) { c.Envs[0].Key = "" },
		"invalid config.envs.key: \"A=B\"":          func(c *runtime.ContainerConfig) { c.Envs[0].Key = "A=B" },
		"invalid config.envs[A].value":              func(c *runtime.ContainerConfig) { c.Envs[0].Key, c.Envs[0].Value = "A", []byte{0} },
		"invalid config.devices[0].host_path":       func(c *runtime.ContainerConfig) { c.Devices[0].HostPath = "" },
		"invalid config.devices[0].container_path":  func(c *runtime.ContainerConfig) { c.Devices[0].ContainerPath = "fuse" },
		"invalid config.devices[0].permissions":     func(c *runtime.ContainerConfig) { c.Devices[0].Permissions = "rx" },
		"invalid config.linux.resources.cpu_shares": func(c *runtime.ContainerConfig) { c.Linux.Resources.CpuShares = -1 },
		"invalid config.linux.resources.memory_lim": func(c *runtime.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = -2 },
		"invalid config.linux.resources.oom_score":  func(c *runtime.ContainerConfig) { c.Linux.Resources.OomScoreAdj = 1001 },
		"invalid config.linux.resources.unified":    func(c *runtime.ContainerConfig) { c.Linux.Resources.Unified = map[string]string{"../a.b": "1"} },
		"invalid config.linux.resources.hugepage":   func(c *runtime.ContainerConfig) { c.Linux.Resources.HugepageLimits[0].PageSize = "" },

		"invalid config.linux.resources.cpuset_cpus":              func(c *runtime.ContainerConfig) { c.Linux.Resources.CpusetCpus = "all" },
		"invalid config.linux.resources.hugepage_limits.page_siz": func(c *runtime.ContainerConfig) { c.Linux.Resources.HugepageLimits[0].PageSize = "2 mb" },

		"invalid config.mounts[0].host_path: required":      mount(func(m *runtime.Mount) { m.HostPath = "" }),
		"invalid config.mounts[0].container_path: \"data\"": mount(func(m *runtime.Mount) { m.ContainerPath = "data" }),
		"invalid config.mounts[0].propagation":              mount(func(m *runtime.Mount) { m.Propagation = 9 }),
		"invalid config.mounts[0].mount_options: \"rw\"":    mount(func(m *runtime.Mount) { m.MountOptions = []string{"rw"} }),
		"invalid config.mounts[0].host_path: a mount has":   mount(func(m *runtime.Mount) { m.Image = &runtime.ImageSpec{Image: "a"} }),
		"invalid config.mounts[0].image.image: required":    mount(func(m *runtime.Mount) { m.ImageSubPath = "a" }),
		"invalid config.mounts[0].readonly: images":         mount(func(m *runtime.Mount) { *m = runtime.Mount{ContainerPath: "/x", Image: &runtime.ImageSpec{Image: "a"}} }),
		"invalid config.mounts[0].image_sub_path": mount(func(m *runtime.Mount) {
			*m = runtime.Mount{ContainerPath: "/x", Image: &runtime.ImageSpec{Image: "a"}, Readonly: true, ImageSubPath: "a/../../b"}
		}),
		"invalid config.mounts[0].uidMappings[0].length": mount(func(m *runtime.Mount) { m.UidMappings = []*runtime.IDMapping{{}} }),
		"invalid config.mounts[0].uidMappings: required": mount(func(m *runtime.Mount) { m.GidMappings = []*runtime.IDMapping{{}} }),
		"invalid config.mounts[0].recursive_read_only: needs readonly": mount(func(m *runtime.Mount) {
			m.RecursiveReadOnly, m.Readonly = true, false
		}),
		"invalid config.mounts[0].recursive_read_only: needs propagation": mount(func(m *runtime.Mount) {
			m.RecursiveReadOnly, m.Readonly, m.Propagation = true, true, runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL
		}),

		context + "privileged":   security(func(s *runtime.LinuxContainerSecurityContext) { s.Privileged = true }),
		context + "run_as_user":  security(func(s *runtime.LinuxContainerSecurityContext) { s.RunAsUser = &runtime.Int64Value{Value: -1} }),
		context + "run_as_user ": security(func(s *runtime.LinuxContainerSecurityContext) { s.RunAsUser = &runtime.Int64Value{Value: 1<<32 - 1} }),
		context + "run_as_username: only one": security(func(s *runtime.LinuxContainerSecurityContext) {
			s.RunAsUsername = "www-data"
		}),
		context + "run_as_group: needs": security(func(s *runtime.LinuxContainerSecurityContext) { s.RunAsUser = nil }),
		context + "supplemental_groups: -5": security(func(s *runtime.LinuxContainerSecurityContext) {
			s.SupplementalGroups = []int64{-5}
		}),
		context + "supplemental_groups_policy": security(func(s *runtime.LinuxContainerSecurityContext) {
			s.SupplementalGroupsPolicy = 5
		}),
		context + "masked_paths": security(func(s *runtime.LinuxContainerSecurityContext) { s.MaskedPaths = []string{"proc"} }),
		context + "seccomp.localhost_ref: \"rel\"": security(func(s *runtime.LinuxContainerSecurityContext) {
			s.Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: "rel"}
		}),
		context + "seccomp.profile_type": security(func(s *runtime.LinuxContainerSecurityContext) {
			s.Seccomp = &runtime.SecurityProfile{ProfileType: 7}
		}),
		context + "apparmor: \"tight\"": security(func(s *runtime.LinuxContainerSecurityContext) {
			s.Apparmor = nil
			//lint:ignore SA1019 clients may still send the deprecated field
			s.ApparmorProfile = "tight"
		}),
		context + "namespace_options.network": security(func(s *runtime.LinuxContainerSecurityContext) {
			s.NamespaceOptions.Network = runtime.NamespaceMode_NODE
		}),
		context + "namespace_options.ipc": security(func(s *runtime.LinuxContainerSecurityContext) {
			s.NamespaceOptions.Ipc = runtime.NamespaceMode_NODE
		}),
		context + "namespace_options.target_id": security(func(s *runtime.LinuxContainerSecurityContext) {
			s.NamespaceOptions.Pid = runtime.NamespaceMode_TARGET
		}),
	} {
		t.Run(want, func(t *testing.T) {
			var config runtime.ContainerConfig
			message(t, "container-full.in.json", &config)
			change(&config)
			_, err := containerOf(&config, spec.Pod{ID: "pod1"})
			expect(t, err, want)
		})
	}
	_, err := containerOf(nil, spec.Pod{})
	expect(t, err, "invalid config: required")
}

func TestContainerInherits(t *testing.T) {
	config := &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: "a"}, Image: &runtime.ImageSpec{Image: "b"},
	}
	pod := spec.Pod{Security: spec.Security{Namespaces: spec.Namespaces{Network: spec.ModeNode, PID: spec.ModeContainer, IPC: spec.ModePod}}}
	c, err := containerOf(config, pod)
	if err != nil {
		t.Fatal(err)
	}
	if c.Security.Namespaces != pod.Security.Namespaces {
		t.Errorf("without options the namespaces are %+v", c.Security.Namespaces)
	}
	if c.Security.MaskedPaths != nil || c.Security.ReadonlyPaths != nil {
		t.Error("without a context the engine must choose what is masked")
	}
	config.Linux = &runtime.LinuxContainerConfig{SecurityContext: &runtime.LinuxContainerSecurityContext{}}
	if c, err = containerOf(config, pod); err != nil {
		t.Fatal(err)
	}
	if c.Security.MaskedPaths == nil || len(c.Security.MaskedPaths) != 0 {
		t.Error("a context with empty lists must unmask all")
	}
}

func TestDeprecatedProfiles(t *testing.T) {
	for old, want := range map[string]spec.Profile{
		"":                      {},
		"unconfined":            {Kind: "unconfined"},
		"runtime/default":       {Kind: "runtime/default"},
		"docker/default":        {Kind: "runtime/default"},
		"localhost//etc/p.json": {Kind: "localhost", Path: "/etc/p.json"},
	} {
		got, err := profileOf("f", nil, old, true)
		if err != nil || got != want {
			t.Errorf("%q gives %+v, %v", old, got, err)
		}
	}
	got, err := profileOf("f", &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Unconfined}, "runtime/default", true)
	if err != nil || got.Kind != "unconfined" {
		t.Errorf("the new field must win: %+v, %v", got, err)
	}
}

func TestSignals(t *testing.T) {
	for value := range runtime.Signal_name {
		name, err := signalName("f", runtime.Signal(value))
		if err != nil {
			t.Fatal(err)
		}
		if got := signalOf(name); got != runtime.Signal(value) {
			t.Errorf("%v becomes %q and then %v", runtime.Signal(value), name, got)
		}
	}
	for signal, want := range map[runtime.Signal]string{
		runtime.Signal_SIGNAL_SIGTERM: "SIGTERM", runtime.Signal_SIGNAL_SIGRTMINPLUS3: "SIGRTMIN+3",
		runtime.Signal_SIGNAL_SIGRTMAXMINUS14: "SIGRTMAX-14", runtime.Signal_SIGNAL_RUNTIME_DEFAULT: "",
	} {
		if got, _ := signalName("f", signal); got != want {
			t.Errorf("%v is %q, want %q", signal, got, want)
		}
	}
	if signalOf("SIGNONE") != runtime.Signal_SIGNAL_RUNTIME_DEFAULT {
		t.Error("an unknown signal must be the default")
	}
}

func FuzzPod(f *testing.F) {
	for _, name := range []string{"pod-minimal.in.json", "pod-full.in.json", "pod-host.in.json"} {
		f.Add(seed(f, name, &runtime.PodSandboxConfig{}))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var config runtime.PodSandboxConfig
		if proto.Unmarshal(data, &config) != nil {
			return
		}
		pod, err := podOf(&config, "")
		if err != nil {
			if kind(err) == "other" {
				t.Fatalf("an error without a kind: %v", err)
			}
			return
		}
		if pod.Name == "" || pod.Owner != owner || strings.ContainsAny(pod.Hostname, "\n\x00 ") {
			t.Fatalf("let through: %+v", pod)
		}
		roundTrip(t, pod, &spec.Pod{})
	})
}

func FuzzContainer(f *testing.F) {
	for _, name := range []string{"container-minimal.in.json", "container-full.in.json"} {
		f.Add(seed(f, name, &runtime.ContainerConfig{}), false)
	}
	f.Fuzz(func(t *testing.T, data []byte, privileged bool) {
		var config runtime.ContainerConfig
		if proto.Unmarshal(data, &config) != nil {
			return
		}
		c, err := containerOf(&config, spec.Pod{ID: "pod1", Security: spec.Security{Privileged: privileged}})
		if err != nil {
			if kind(err) == "other" {
				t.Fatalf("an error without a kind: %v", err)
			}
			return
		}
		if c.Security.Privileged && !privileged {
			t.Fatal("a privileged container got into a pod that is not")
		}
		if c.LogPath != "" && !filepath.IsLocal(c.LogPath) {
			t.Fatalf("the log escapes: %q", c.LogPath)
		}
		for _, m := range c.Mounts {
			if m.Image == nil && !filepath.IsAbs(m.Source) || !filepath.IsAbs(m.Target) {
				t.Fatalf("a mount without a path: %+v", m)
			}
		}
		roundTrip(t, c, &spec.Container{})
	})
}

// roundTrip checks that a record keeps what was asked for.
func roundTrip[T any](t *testing.T, value T, back *T) {
	data, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, back); err != nil {
		t.Fatal(err)
	}
	again, _ := json.Marshal(back)
	if string(again) != string(data) {
		t.Fatalf("the record does not keep it:\n%s\n%s", data, again)
	}
}

func seed(f *testing.F, name string, m proto.Message) []byte {
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		f.Fatal(err)
	}
	if err := protojson.Unmarshal(data, m); err != nil {
		f.Fatal(err)
	}
	out, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	return out
}
