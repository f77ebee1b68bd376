package native

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// rdtTasks is the file by which a process joins the class of cache and memory bandwidth that the spec names: one that was made
// before, by the node's administrator or the daemon (workload.rdt_config). mountinfo is that of /proc/self.
func rdtTasks(rdt *specs.LinuxIntelRdt, mountinfo string) (string, error) {
	for field, asked := range map[string]bool{
		"schemata": len(rdt.Schemata) > 0, "l3CacheSchema": rdt.L3CacheSchema != "", "memBwSchema": rdt.MemBwSchema != "",
		"enableMonitoring": rdt.EnableMonitoring,
	} {
		if asked {
			return "", fmt.Errorf("linux.intelRdt.%s is not supported: name a class that is there, by closID alone: %w", field, errdefs.ErrNotImplemented)
		}
	}
	class := rdt.ClosID
	switch {
	case class == "":
		return "", fmt.Errorf("linux.intelRdt without closID is not supported: name a class that is there: %w", errdefs.ErrNotImplemented)
	case class == "/":
		class = "."
	case strings.ContainsAny(class, "/\x00\n") || class == "." || class == ".." || class == "info" || strings.HasPrefix(class, "mon_"):
		return "", fmt.Errorf("linux.intelRdt.closID %q cannot be the name of a class: %w", class, errdefs.ErrInvalidArgument)
	}
	root := resctrlMount(mountinfo)
	if root == "" {
		return "", fmt.Errorf("linux.intelRdt: no resctrl filesystem is mounted; it takes a processor and a kernel that have it (mount -t resctrl resctrl /sys/fs/resctrl): %w",
			errdefs.ErrFailedPrecondition)
	}
	tasks := filepath.Join(root, class, "tasks")
	if _, err := os.Stat(tasks); err != nil {
		return "", fmt.Errorf("linux.intelRdt.closID %q: there is no such class: %w: %w", rdt.ClosID, err, errdefs.ErrFailedPrecondition)
	}
	return tasks, nil
}

// resctrlMount is where resctrl is mounted; "": nowhere.
func resctrlMount(mountinfo string) string {
	for line := range strings.Lines(mountinfo) {
		mount, kind, _ := strings.Cut(line, " - ")
		if fields := strings.Fields(mount); strings.HasPrefix(kind, "resctrl ") && len(fields) > 4 {
			return fields[4]
		}
	}
	return ""
}
