package engine

import (
	"context"
	"fmt"
	"slices"

	"github.com/criserver/criserver/engine/spec"
)

// findVolumes resolves the images that a container mounts, for its record.
func (e *Engine) findVolumes(ctx context.Context, c *spec.Container) error {
	return changeVolumes(c, func(_ int, m *spec.Mount) error {
		image, err := e.cfg.Rootfs.Image(ctx, m.Image.Image)
		if err != nil {
			return fmt.Errorf("image %s of the mount at %s: %w", m.Image.Image, m.Target, err)
		}
		m.Image.ID, m.Image.Ref = image.ID, image.Ref
		return nil
	})
}

// mountVolumes holds on to these images and says how they are mounted. The container's record is there by now.
func (e *Engine) mountVolumes(ctx context.Context, c *spec.Container) error {
	return changeVolumes(c, func(number int, m *spec.Mount) error {
		how, err := e.cfg.Rootfs.Volume(ctx, c.ID, number, m.Image.ID, m.Image.SubPath)
		if err != nil {
			return fmt.Errorf("mount at %s: %w", m.Target, err)
		}
		m.Source, m.Image.Type, m.Image.Options = how.Source, how.Type, how.Options
		return nil
	})
}

// changeVolumes changes copies of the mounts that are images, which are numbered from 0. Without any nothing is copied.
func changeVolumes(c *spec.Container, change func(number int, m *spec.Mount) error) error {
	number := 0
	for i := range c.Mounts {
		if c.Mounts[i].Image == nil {
			continue
		}
		if number == 0 {
			c.Mounts = slices.Clone(c.Mounts)
		}
		m := c.Mounts[i]
		volume := *m.Image
		m.Image = &volume
		if err := change(number, &m); err != nil {
			return err
		}
		c.Mounts[i] = m
		number++
	}
	return nil
}

// asAsked takes out of mounts what findVolumes filled in.
func asAsked(c spec.Container) spec.Container {
	_ = changeVolumes(&c, func(_ int, m *spec.Mount) error {
		m.Image.ID, m.Image.Ref = "", ""
		return nil
	})
	return c
}

// StrictMounts says that sources of mounts must be there.
func (e *Engine) StrictMounts() bool { return e.cfg.StrictMounts }
