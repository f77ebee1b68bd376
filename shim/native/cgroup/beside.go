package cgroup

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// OpenBeside opens the unified hierarchy's cgroup that a process of the container is in: c itself or one below it. It is
// for a process that is to join a container which has divided its cgroup among cgroups of its own: the kernel lets
// nobody into one that has given controllers to its children. The caller closes the descriptor.
func (c *Cgroup) OpenBeside(pid int) (int, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return -1, err
	}
	for line := range strings.Lines(string(data)) {
		path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::/")
		if !ok {
			continue
		}
		if c.layout.unified == nil || !c.covers(path) {
			return -1, fmt.Errorf("process %d is in cgroup /%s, not in /%s or below: %w", pid, path, c.rel, errdefs.ErrFailedPrecondition)
		}
		return c.layout.unified.open(path, unix.O_PATH|unix.O_DIRECTORY)
	}
	return -1, fmt.Errorf("process %d is in no cgroup of the unified hierarchy: %w", pid, errdefs.ErrFailedPrecondition)
}
