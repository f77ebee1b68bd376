package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// freezer is the hierarchy whose freezer stops what is in a cgroup: v1's where there is one, else the unified one (Linux 5.2).
func (c *Cgroup) freezer() (h *hierarchy, v1 bool, err error) {
	if h := c.layout.v1With("freezer"); h != nil {
		return h, true, nil
	}
	if c.layout.unified != nil {
		return c.layout.unified, false, nil
	}
	return nil, false, fmt.Errorf("cgroup /%s: no hierarchy with a freezer is mounted: %w", c.rel, errdefs.ErrNotImplemented)
}

// FreezerDir is the directory whose freezer Freeze uses.
func (c *Cgroup) FreezerDir() (string, error) {
	h, _, err := c.freezer()
	if err != nil {
		return "", err
	}
	return h.path(c.rel), nil
}

// Freeze stops every process of the cgroup and waits until all are stopped. After an error the cgroup may be half frozen:
// Thaw it.
func (c *Cgroup) Freeze(ctx context.Context) error {
	h, v1, err := c.freezer()
	if err != nil {
		return err
	}
	for pause := 100 * time.Microsecond; ; pause = min(2*pause, 5*time.Millisecond) {
		frozen, err := freezeOnce(h, v1, c.rel)
		if err != nil {
			return fmt.Errorf("freeze cgroup /%s: %w", c.rel, c.absent(err))
		}
		if frozen {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("freeze cgroup /%s: a process does not stop, perhaps in an uninterruptible sleep: %w", c.rel, ctx.Err())
		case <-time.After(pause):
		}
	}
}

// freezeOnce asks for the freeze, again on v1 whose freezer may have to be told twice, and says whether it is done.
func freezeOnce(h *hierarchy, v1 bool, rel string) (bool, error) {
	if v1 {
		if err := h.write(rel+"/freezer.state", "FROZEN"); err != nil {
			return false, err
		}
		state, err := h.read(rel + "/freezer.state")
		return state == "FROZEN", err
	}
	if err := h.write(rel+"/cgroup.freeze", "1"); err != nil {
		return false, err
	}
	events, err := h.read(rel + "/cgroup.events")
	return strings.Contains(events, "frozen 1"), err
}

// Thaw lets the processes of a frozen cgroup go on. One that is not frozen, or is gone, is no error.
func (c *Cgroup) Thaw() error {
	h, v1, err := c.freezer()
	if err != nil {
		return err
	}
	if v1 {
		err = h.write(c.rel+"/freezer.state", "THAWED")
	} else {
		err = h.write(c.rel+"/cgroup.freeze", "0")
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("thaw cgroup /%s: %w", c.rel, err)
	}
	return nil
}
