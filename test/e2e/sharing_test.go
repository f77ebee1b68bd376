package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestSharedNamespaces asserts what two containers of a pod have in common, and what not.
func TestSharedNamespaces(t *testing.T) {
	n := sharedNode(t)
	p := n.runPod(t)
	a := p.run(t, command("sleep", "1000"))
	b := p.run(t, command("sleep", "1001"))
	other := n.runPod(t).run(t, command("sleep", "1002"))
	for _, kind := range []string{"net", "ipc", "uts", "pid", "mnt"} {
		ns := func(c *container) string { return c.output(t, "readlink", "/proc/self/ns/"+kind) }
		same := kind == "net" || kind == "ipc" || kind == "uts"
		if got := ns(a) == ns(b); got != same {
			t.Errorf("%s namespace shared between containers of a pod: %v, want %v", kind, got, same)
		}
		if ns(a) == ns(other) {
			t.Errorf("%s namespace shared between pods", kind)
		}
	}
	a.output(t, "sh", "-c", "echo shared >/dev/shm/x; ! touch /proc/sys/kernel/x 2>/dev/null")
	if got := b.output(t, "cat", "/dev/shm/x"); got != "shared\n" {
		t.Errorf("/dev/shm/x reads %q in the other container", got)
	}
	if r, err := other.exec(t.Context(), 0, "test", "-e", "/dev/shm/x"); err != nil || r.code == 0 {
		t.Errorf("/dev/shm/x is seen in another pod: %+v, %v", r, err)
	}
}

// TestSharedPID has a holder as process 1, which reaps; SIGTERM ends a workload that is not process 1.
func TestSharedPID(t *testing.T) {
	n := sharedNode(t)
	p := n.runPod(t, sharedPID)
	a := p.run(t, command("sleep", "1000"))
	b := p.run(t, command("sleep", "1001"))
	if x, y := a.output(t, "readlink", "/proc/self/ns/pid"), b.output(t, "readlink", "/proc/self/ns/pid"); x != y {
		t.Errorf("pid namespaces %s and %s differ", x, y)
	}
	if out := b.output(t, "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"); !strings.Contains(out, "sleep 1000") {
		t.Errorf("the other container's process is not seen: %q", out)
	}
	// An orphan must not stay a zombie.
	a.output(t, "sh", "-c", "(sleep 0.1 & ) ; true")
	eventually(t, 10*time.Second, func() error {
		out := b.output(t, "sh", "-c", "cat /proc/[0-9]*/stat 2>/dev/null")
		if strings.Contains(out, ") Z ") {
			return fmt.Errorf("a zombie: %s", out)
		}
		return nil
	})
	a.stop(t, 10)
	if s := a.status(t); s.ExitCode != 143 {
		t.Errorf("code %d after SIGTERM, want 143", s.ExitCode)
	}
	if s := b.status(t); s.State != runtimev1.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the other container is %v", s.State)
	}
}

// TestHostNamespaces asks for the node's network.
func TestHostNamespaces(t *testing.T) {
	n := sharedNode(t)
	c := n.runPod(t, hostNetwork).run(t, command("sleep", "1000"))
	out := c.output(t, "wget", "-q", "-O", "-", "http://"+registry+"/v2/")
	if !strings.HasPrefix(out, "{}") && out != "" {
		t.Errorf("the registry on the node's loopback answers %q", out)
	}
}

// TestNothingPerPod asserts the price of a pod: no process of ours, one mount on the host at most; a container adds
// none.
func TestNothingPerPod(t *testing.T) {
	nativeOnly(t)
	n := sharedNode(t)
	before := n.rest(t)
	const pods = 3
	var up []*pod
	for range pods {
		up = append(up, n.runPod(t))
	}
	withPods := n.rest(t)
	if grown := countMounts(withPods) - countMounts(before); grown > pods {
		t.Errorf("%d pods added %d mounts to the host:\n  %s", pods, grown, strings.Join(before.diff(withPods), "\n  "))
	}
	if w := n.workloads(t); len(w) != 0 {
		t.Errorf("pods without containers have processes: %v", w)
	}
	for _, p := range up {
		p.run(t, command("sleep", "1000"))
		p.run(t, command("sleep", "1000"))
	}
	withContainers := n.rest(t)
	if grown := countMounts(withContainers) - countMounts(withPods); grown > 0 {
		t.Errorf("containers added %d mounts to the host:\n  %s", grown, strings.Join(withPods.diff(withContainers), "\n  "))
	}
	found := n.workloads(t)
	for _, w := range found {
		if w.Cmdline != "sleep 1000" {
			t.Errorf("a process that is neither ours nor a workload: %v", w)
		}
	}
	if len(found) != 2*pods {
		t.Errorf("%d workload processes, want %d", len(found), 2*pods)
	}
}

// rest is the node's snapshot once it has come to rest.
func (n *node) rest(t testing.TB) snapshot {
	t.Helper()
	s, err := n.settled()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// countMounts counts the mounts of the host's table, not those in the daemons' own namespaces.
func countMounts(s snapshot) int {
	sum := 0
	for line, n := range s {
		if strings.HasPrefix(line, "mount /") {
			sum += n
		}
	}
	return sum
}
