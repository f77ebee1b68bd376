package e2e

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/e2e/rig"
)

// isReady waits for the first line of a role.
func (c *container) isReady(t *testing.T) *container {
	t.Helper()
	eventually(t, 20*time.Second, c.hasLines(t, 1))
	return c
}

// ours are the three processes, with checksums of their programs' memory.
func (n *node) ours(t *testing.T) map[string]string {
	t.Helper()
	sums := map[string]string{}
	for name, pid := range map[string]int{"daemon": n.d.PID(), "shim": n.d.ShimPID(), "keeper": n.d.KeeperPID()} {
		p, err := rig.ReadProcess(pid)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		sum, err := textSum(pid)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := findPoison(pid); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		sums[name] = fmt.Sprintf("pid %d, started %d, text %s", pid, p.Start, sum)
	}
	return sums
}

// TestMemoryAttack has a container with CAP_SYS_PTRACE write into all that it can see while processes are executed in
// it, and while containers start in its shared PID namespace. What it may hit are processes of its own container; of
// ours it must neither see a program nor a descriptor, and no byte of it may arrive in our memory.
func TestMemoryAttack(t *testing.T) {
	nativeOnly(t)
	execs := 2000
	if testing.Short() {
		execs = 50
	}
	n := sharedNode(t)
	p := n.runPod(t, sharedPID)
	attacker := p.run(t, helper("role-attack"), addCapabilities("SYS_PTRACE")).isReady(t)
	bystander := n.runPod(t).run(t, command("sleep", "1000"))
	before := n.ours(t)

	var wrong, slow atomic.Int64
	each(execs, 4, func(i int) {
		start := time.Now()
		// The attacker may well break what runs beside it: only the call's end is asserted.
		if r, err := attacker.exec(t.Context(), 10, "true"); err != nil || r.code != 0 {
			wrong.Add(1)
		}
		if time.Since(start) > 20*time.Second {
			slow.Add(1)
		}
		if i%10 == 0 {
			if r, err := bystander.exec(t.Context(), 10, "echo", "fine"); err != nil || r.stdout != "fine\n" {
				t.Errorf("exec in another container: %+v, %v", r, err)
			}
		}
	})
	for range 20 {
		if c, err := p.tryCreate(command("true")); err == nil {
			_ = c.tryStart()
		}
	}
	if slow.Load() > 0 {
		t.Errorf("%d execs took more than twice their time limit", slow.Load())
	}
	if after := n.ours(t); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("our processes were\n%v\nand are\n%v", before, after)
	}
	attacker.stop(t, 20)
	out := attacker.logText(t, "stdout")
	t.Logf("%d execs, %d of them broken by the attacker; it says: %s", execs, wrong.Load(), out)
	if strings.Contains(out, "FOUND") {
		t.Error("the attacker saw something of the host, see above")
	}
	var seen, mem, vm, ptrace int
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if _, err := fmt.Sscanf(lines[len(lines)-1], "seen=%d mem=%d vm=%d ptrace=%d", &seen, &mem, &vm, &ptrace); err != nil {
		t.Fatalf("the attacker's last line: %v", err)
	}
	if seen == 0 || mem == 0 || vm == 0 || ptrace == 0 {
		t.Error("the attacker did not attack: this test proves nothing")
	}
}

// TestStopAttack has a container stop every process that it sees by SIGSTOP, from its first instruction on. Execs in it
// end by their time limit; those in other containers, and their logs, are not delayed.
func TestStopAttack(t *testing.T) {
	nativeOnly(t)
	if testing.Short() {
		t.Skip("-short: what it asserts is time, which emulated processors do not keep")
	}
	n := sharedNode(t)
	for name, options := range map[string][]podOption{"own PID namespace": nil, "shared PID namespace": {sharedPID}} {
		t.Run(name, func(t *testing.T) {
			p := n.runPod(t, options...)
			stopper := p.run(t, helper("role-stopper")).isReady(t)
			others := n.runPod(t)
			bystander := others.run(t, command("sleep", "1000"))
			writer := others.run(t, helper("role-write", "10ms"))

			var attacks sync.WaitGroup
			for range 8 {
				attacks.Go(func() {
					start := time.Now()
					_, err := stopper.exec(t.Context(), 2, "true")
					if took := time.Since(start); took > 10*time.Second {
						t.Errorf("an exec that was stopped and has 2 s took %v (%v)", took, err)
					}
				})
			}
			if len(options) > 0 {
				attacks.Go(func() { // a container that starts beside the attacker may fail, but only itself
					if c, err := p.tryCreate(command("true")); err == nil {
						_ = c.tryStart()
					}
				})
			}
			var took []time.Duration
			for range 100 {
				start := time.Now()
				if r, err := bystander.exec(t.Context(), 10, "echo", "fine"); err != nil || r.stdout != "fine\n" {
					t.Errorf("exec in another container: %+v, %v", r, err)
				}
				took = append(took, time.Since(start))
			}
			attacks.Wait()
			slices.Sort(took)
			const limit = time.Second
			if worst := took[len(took)-1]; worst > limit {
				t.Errorf("an exec in another container took %v", worst)
			}
			writer.stop(t, 5)
			lines := writer.readLog(t)
			wantSequence(t, lines)
			for i := 1; i < len(lines); i++ {
				if gap := lines[i].time.Sub(lines[i-1].time); gap > limit {
					t.Errorf("another container's log has a gap of %v", gap)
				}
			}
			t.Logf("other containers' execs: p50 %v, max %v", took[50].Round(10*time.Microsecond), took[99].Round(10*time.Microsecond))
		})
	}
}

// TestHostileMountTarget creates a mount whose target leads out of the container by a link of the image's own making:
// what is mounted must land inside (CVE-2021-30465).
func TestHostileMountTarget(t *testing.T) {
	n := sharedNode(t)
	p := n.runPod(t, hostNetwork)
	source := t.TempDir()
	if err := os.Chmod(source, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(source+"/marker", []byte("here\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc", source+"/out"); err != nil {
		t.Fatal(err)
	}
	c := p.run(t, command("sleep", "1000"), func(c *runtimev1.ContainerConfig) {
		c.Mounts = []*runtimev1.Mount{
			{HostPath: source, ContainerPath: "/data"},
			{HostPath: source, ContainerPath: "/data/out/nested"}, // through the link: the container's /etc/nested
		}
	})
	if got := c.output(t, "cat", "/etc/nested/marker"); got != "here\n" {
		t.Errorf("the mount's content reads %q", got)
	}
	if _, err := os.Stat("/etc/nested"); err == nil {
		t.Error("the mount's target was made on the host")
	}
}
