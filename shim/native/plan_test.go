package native

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native/seccomp"
	"github.com/criserver/criserver/shim/native/stage"
)

var update = flag.Bool("update", false, "write the golden files anew")

var (
	newKernel = Host{LowerdirPlus: true, ProcPidns: true, CloneDetached: true, Capabilities: 1<<41 - 1, LastCapability: 40, LeastOOMScoreAdj: -1000}
	oldKernel = Host{Capabilities: 1<<41 - 1 - 1<<unix.CAP_SYS_RESOURCE, LastCapability: 40}
)

// layersMount is an image as a volume.
var layersMount = specs.Mount{Destination: "/image", Type: "overlay", Source: "overlay", Options: []string{"ro", "lowerdir=/l/layers/4/x:/l/layers/2/x", "index=off", "noexec"}}

func goldenInput(spec *specs.Spec, host Host) *input {
	return &input{
		spec: spec, process: spec.Process, host: host, joined: map[specs.LinuxNamespaceType]int{},
		rootfs: &Mount{Type: "overlay", Options: []string{"lowerdir=/l/layers/2:/l/layers/1", "upperdir=/l/active/7/fs", "workdir=/l/active/7/work", "index=off", "volatile"}},
		tasks:  []string{"/sys/fs/cgroup/memory/pod/box/tasks", "/sys/fs/cgroup/cpu/pod/box/tasks"}, unified: "/sys/fs/cgroup/unified/pod/box",
		filter:      &seccomp.Program{Filter: make([]unix.SockFilter, 7)},
		isDirectory: func(path string) (bool, error) { return !strings.HasSuffix(path, "file"), nil },
	}
}

func goldenSpec() *specs.Spec {
	spec := baseSpec("run")
	spec.Linux.CgroupsPath = "/pod/box"
	spec.Process.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{7}}
	spec.Process.Cwd = "/srv/app"
	adjust := -500
	spec.Process.OOMScoreAdj = &adjust
	spec.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1", "kernel.shmmax": "5000"}
	spec.Mounts = append(spec.Mounts,
		specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		specs.Mount{Destination: "/etc/hosts", Type: "bind", Source: "/run/pod/hosts.file", Options: []string{"rbind", "ro"}},
		specs.Mount{Destination: "/data", Type: "bind", Source: "/srv/data", Options: []string{"rbind", "rro", "rslave", "nodev"}})
	return spec
}

// labelledInput is of a container with SELinux labels and every kind of mount that takes one, or does not.
func labelledInput(host Host) *input {
	in := goldenInput(goldenSpec(), host)
	in.process.SelinuxLabel = "system_u:system_r:container_t:s0:c1,c2"
	in.spec.Linux.MountLabel = "system_u:object_r:container_file_t:s0:c1,c2"
	in.spec.Linux.MaskedPaths = []string{"/proc/acpi"}
	in.spec.Mounts = append(in.spec.Mounts, layersMount,
		specs.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid"}},
		specs.Mount{Destination: "/own", Type: "tmpfs", Source: "tmpfs", Options: []string{"context=system_u:object_r:own_t:s0"}})
	return in
}

