package cgstat

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

// Relative is the directory of linux.cgroupsPath beneath the root of a hierarchy. A path in the form of cgroupfs is itself;
// "slice:prefix:name" is a scope in a slice of systemd, whose name says where it lies: a-b.slice is in a.slice.
func Relative(cgroupsPath string) (string, error) {
	rel, absolute := strings.CutPrefix(cgroupsPath, "/")
	if !absolute {
		slice, rest, ok := strings.Cut(cgroupsPath, ":")
		prefix, name, ok2 := strings.Cut(rest, ":")
		if !ok || !ok2 || name == "" || strings.Contains(rest, "/") {
			return "", fmt.Errorf("cgroups path %q: must be absolute, or as slice:prefix:name: %w", cgroupsPath, errdefs.ErrInvalidArgument)
		}
		if prefix != "" {
			name = prefix + "-" + name
		}
		if slice == "" {
			slice = "system.slice"
		}
		if !strings.HasSuffix(name, ".slice") {
			name += ".scope"
		}
		rel = expandSlice(slice) + "/" + name
	} else if strings.HasSuffix(rel, ".slice") && !strings.Contains(rel, "/") {
		rel = expandSlice(rel)
	}
	rel = strings.Trim(rel, "/")
	for part := range strings.SplitSeq(rel, "/") {
		if part == "" || part == "." || part == ".." || strings.ContainsRune(part, 0) {
			return "", fmt.Errorf("cgroups path %q has a component that is empty, \".\" or \"..\": %w", cgroupsPath, errdefs.ErrInvalidArgument)
		}
	}
	return rel, nil
}

// expandSlice turns "a-b.slice" into "a.slice/a-b.slice"; "-.slice" is the root.
func expandSlice(slice string) string {
	name := strings.TrimSuffix(slice, ".slice")
	if name == "-" {
		return ""
	}
	var b strings.Builder
	for i := range len(name) {
		if name[i] == '-' {
			b.WriteString(name[:i] + ".slice/")
		}
	}
	b.WriteString(name + ".slice")
	return b.String()
}
