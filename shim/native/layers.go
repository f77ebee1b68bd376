package native

import (
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native/plan"
)

// layers mounts an overlay, such as an image or a writable copy of a directory of one.
func (c *compiler) layers(m *specs.Mount) error {
	o, err := parseOverlay(m.Options)
	if err != nil {
		return err
	}
	o.label(c.in.spec.Linux.MountLabel)
	tree, err := c.overlayTree(o)
	if err != nil {
		return err
	}
	c.attach(tree, m.Destination, true)
	return nil
}

// overlayTree makes a mount of an overlay that is attached nowhere. In a user namespace its owners are the namespace's.
func (c *compiler) overlayTree(o overlayOptions) (plan.Reg, error) {
	c.mapLayers(o)
	c.forgetVolatile(o)
	tree := c.Reg()
	if c.in.host.LowerdirPlus && o.fitsFsconfig() {
		fs := c.Reg()
		c.Fsopen(fs, "overlay")
		for _, d := range o.lower {
			c.FsconfigString(fs, "lowerdir+", d)
		}
		if o.upper != "" {
			c.FsconfigString(fs, "upperdir", o.upper)
			c.FsconfigString(fs, "workdir", o.work)
		}
		if err := c.configure(fs, o.options()); err != nil {
			return 0, err
		}
		c.Fsmount(tree, fs, o.set)
		c.Close(fs)
		return tree, nil
	}
	text, common, err := o.classic()
	if err != nil {
		return 0, err
	}
	// It lies over a directory of the host, in the stage's mount namespace, until it was copied.
	c.Chdir(common)
	c.Mount("overlay", o.place(), "overlay", 0, text)
	c.OpenTree(tree, plan.Cwd, o.place(), unix.OPEN_TREE_CLONE)
	c.MountSetattr(tree, 0, o.set, 0, unix.MS_PRIVATE)
	c.Umount(o.place())
	c.Chdir("/")
	return tree, nil
}

// isMapped says whether a path of the host is in a layer that mapLayers has covered.
func (c *compiler) isMapped(p string) bool {
	for d := range c.mapped {
		if p == d || strings.HasPrefix(p, d+"/") {
			return true
		}
	}
	return false
}
