package engine

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

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

// scratchVolumes are the volumes that the image itself asks for, in which it is written to whatever the root is, unless something is
// mounted there.
func (e *Engine) scratchVolumes(ctx context.Context, pod *spec.Pod, c *spec.Container, image Image) ([]specs.Mount, error) {
	if len(image.Config.Volumes) == 0 {
		return nil, nil
	}
	taken := map[string]bool{}
	number := 0
	for _, m := range c.Mounts {
		taken[path.Clean(m.Target)] = true
		if m.Image != nil {
			number++
		}
	}
	var all []specs.Mount
	for _, volume := range slices.Sorted(maps.Keys(image.Config.Volumes)) {
		target := path.Join("/", volume)
		if target == "/" || taken[target] {
			continue
		}
		taken[target] = true
		how, err := e.cfg.Rootfs.Scratch(ctx, c.ID, number, image.ID, target)
		if err != nil {
			return nil, err
		}
		number++
		if err := ownUpper(pod, how.Options); err != nil {
			return nil, fmt.Errorf("volume %s of the image: %w", volume, err)
		}
		all = append(all, specs.Mount{Destination: target, Type: how.Type, Source: how.Source, Options: how.Options})
	}
	return all, nil
}

// ownUpper gives the upper directory of an overlay, which has the owner that the image says and cannot be idmapped, to who that is in
// the pod's user namespace.
func ownUpper(pod *spec.Pod, options []string) error {
	if pod.Security.Namespaces.User == nil {
		return nil
	}
	for _, o := range options {
		dir, ok := strings.CutPrefix(o, "upperdir=")
		if !ok {
			continue
		}
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			return &os.PathError{Op: "stat", Path: dir, Err: err}
		}
		uid, gid := pod.Outside(st.Uid, st.Gid)
		return os.Lchown(dir, uid, gid)
	}
	return nil
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
