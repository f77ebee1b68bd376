package e2e

import (
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/e2e/rig"
)

// killed are processes of ours that a test kills at once.
type killed struct{ daemon, shim, keeper bool }

// kill ends them by SIGKILL, as nearly at one instant as can be, and waits until they are gone.
func (n *node) kill(t testing.TB, which killed) {
	t.Helper()
	var pids []int
	if which.keeper { // first, or it would start a shim again
		pids = append(pids, n.d.KeeperPID())
	}
	if which.shim {
		pids = append(pids, n.d.ShimPID())
	}
	if which.daemon {
		pids = append(pids, n.d.PID())
	}
	var gone []rig.Process
	for _, pid := range pids {
		p, err := rig.ReadProcess(pid)
		if err != nil || pid == 0 {
			t.Fatalf("a process of ours to kill is not there: pid %d, %v", pid, err)
		}
		gone = append(gone, p)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	if which.daemon {
		n.d.Kill() // waits
	}
	for _, p := range gone {
		eventually(t, 10*time.Second, func() error {
			if now, err := rig.ReadProcess(p.PID); err == nil && now.Start == p.Start && now.State != 'Z' {
				return fmt.Errorf("still there: %v", now)
			}
			return nil
		})
	}
}

// recovered starts the daemon again if it was killed, and waits until all three processes are there.
func (n *node) recovered(t testing.TB, which killed) {
	t.Helper()
	if which.daemon {
		if err := n.d.Start(t.Context()); err != nil {
			t.Fatalf("the daemon does not start again: %v", err)
		}
	}
	start := time.Now()
	eventually(t, 10*time.Second, func() error {
		if n.d.ShimPID() == 0 || n.d.KeeperPID() == 0 {
			return fmt.Errorf("shim is %d, keeper is %d", n.d.ShimPID(), n.d.KeeperPID())
		}
		return nil
	})
	t.Logf("shim and keeper were there after %v", time.Since(start).Round(time.Millisecond))
}

var deaths = map[string]killed{
	"daemon":          {daemon: true},
	"shim":            {shim: true},
	"daemon and shim": {daemon: true, shim: true},
	"keeper":          {keeper: true},
}

// TestKill kills parts of us while a container writes a numbered line every 10 ms. The container must not notice: it
// runs on, its log has every line once, ps shows it, exec works, and its exit code is the right one.
func TestKill(t *testing.T) {
	for name, which := range deaths {
		t.Run(name, func(t *testing.T) {
			n := ownNode(t)
			p := n.runPod(t)
			c := p.run(t, helper("role-write", "10ms"))
			terminal := p.run(t, tty, helper("role-write", "10ms"))
			eventually(t, 20*time.Second, c.hasLines(t, 50))
			before := n.workloads(t)

			n.kill(t, which)
			time.Sleep(time.Second)
			n.recovered(t, which)

			if after := n.workloads(t); !sameProcesses(before, after) {
				t.Fatalf("the workloads were %v and are %v", before, after)
			}
			lines := len(c.readLog(t))
			eventually(t, 20*time.Second, c.hasLines(t, lines+100))
			n.wantRunning(t, c, terminal)
			if out := c.output(t, "echo", "alive"); out != "alive\n" {
				t.Errorf("exec answers %q", out)
			}
			for _, c := range []*container{c, terminal} {
				c.stop(t, 10)
				if s := c.status(t); s.ExitCode != 42 {
					t.Errorf("code %d, reason %q, want 42", s.ExitCode, s.Reason)
				}
			}
			wantSequence(t, c.readLog(t))
		})
	}
}

// TestKillRepeatedly kills the shim again and again, not giving it time to take over, with several writers.
func TestKillRepeatedly(t *testing.T) {
	n := ownNode(t)
	p := n.runPod(t, hostNetwork)
	var writers []*container
	for range 4 {
		writers = append(writers, p.run(t, helper("role-write", "1ms")))
	}
	for i := range 12 {
		time.Sleep(time.Duration(i*7%50+5) * time.Millisecond)
		if pid := n.d.ShimPID(); pid != 0 {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
		}
	}
	n.recovered(t, killed{})
	for _, c := range writers {
		lines := len(c.readLog(t))
		eventually(t, 20*time.Second, c.hasLines(t, lines+100))
	}
	for _, c := range writers {
		c.stop(t, 10)
		if s := c.status(t); s.ExitCode != 42 {
			t.Errorf("code %d, reason %q, want 42", s.ExitCode, s.Reason)
		}
		wantSequence(t, c.readLog(t))
	}
}

// TestExitWhileDead ends containers when nobody of ours but the keeper is there to see it.
func TestExitWhileDead(t *testing.T) {
	for name, which := range deaths {
		if which.keeper {
			continue
		}
		t.Run(name, func(t *testing.T) {
			n := ownNode(t)
			p := n.runPod(t, hostNetwork)
			// It ends by itself about when the others die, and again while they are dead.
			soon := p.run(t, helper("role-write", "1ms", "100", "7"))
			later := p.run(t, helper("role-write", "10ms", "100", "8"))
			eventually(t, 20*time.Second, later.hasLines(t, 5))
			n.kill(t, which)
			time.Sleep(2 * time.Second)
			n.recovered(t, which)
			for c, code := range map[*container]int32{soon: 7, later: 8} {
				if s := c.wait(t, 20*time.Second); s.ExitCode != code {
					t.Errorf("code %d, reason %q, want %d", s.ExitCode, s.Reason, code)
				}
				if lines := c.readLog(t); len(lines) != 100 {
					t.Errorf("the log has %d lines, want 100", len(lines))
				} else {
					wantSequence(t, lines)
				}
			}
		})
	}
}

// TestDaemonRestart stops the daemon in order and starts it again: what it knew it knows, pods can be made and removed.
func TestDaemonRestart(t *testing.T) {
	n := ownNode(t)
	p := n.runPod(t)
	ip := p.ip(t)
	running := p.run(t, helper("role-write", "10ms"))
	exited := p.run(t, shell("exit 5"))
	exited.wait(t, 20*time.Second)
	created := p.create(t, command("sleep", "1000"))
	want := running.status(t)

	if err := n.d.Stop(); err != nil {
		t.Fatalf("the daemon's end: %v", err)
	}
	if w := n.workloads(t); len(w) != 1 {
		t.Errorf("without the daemon the workloads are %v, want one", w)
	}
	if err := n.d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}

	if s := p.status(t); s.State != runtimev1.PodSandboxState_SANDBOX_READY || p.ip(t) != ip {
		t.Errorf("the pod is %v at %s, was ready at %s", s.State, s.GetNetwork().GetIp(), ip)
	}
	if got := running.status(t); got.State != want.State || got.StartedAt != want.StartedAt || got.CreatedAt != want.CreatedAt {
		t.Errorf("the running container is %v, was %v", got, want)
	}
	if got := exited.status(t); got.State != runtimev1.ContainerState_CONTAINER_EXITED || got.ExitCode != 5 || got.FinishedAt == 0 {
		t.Errorf("the exited container is %v", got)
	}
	created.start(t)
	n.wantRunning(t, running, created)
	if other := n.runPod(t).ip(t); other == ip {
		t.Errorf("a second pod got the first one's address %s", ip)
	}
	running.stop(t, 10)
	wantSequence(t, running.readLog(t))
}

