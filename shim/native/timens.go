package native

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native/plan"
)

// newTime makes a time namespace and enters it. Its clocks are set before anyone is in it.
func (c *compiler) newTime() {
	c.Unshare(unix.CLONE_NEWTIME)
	offsets := c.in.spec.Linux.TimeOffsets
	var lines strings.Builder
	for _, clock := range slices.Sorted(maps.Keys(offsets)) {
		fmt.Fprintf(&lines, "%s %d %d\n", clock, offsets[clock].Secs, offsets[clock].Nanosecs)
	}
	if lines.Len() > 0 {
		c.At("linux.timeOffsets")
		c.writeFile("/proc/self/timens_offsets", lines.String())
	}
	c.At("linux.namespaces time")
	ns := c.Reg()
	c.Openat(ns, plan.Cwd, "/proc/self/ns/time_for_children", 0)
	c.Setns(ns, unix.CLONE_NEWTIME)
	c.Close(ns)
}

// joinMounts enters an existing mount namespace, the last one: paths are found in there from then on.
func (c *compiler) joinMounts() {
	ns := c.namespaceOf(specs.MountNamespace)
	if ns == nil || ns.Path == "" {
		return
	}
	c.At("linux.namespaces %s", ns.Type)
	fd := c.Reg()
	c.Openat(fd, plan.Cwd, ns.Path, 0)
	c.Setns(fd, unix.CLONE_NEWNS)
	c.Close(fd)
}

// changeDirectoryRoot enters the root filesystem of a container that is in the host's mount namespace.
func (c *compiler) changeDirectoryRoot() {
	c.Fchdir(c.root)
	c.Simple(unix.SYS_CHROOT, "chroot", ".")
	c.Chdir("/")
}
