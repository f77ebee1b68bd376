package native

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestPodByThread(t *testing.T) {
	r := newRuntime(t)
	config := PodConfig{IPC: true, UTS: true, ShmSize: 1 << 20, Hostname: "threaded", Sysctls: map[string]string{"kernel.msgmax": "9000", "kernel.domainname": "of.a.pod"}}
	if !r.host.CloneDetached {
		t.Skip("this kernel cannot copy a mount that is attached nowhere: a stage makes the pod")
	}
	before, _ := os.Hostname()
	for range 20 {
		pod, err := r.NewPod(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pod.close)
		s := baseSpec("view", "/proc/sys/kernel/msgmax", "/proc/sys/kernel/domainname")
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm"})
		p, out, w := create(t, r, Config{ID: "x", Spec: s, Rootfs: rootfs(t), Namespaces: pod.Namespaces, Shm: pod.Shm})
		text, code := finish(t, p, out, w)
		if code != 0 {
			t.Fatalf("exit code %d: %s", code, text)
		}
		v := look(t, text)
		if v.Hostname != "threaded" || v.Files["/proc/sys/kernel/msgmax"] != "9000\n" || v.Files["/proc/sys/kernel/domainname"] != "of.a.pod\n" {
			t.Errorf("the container sees %+v", v)
		}
		if mounts := strings.Join(v.Mounts, "\n"); !strings.Contains(mounts, "/dev/shm tmpfs rw,nosuid,nodev,noexec,relatime,size=1024k") {
			t.Errorf("mounts %s", mounts)
		}
	}
	threadsAreHome(t)
	if after, _ := os.Hostname(); after != before {
		t.Errorf("the host is %q now", after)
	}
}

func TestPodByThreadFails(t *testing.T) {
	r := newRuntime(t)
	for want, c := range map[string]PodConfig{
		"kernel.msgmax is a parameter of the ipc namespace": {UTS: true, Sysctls: map[string]string{"kernel.msgmax": "1"}},
		"/proc/sys/kernel/msgmax: invalid argument":         {IPC: true, UTS: true, Sysctls: map[string]string{"kernel.msgmax": "many"}},
		"/nowhere: no such file or directory":               {IPC: true, Netns: "/nowhere", Sysctls: map[string]string{"net.core.somaxconn": "9"}},
		"join the namespace":                                {IPC: true, Netns: "/etc/hostname", Sysctls: map[string]string{"net.core.somaxconn": "9"}},
	} {
		pod, err := r.NewPod(t.Context(), c)
		if err == nil {
			pod.close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c, err, want)
		}
	}
	threadsAreHome(t)
}

// threadsAreHome checks that every thread of this process is in the namespaces of the first.
func threadsAreHome(t *testing.T) {
	t.Helper()
	for _, kind := range []string{"ipc", "uts", "net"} {
		home, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			t.Fatal(err)
		}
		threads, _ := filepath.Glob("/proc/self/task/*/ns/" + kind)
		for _, thread := range threads {
			if at, err := os.Readlink(thread); err == nil && at != home {
				t.Errorf("%s is %s, not %s", thread, at, home)
			}
		}
	}
}
