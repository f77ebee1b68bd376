package cgroup

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestOpenBeside(t *testing.T) {
	root := testRoot(t)
	c := create(t, root+"/c", nil)
	if c.layout.unified == nil {
		t.Skip("there is no unified hierarchy")
	}
	below := create(t, root+"/c/below", nil)
	cmd := run(t, below, "sleep 60")
	fd, err := c.OpenBeside(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if got, err := filepath.EvalSymlinks("/proc/self/fd/" + strconv.Itoa(fd)); err != nil || got != below.UnifiedDir() {
		t.Errorf("it is %s, %v, want %s", got, err, below.UnifiedDir())
	}
	if _, err := c.OpenBeside(os.Getpid()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a process outside: %v", err)
	}
}
