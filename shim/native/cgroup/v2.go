package cgroup

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// createV2 is Create where all controllers are on the unified hierarchy.
func (c *Cgroup) createV2(ctx context.Context) error {
	if err := c.createSlice(); err != nil {
		return err
	}
	h := c.layout.unified
	above := parent(c.rel)
	if above != "" {
		if _, err := h.mkdir(above); err != nil {
			return fmt.Errorf("make cgroup /%s: %w", above, err)
		}
	}
	if err := delegate(ctx, h, above); err != nil {
		return fmt.Errorf("make cgroup /%s: %w", c.rel, err)
	}
	if _, err := h.mkdir(c.rel); err != nil {
		return fmt.Errorf("make cgroup /%s: %w", c.rel, err)
	}
	return c.applyV2(c.resources)
}

// delegate gives the children of rel every controller that the root has. A controller that the kernel refuses is left
// out: only a limit that needs it is an error, when it is set.
func delegate(ctx context.Context, h *hierarchy, rel string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	available, err := h.read("cgroup.controllers")
	if err != nil {
		return err
	}
	control := strings.TrimPrefix(rel+"/cgroup.subtree_control", "/")
	enabled, err := h.read(control)
	if err != nil {
		return err
	}
	have := strings.Fields(enabled)
	missing := slices.DeleteFunc(strings.Fields(available), func(c string) bool { return slices.Contains(have, c) })
	if len(missing) == 0 {
		return nil
	}
	if rel != "" {
		if err := delegate(ctx, h, parent(rel)); err != nil {
			return err
		}
	}
	if h.write(control, "+"+strings.Join(missing, " +")) == nil {
		return nil
	}
	for _, controller := range missing {
		_ = h.write(control, "+"+controller) // refused ones come up in applyV2, if anybody wants them
	}
	return nil
}
