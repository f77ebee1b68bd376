package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/e2e/rig"
)

// unit is a property of a unit as systemd has it.
func unit(t *testing.T, name, property string) string {
	t.Helper()
	out, err := exec.Command("systemctl", "show", "--value", "-p", property, name).CombinedOutput()
	if err != nil {
		t.Fatalf("systemctl show -p %s %s: %v: %s", property, name, err, out)
	}
	return strings.TrimSpace(string(out))
}

// TestSystemdCgroups has containers as scopes that are delegated, with their limits as properties, which outlive a reload.
func TestSystemdCgroups(t *testing.T) {
	if os.Getenv(rig.EnvDriver) != "systemd" {
		t.Skip("systemd is not this machine's init, or the tests were not told to use it")
	}
	t.Cleanup(func() { // the slice that kubelet would have made; after all that is in it
		if out, err := exec.Command("systemctl", "stop", "cri.slice").CombinedOutput(); err != nil {
			t.Errorf("stop cri.slice: %v: %s", err, out)
		}
	})
	n := sharedNode(t)
	ctx, cancel := callContext()
	defer cancel()
	config, err := n.d.Runtime.RuntimeConfig(ctx, &runtimev1.RuntimeConfigRequest{})
	if err != nil || config.GetLinux().GetCgroupDriver() != runtimev1.CgroupDriver_SYSTEMD {
		t.Errorf("RuntimeConfig: %v, %v", config, err)
	}
	in := func(parent string) podOption {
		return func(c *runtimev1.PodSandboxConfig) { c.Linux.CgroupParent = parent }
	}
	p := n.runPod(t, in("cri-burstable-podx.slice"), sharedPID)
	c := p.create(t, command("sleep", "1000"), resources(&runtimev1.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 300}))
	start := time.Now()
	c.start(t)
	t.Logf("the start took %v", time.Since(start).Round(time.Millisecond))
	scope := "criserver-" + c.id + ".scope"
	path := c.cgroup(t)
	if want := "/cri.slice/cri-burstable.slice/cri-burstable-podx.slice/" + scope; path != want {
		t.Errorf("the cgroup is %s, want %s", path, want)
	}
	limits := func(memory, quota, property string) {
		t.Helper()
		if got := cgroupFile(t, path, "", "memory.max"); got != memory {
			t.Errorf("memory.max is %s, want %s", got, memory)
		}
		if got := cgroupFile(t, path, "", "cpu.max"); got != quota {
			t.Errorf("cpu.max is %s, want %s", got, quota)
		}
		for name, want := range map[string]string{"MemoryMax": memory, "CPUQuotaPerSecUSec": property, "Delegate": "yes", "ActiveState": "active"} {
			if got := unit(t, scope, name); got != want {
				t.Errorf("systemd has %s=%s, want %s", name, got, want)
			}
		}
	}
	limits("67108864", "50000 100000", "500ms")
	if err := c.update(&runtimev1.LinuxContainerResources{MemoryLimitInBytes: 96 << 20, CpuPeriod: 100000, CpuQuota: 25000}); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("systemctl", "daemon-reload").CombinedOutput(); err != nil {
		t.Fatalf("daemon-reload: %v: %s", err, out)
	}
	limits("100663296", "25000 100000", "250ms")
	if got := c.output(t, "cat", "/proc/self/cgroup"); strings.TrimSpace(got) != "0::/" {
		t.Errorf("what is executed is in %q of the container's cgroup", got)
	}
	c.stop(t, 0)
	c.remove(t)
	eventually(t, 10*time.Second, func() error {
		if state := unit(t, scope, "LoadState"); state != "not-found" {
			return fmt.Errorf("the unit is %s after the container's removal", state)
		}
		return nil
	})
	_, err = n.tryPod(t, in("/plain/path"))
	wantCode(t, err, codes.InvalidArgument, "slice")

	// A pod of no slice, with limits of its own, gets one.
	own := n.runPod(t, func(c *runtimev1.PodSandboxConfig) {
		c.Linux.Resources = &runtimev1.LinuxContainerResources{MemoryLimitInBytes: 128 << 20}
	})
	above := own.run(t, command("sleep", "1000")).cgroup(t)
	if got := cgroupFile(t, above[:strings.LastIndexByte(above, '/')], "", "memory.max"); got != "134217728" {
		t.Errorf("the slice above %s has the limit %s", above, got)
	}
}
