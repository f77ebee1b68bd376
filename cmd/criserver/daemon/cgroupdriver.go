package daemon

import (
	"github.com/criserver/criserver/cmd/criserver/config"
	"github.com/criserver/criserver/shim/native/cgroup"
)

// cgroupDriver says whether cgroups are systemd's, and the parent of pods that name none. It is an error when this machine
// has no systemd to make them.
func cgroupDriver(w config.Workload) (systemd bool, parent string, err error) {
	if w.CgroupDriver != "systemd" {
		return false, w.CgroupParent, nil
	}
	parent = w.CgroupParent
	if parent == config.Default().Workload.CgroupParent {
		parent = "" // the engine's own default
	}
	return true, parent, cgroup.CheckSystemd()
}
