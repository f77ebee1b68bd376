package cgroup

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/systemd"
)

// scopePrefix begins the names of our units, so that a cgroup of the cgroupfs form is never taken for one.
const scopePrefix = "criserver"

// SystemdForm is the path of a container's scope as runc and its kin take it, "slice:prefix:name"; any other path is answered as it is.
func SystemdForm(cgroupsPath string) string {
	if u := unitOf(strings.TrimPrefix(cgroupsPath, "/")); u != nil && u.ScopePrefix != "" {
		return u.Parent + ":" + u.ScopePrefix + ":" + u.Name
	}
	return cgroupsPath
}

// unitOf says which unit of systemd a cgroup is, nil when it is none of ours.
func unitOf(rel string) *cgroups.Cgroup {
	above, name := path.Split(rel)
	slice := path.Base(path.Clean(above))
	if !strings.HasSuffix(slice, ".slice") {
		return nil
	}
	if id, ok := strings.CutPrefix(name, scopePrefix+"-"); ok && strings.HasSuffix(id, ".scope") {
		return &cgroups.Cgroup{Name: strings.TrimSuffix(id, ".scope"), ScopePrefix: scopePrefix, Parent: slice, Systemd: true}
	}
	if strings.HasPrefix(name, strings.TrimSuffix(slice, ".slice")+"-pod") && strings.HasSuffix(name, ".slice") {
		return &cgroups.Cgroup{Name: name, Parent: slice, Systemd: true}
	}
	return nil
}

// CheckSystemd says why the systemd driver cannot be used on this machine.
func CheckSystemd() error {
	l, err := machine()
	switch {
	case err != nil:
		return err
	case !systemd.IsRunningSystemd():
		return fmt.Errorf("cgroup driver systemd: systemd is not this machine's init (/run/systemd/system is missing): use cgroupfs: %w", errdefs.ErrFailedPrecondition)
	case !l.pure():
		return fmt.Errorf("cgroup driver systemd: it needs cgroup v2, and this machine has hierarchies of v1: use cgroupfs: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}

// manager speaks to systemd about the cgroup; nil when it is no unit. The connection is the process's.
func (c *Cgroup) manager(r *cgroups.Resources) (*systemd.UnifiedManager, error) {
	u := unitOf(c.rel)
	if u == nil {
		return nil, nil
	}
	if err := CheckSystemd(); err != nil {
		return nil, err
	}
	u.Resources = r
	m, err := systemd.NewUnifiedManager(u, c.layout.unified.path(c.rel))
	if err != nil {
		return nil, fmt.Errorf("cgroup /%s by systemd: %w", c.rel, err)
	}
	return m, nil
}

// Adopt has systemd know the cgroup as a scope that is delegated to us, with the limits of Create as its properties, so that it leaves
// it alone and does not undo them. A scope needs a process: pid, which was born in the cgroup and has not executed anything yet.
// Nothing is done for a cgroup of the cgroupfs driver.
func (c *Cgroup) Adopt(ctx context.Context, pid int) error {
	m, err := c.manager(c.resources)
	if m == nil || err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := m.Apply(pid); err != nil {
		return fmt.Errorf("have systemd make a scope of cgroup /%s: %w", c.rel, unavailable(err))
	}
	return c.tell(m, c.resources)
}

// createSlice has systemd make the slice of a pod.
func (c *Cgroup) createSlice() error {
	u := unitOf(c.rel)
	if u == nil {
		return nil
	}
	m, err := c.manager(c.resources)
	if err != nil || u.ScopePrefix != "" {
		return err
	}
	if err := m.Apply(-1); err != nil {
		return fmt.Errorf("have systemd make the slice /%s: %w", c.rel, unavailable(err))
	}
	return c.tell(m, c.resources)
}

// tell sets limits as properties of the unit. Those of devices are not: the program that Create attaches stays.
func (c *Cgroup) tell(m *systemd.UnifiedManager, r *cgroups.Resources) error {
	limits := *r
	limits.Devices, limits.SkipDevices = nil, true
	if err := m.Set(&limits); err != nil {
		return fmt.Errorf("tell systemd the limits of cgroup /%s: %w", c.rel, kind(err))
	}
	return nil
}

// tellUnit is tell for a change of limits.
func (c *Cgroup) tellUnit(r *cgroups.Resources) error {
	m, err := c.manager(r)
	if m == nil || err != nil {
		return err
	}
	return c.tell(m, r)
}

// stopUnit has systemd forget the unit. One that it does not know is no error, nor is a systemd that is not there any more.
func (c *Cgroup) stopUnit() error {
	m, err := c.manager(&cgroups.Resources{})
	if m == nil || errdefs.IsFailedPrecondition(err) {
		return nil
	}
	if err == nil {
		err = m.Destroy()
	}
	if err != nil {
		return fmt.Errorf("have systemd remove the unit of cgroup /%s: %w", c.rel, unavailable(err))
	}
	return nil
}

// unavailable gives what systemd or D-Bus answered its kind.
func unavailable(err error) error {
	return errors.Join(err, errdefs.ErrFailedPrecondition)
}