// TestPlans compares whole plans with the golden files, which read like an strace of a container's start.
func TestPlans(t *testing.T) {
	for name, compile := range map[string]func() (*built, error){
		"restore": func() (*built, error) {
			in := goldenInput(goldenSpec(), newKernel)
			in.spec.Linux.MaskedPaths = []string{"/proc/acpi"}
			in.spec.Root.Readonly = true
			in.shm = stage.Extra + 2
			return compileRestore(in, "/usr/sbin/criu", []string{"restore", "--root", "/l/active/7/fs"}, "/r/work/shm")
		},
		"create": func() (*built, error) { return compileCreate(goldenInput(goldenSpec(), newKernel)) },
		"create-old-kernel-no-nnp-tty": func() (*built, error) {
			spec := goldenSpec()
			spec.Process.NoNewPrivileges = false
			spec.Process.Terminal = true
			spec.Root.Readonly = true
			return compileCreate(goldenInput(spec, oldKernel))
		},
		"create-shared-pid": func() (*built, error) {
			in := goldenInput(goldenSpec(), newKernel)
			in.spec.Mounts = append(in.spec.Mounts, specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm"})
			in.shm = 8
			in.joined = map[specs.LinuxNamespaceType]int{specs.PIDNamespace: 6, specs.IPCNamespace: 7}
			return compileCreate(in)
		},
		"create-shared-pid-old-kernel": func() (*built, error) {
			in := goldenInput(goldenSpec(), oldKernel)
			in.joined = map[specs.LinuxNamespaceType]int{specs.PIDNamespace: 6}
			in.tasks, in.unified = nil, "/sys/fs/cgroup/pod/box"
			in.spec.Mounts = append(in.spec.Mounts, specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm"})
			in.shm, in.proc = 8, 9
			return compileCreate(in)
		},
		"create-hooks": func() (*built, error) {
			in := goldenInput(goldenSpec(), newKernel)
			in.spec.Hooks = everyHook()
			in.rootAt = "/run/box/rootfs"
			return compileCreate(in)
		},
		"hook": func() (*built, error) {
			in := goldenInput(goldenSpec(), newKernel)
			in.process = &specs.Process{Args: []string{"hook", "arg"}, Env: []string{"A=b"}}
			in.program, in.target, in.rootAt = "/usr/bin/hook", 6, "/run/box/rootfs"
			return compileHostHook(in), nil
		},
		"create-user": func() (*built, error) {
			in := goldenInput(goldenSpec(), newKernel)
			in.spec.Linux.Namespaces = append(in.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
			in.spec.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}
			in.spec.Linux.GIDMappings = []specs.LinuxIDMapping{{HostID: 200000, Size: 65536}}
			in.joined = map[specs.LinuxNamespaceType]int{specs.UserNamespace: 6, specs.NetworkNamespace: 7, specs.IPCNamespace: 8, specs.UTSNamespace: 9}
			in.userns, in.idmaps = 6, map[string]int{mappingKey(in.spec.Linux.UIDMappings, in.spec.Linux.GIDMappings): 6}
			last := &in.spec.Mounts[len(in.spec.Mounts)-1]
			last.UIDMappings, last.GIDMappings = in.spec.Linux.UIDMappings, in.spec.Linux.GIDMappings
			return compileCreate(in)
		},
		"create-shared-mount": func() (*built, error) {
			in := goldenInput(goldenSpec(), newKernel)
			in.spec.Linux.RootfsPropagation = "rshared"
			in.spec.Mounts = []specs.Mount{{Destination: "/data", Type: "bind", Source: "/srv/data", Options: []string{"rbind", "rshared"}}}
			return compileCreate(in)
		},
		"create-layers-user": func() (*built, error) {
			in := goldenInput(goldenSpec(), newKernel)
			in.spec.Linux.Namespaces = append(in.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
			in.spec.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}
			in.spec.Linux.GIDMappings = in.spec.Linux.UIDMappings
			in.joined = map[specs.LinuxNamespaceType]int{specs.UserNamespace: 6, specs.NetworkNamespace: 7, specs.IPCNamespace: 8, specs.UTSNamespace: 9}
			in.userns, in.idmaps = 6, map[string]int{mappingKey(in.spec.Linux.UIDMappings, in.spec.Linux.GIDMappings): 6}
			in.spec.Mounts = []specs.Mount{layersMount, {Destination: "/one", Type: "bind", Source: "/l/layers/2/sub", Options: []string{"bind", "ro"},
				UIDMappings: in.spec.Linux.UIDMappings, GIDMappings: in.spec.Linux.GIDMappings}}
			return compileCreate(in)
		},
		"create-layers-old-kernel": func() (*built, error) {
			in := goldenInput(goldenSpec(), oldKernel)
			in.spec.Mounts = []specs.Mount{layersMount, {Destination: "/scratch", Type: "overlay", Source: "overlay",
				Options: []string{"workdir=/l/active/8/work", "upperdir=/l/active/8/fs", "lowerdir=/l/layers/2/x", "index=off", "volatile"}}}
			return compileCreate(in)
		},
		"exec-user": func() (*built, error) {
			in := goldenInput(goldenSpec(), newKernel)
			in.spec.Linux.Namespaces = append(in.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
			in.spec.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}
			in.spec.Linux.GIDMappings = in.spec.Linux.UIDMappings
			in.target = 6
			return compileExec(in)
		},
		"spaces": func() (*built, error) {
			return compileSpaces(newKernel, spacesConfig{hostname: "box", kinds: map[specs.LinuxNamespaceType]bool{specs.NetworkNamespace: true, specs.UTSNamespace: true}}), nil
		},
		"exec": func() (*built, error) {
			in := goldenInput(goldenSpec(), newKernel)
			in.target = 6
			return compileExec(in)
		},
		"create-selinux":            func() (*built, error) { return compileCreate(labelledInput(newKernel)) },
		"create-selinux-old-kernel": func() (*built, error) { return compileCreate(labelledInput(oldKernel)) },
		"exec-selinux": func() (*built, error) {
			in := labelledInput(newKernel)
			in.target = 6
			return compileExec(in)
		},
		"attach": func() (*built, error) {
			in := goldenInput(goldenSpec(), newKernel)
			in.shm, in.rootAt = 6, "/run/c/rootfs"
			return compileAttach(in, Attachment{Rootfs: in.rootfs, Root: in.rootAt, Shm: os.Stdin, ShmAt: "/run/c/shm"})
		},
		"attach-old-kernel": func() (*built, error) {
			in := goldenInput(goldenSpec(), oldKernel)
			in.shm, in.rootAt = 6, "/run/c/rootfs"
			return compileAttach(in, Attachment{Rootfs: in.rootfs, Root: in.rootAt, Shm: os.Stdin, ShmAt: "/run/c/shm"})
		},
		"attach-user":            func() (*built, error) { return attachUser(newKernel) },
		"attach-user-old-kernel": func() (*built, error) { return attachUser(oldKernel) },
		"pod-old-kernel": func() (*built, error) {
			return compilePod(goldenInput(goldenSpec(), oldKernel), PodConfig{IPC: true, PID: true, ShmSize: 1 << 20})
		},
		"pod": func() (*built, error) {
			in := goldenInput(goldenSpec(), newKernel)
			return compilePod(in, PodConfig{IPC: true, UTS: true, PID: true, ShmSize: 1 << 20, Hostname: "box", Netns: "/var/run/netns/x", Sysctls: map[string]string{"net.core.somaxconn": "9"}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := compile()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := b.plan.Encode(); err != nil {
				t.Fatal(err)
			}
			got := b.plan.Text() + strings.Join(append([]string{"warnings:"}, b.warnings...), "\n") + "\n"
			file := filepath.Join("testdata", name+".plan")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
				t.Errorf("the plan is not the golden one (go test -update writes it anew):\n%s", diff)
			}
		})
	}
}

// everyHook are hooks of all kinds.
func everyHook() *specs.Hooks {
	seconds := 5
	list := []specs.Hook{{Path: "/usr/bin/hook", Args: []string{"hook", "arg"}, Env: []string{"A=b"}, Timeout: &seconds}}
	//lint:ignore SA1019 deprecated, but not gone from specs
	return &specs.Hooks{Prestart: list, CreateRuntime: list, CreateContainer: list, StartContainer: list, Poststart: list, Poststop: list}
}

// A compiler never panics, and what it accepts can be encoded, whatever the spec says.
func FuzzCompile(f *testing.F) {
	hooked := goldenSpec()
	hooked.Hooks = everyHook()
	for _, spec := range []*specs.Spec{baseSpec("run"), goldenSpec(), hooked} {
		b, err := json.Marshal(spec)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, true)
	}
	f.Fuzz(func(t *testing.T, b []byte, old bool) {
		var spec specs.Spec
		if json.Unmarshal(b, &spec) != nil {
			return
		}
		host := newKernel
		if old {
			host = oldKernel
		}
		in := goldenInput(&spec, host)
		if validate(in) != nil {
			return
		}
		hook := func(in *input) (*built, error) {
			in.program, in.target = "/hook", stage.Extra
			return compileHostHook(in), nil
		}
		for _, compile := range []func(*input) (*built, error){compileCreate, compileExec, hook} {
			built, err := compile(in)
			if err != nil {
				continue
			}
			if built.plan.Text() == "" {
				t.Error("an empty plan")
			}
			_, _ = built.plan.Encode() // an error is fine: a NUL in a string, too many mounts
		}
	})
}

// attachUser is all that is attached of a container with a user namespace.
func attachUser(host Host) (*built, error) {
	in := goldenInput(goldenSpec(), host)
	in.spec.Linux.Namespaces = append(in.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	in.spec.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}
	in.spec.Linux.GIDMappings = in.spec.Linux.UIDMappings
	in.shm, in.proc, in.userns, in.rootAt = 6, 7, 8, "/run/c/rootfs"
	return compileAttach(in, Attachment{
		Rootfs: in.rootfs, Root: in.rootAt, Shm: os.Stdin, ShmAt: "/run/c/shm", Proc: os.Stdin, ProcAt: "/run/m/0", User: os.Stdin, Spec: in.spec,
		Overlays: []Overlay{{layersMount.Options, "/run/m/1"}}, Filesystems: []Filesystem{{"sysfs", "/run/m/2"}},
	})
}
