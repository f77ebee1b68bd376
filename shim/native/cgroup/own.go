package cgroup

import (
	"fmt"
	"os"
	"path"
	"strings"
)

// Own is the cgroup beneath which this process may make others: its own, by the hierarchy of the memory controller; on v2 the one
// above, because a cgroup that has processes cannot give controllers to those below it.
func Own() (string, error) {
	l, err := machine()
	if err != nil {
		return "", err
	}
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	return own(string(b), l.pure())
}

func own(content string, pure bool) (string, error) {
	for line := range strings.Lines(content) {
		_, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		controllers, where, _ := strings.Cut(rest, ":")
		if pure && controllers == "" {
			return path.Dir(path.Clean("/" + where)), nil
		}
		if !pure && strings.Contains(","+controllers+",", ",memory,") {
			return path.Clean("/" + where), nil
		}
	}
	return "", fmt.Errorf("/proc/self/cgroup does not name this process's cgroup: %q", content)
}

// Frozen says whether the freezer holds the cgroup's processes. A cgroup that is gone is not frozen.
func (c *Cgroup) Frozen() bool {
	if h := c.layout.v1With("freezer"); h != nil {
		state, err := h.read(c.rel + "/freezer.state")
		return err == nil && state != "THAWED"
	}
	if c.layout.unified == nil {
		return false
	}
	events, err := c.layout.unified.read(c.rel + "/cgroup.events")
	return err == nil && strings.Contains(events, "frozen 1")
}
