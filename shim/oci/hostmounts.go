package oci

import (
	"fmt"
	"os"

	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// hostMounts is, for a spec without a mount namespace, one more than the mounts at a path; else 0.
func hostMounts(spec *specs.Spec, root string) (int, error) {
	for _, n := range spec.Linux.Namespaces {
		if n.Type == specs.MountNamespace {
			return 0, nil
		}
	}
	n, err := mountsAt(root)
	return n + 1, err
}

func mountsAt(path string) (int, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(path))
	return len(mounts), err
}

// unmount takes away what a container without a mount namespace has left in the host's.
func (c *container) unmount() error {
	if c.Mounts == 0 {
		return nil
	}
	for {
		n, err := mountsAt(c.Rootfs)
		if err != nil || n < c.Mounts {
			return err
		}
		if err := unix.Unmount(c.Rootfs, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("what container %s has mounted: %w", c.ID, &os.PathError{Op: "unmount", Path: c.Rootfs, Err: err})
		}
	}
}