// TestPodRemovedAfterKill removes a pod right after everything of ours was killed.
func TestPodRemovedAfterKill(t *testing.T) {
	n := ownNode(t)
	p := n.runPod(t)
	p.run(t, command("sleep", "1000"))
	all := killed{daemon: true, shim: true, keeper: true}
	n.kill(t, all)
	n.recovered(t, all)
	eventually(t, 30*time.Second, p.down)
	if w := n.workloads(t); len(w) != 0 {
		t.Errorf("workloads are left: %v", w)
	}
}

// wantRunning asserts that ps shows exactly these as running.
func (n *node) wantRunning(t testing.TB, want ...*container) {
	t.Helper()
	ids := func(all []*container) (ids []string) {
		for _, c := range all {
			ids = append(ids, c.id)
		}
		slices.Sort(ids)
		return ids
	}
	eventually(t, 10*time.Second, func() error {
		ctx, cancel := callContext()
		defer cancel()
		state := &runtimev1.ContainerStateValue{State: runtimev1.ContainerState_CONTAINER_RUNNING}
		list, err := n.d.Runtime.ListContainers(ctx, &runtimev1.ListContainersRequest{Filter: &runtimev1.ContainerFilter{State: state}})
		if err != nil {
			return err
		}
		var got []*container
		for _, c := range list.Containers {
			got = append(got, &container{id: c.Id})
		}
		if !slices.Equal(ids(got), ids(want)) {
			return errors.New("ps shows others than those that run")
		}
		return nil
	})
}

// sameProcesses compares by number and start time.
func sameProcesses(a, b []rig.Process) bool {
	keys := func(all []rig.Process) (keys []string) {
		for _, p := range all {
			keys = append(keys, fmt.Sprint(p.PID, p.Start))
		}
		slices.Sort(keys)
		return keys
	}
	return slices.Equal(keys(a), keys(b))
}
