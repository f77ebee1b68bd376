package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/criserver/criserver/test/e2e/rig"
)

// dumping waits until criu is at work, and then a while. It answers with criu's pid.
func dumping(t testing.TB, done <-chan error, while time.Duration) (pid int) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Millisecond) {
		select {
		case err := <-done:
			t.Fatalf("the checkpoint was done before criu was seen: %v", err)
		default:
		}
		all, err := rig.Processes()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range all {
			if filepath.Base(p.Exe) == "criu" && p.State != 'Z' {
				time.Sleep(while)
				return p.PID
			}
		}
	}
	t.Fatal("criu does not come")
	return 0
}

// TestKillDuringCheckpoint kills criu, and the shim, amid a dump, sooner and later in it. The checkpoint fails and nothing is left of it; the
// container is not left frozen, and neither is any other: what criu had taken hold of runs on, or has ended if it was amid a call of
// criu's, and can be removed.
func TestKillDuringCheckpoint(t *testing.T) {
	n := ownNode(t)
	p := n.runPod(t)
	bystander := p.run(t, shell(counter))
	if c := p.run(t, shell(counter)); criuMissing(t, c.checkpoint(filepath.Join(t.TempDir(), "probe.tar"))) {
		t.Skip("criu does not work on this kernel; in the virtual machine it does")
	}
	for _, shim := range []bool{false, true} {
		for _, while := range []time.Duration{0, 100 * time.Millisecond} {
			t.Run(fmt.Sprintf("shim %v after %v", shim, while), func(t *testing.T) {
				c := p.run(t, shell(counter))
				c.counts(t, 2)
				dir := t.TempDir()
				archive := filepath.Join(dir, "checkpoint.tar")
				done := make(chan error, 1)
				go func() { done <- c.checkpoint(archive) }()
				pid := dumping(t, done, while)
				if shim {
					n.kill(t, killed{shim: true})
				} else if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
					t.Fatal(err)
				}
				var err error
				select {
				case err = <-done:
				case <-time.After(2 * time.Minute):
					t.Fatal("the call does not end")
				}
				if err == nil && while == 0 {
					t.Error("a checkpoint whose criu was killed at its beginning is said to be good")
				}
				if _, statErr := os.Stat(archive); err != nil && !errors.Is(statErr, fs.ErrNotExist) {
					t.Errorf("left of the checkpoint that failed (%v): %v", err, statErr)
				}
				if shim {
					n.recovered(t, killed{shim: true})
				}
				bystander.counts(t, 2)
				c.countsOrEnds(t)
				c.stop(t, 0)
				c.remove(t)
			})
		}
	}
	d := p.run(t, shell(counter))
	d.counts(t, 2)
	if err := d.checkpoint(filepath.Join(t.TempDir(), "after.tar")); err != nil {
		t.Errorf("a checkpoint after those: %v", err)
	}
	d.counts(t, 2)
}

// countsOrEnds waits until the counter has gone on, or has ended.
func (c *container) countsOrEnds(t testing.TB) {
	t.Helper()
	start := len(c.numbers(t))
	eventually(t, 60*time.Second, func() error {
		if s := c.status(t); s.FinishedAt != 0 {
			t.Logf("it has ended with %d (%s)", s.ExitCode, s.Reason)
			return nil
		}
		if now := len(c.numbers(t)); now < start+3 {
			return fmt.Errorf("it neither goes on nor ends: %d numbers, there were %d", now, start)
		}
		return nil
	})
}
