package shimd

import (
	"context"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/internal/procstat"
)

// TestOrphansComeAndAreReaped has a program leave a process: it becomes our child only while that is expected, one that
// somebody here waits for is left to him, and any other is reaped.
func TestOrphansComeAndAreReaped(t *testing.T) {
	var wanted int
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	o := &orphans{ctx: ctx, known: func(pid int) bool { return pid == wanted }, every: 20 * time.Millisecond, after: 50 * time.Millisecond}
	leave := func() int {
		out, err := exec.Command("sh", "-c", "sleep 0.3 >/dev/null 2>&1 & echo $!").Output()
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
		if err != nil {
			t.Fatal(err)
		}
		return pid
	}
	parent := func(pid int) string {
		stat, err := procstat.Read(pid)
		if err != nil {
			return ""
		}
		return stat.Field(procstat.Parent)
	}
	own := strconv.Itoa(os.Getpid())
	done := o.expect()
	again := o.expect()
	wanted = leave()
	done()
	stray := leave()
	again()
	elsewhere := leave()
	if parent(wanted) != own || parent(stray) != own || parent(elsewhere) == own {
		t.Errorf("parents: %s and %s are to be %s, %s is not", parent(wanted), parent(stray), own, parent(elsewhere))
	}
	for deadline := time.Now().Add(5 * time.Second); parent(stray) != ""; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a stray is not reaped")
		}
	}
	if parent(wanted) != own {
		t.Error("what somebody waits for was reaped")
	}
	if _, err := unix.Wait4(wanted, nil, 0, nil); err != nil {
		t.Error(err)
	}
}
