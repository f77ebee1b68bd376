package shimd

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func openTable(t *testing.T, dir string) *execTable {
	t.Helper()
	table, err := openExecTable(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(table.close)
	return table
}

func sleeper(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

// TestExecTable leaves processes behind as a shim does that is killed: the next one ends them, and nobody else.
func TestExecTable(t *testing.T) {
	dir := t.TempDir()
	first := openTable(t, dir)
	left, done, other := sleeper(t), sleeper(t), sleeper(t)
	if _, err := first.enter(left.Process.Pid, ""); err != nil {
		t.Fatal(err)
	}
	entry, err := first.enter(done.Process.Pid, "")
	if err != nil {
		t.Fatal(err)
	}
	first.leave(entry)
	if _, err := first.enter(other.Process.Pid, "/no/such/cgroup"); err != nil { // as one that got the number later
		t.Fatal(err)
	}
	second := openTable(t, dir)
	second.endLeft()
	state, err := left.Process.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if status := state.Sys().(syscall.WaitStatus); status.Signal() != unix.SIGKILL {
		t.Errorf("it ended by %s", state)
	}
	for _, one := range []*exec.Cmd{done, other} {
		if err := one.Process.Signal(unix.Signal(0)); err != nil {
			t.Errorf("process %d: %v", one.Process.Pid, err)
		}
	}
	data, err := os.ReadFile(filepath.Join(dir, execsFile))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if pid := *(*[4]byte)(data[i*execSlot:]); pid != [4]byte{} {
			t.Errorf("slot %d still has a process", i)
		}
	}
}

func TestExecTableLimits(t *testing.T) {
	table := openTable(t, t.TempDir())
	if _, err := table.enter(1, "/"+strings.Repeat("a", maxExecPath)); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a long path: %v", err)
	}
	var last int
	for i := range execSlots {
		var err error
		if last, err = table.enter(i+1, "/c"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := table.enter(1, "/c"); !errdefs.IsResourceExhausted(err) {
		t.Errorf("one too many: %v", err)
	}
	table.leave(last)
	if again, err := table.enter(1, "/c"); err != nil || again != last {
		t.Errorf("a slot that is free again: %d, %v, want %d", again, err, last)
	}
}

// TestEndExecChecksTheStart takes a process that is older than its entry can be, and one that is younger.
func TestEndExecChecksTheStart(t *testing.T) {
	one := sleeper(t)
	now := bootTime()
	endExec(one.Process.Pid, now+2*execTolerant, "")
	endExec(one.Process.Pid, now-time.Minute, "")
	if err := one.Process.Signal(unix.Signal(0)); errors.Is(err, os.ErrProcessDone) {
		t.Error("it was ended")
	}
	endExec(one.Process.Pid, now, "")
	if err := one.Wait(); err == nil {
		t.Error("it was not ended")
	}
}
