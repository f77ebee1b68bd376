package native

import (
	"fmt"
	"path"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native/plan"
)

// The devices and links that the OCI runtime spec, "Default Devices" and "/dev symbolic links", says every container has.
var (
	defaultDevices = []specs.LinuxDevice{
		{Path: "/dev/null", Type: "c", Major: 1, Minor: 3},
		{Path: "/dev/zero", Type: "c", Major: 1, Minor: 5},
		{Path: "/dev/full", Type: "c", Major: 1, Minor: 7},
		{Path: "/dev/random", Type: "c", Major: 1, Minor: 8},
		{Path: "/dev/urandom", Type: "c", Major: 1, Minor: 9},
		{Path: "/dev/tty", Type: "c", Major: 5, Minor: 0},
	}
	defaultLinks = [][2]string{
		{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"}, {"/proc/self/fd/2", "stderr"}, {"pts/ptmx", "ptmx"},
	}
)

// devices fills /dev, when it is the container's own.
func (c *compiler) devices() error {
	if !c.ownDev() {
		return nil
	}
	c.At("linux.devices")
	c.Simple(unix.SYS_UMASK, "umask", plan.Octal(0))
	dev := c.Reg()
	c.Openat2(dev, c.root, "dev", unix.O_PATH|unix.O_DIRECTORY, inRoot)
	asked := map[string]bool{}
	for _, d := range c.in.spec.Linux.Devices {
		asked[path.Clean(d.Path)] = true
	}
	for _, d := range defaultDevices {
		if !asked[d.Path] {
			if err := c.device(dev, d); err != nil {
				return err
			}
		}
	}
	for i, d := range c.in.spec.Linux.Devices {
		c.At("linux.devices[%d] %s", i, d.Path)
		if err := c.device(dev, d); err != nil {
			return fmt.Errorf("linux.devices[%d] %s: %w", i, d.Path, err)
		}
	}
	c.At("linux.devices")
	for _, l := range defaultLinks {
		c.Symlinkat(l[0], dev, l[1], plan.Accept(unix.EEXIST))
	}
	c.Close(dev)
	c.Simple(unix.SYS_UMASK, "umask", plan.Octal(0o022))
	return nil
}

// ownDev: /dev is a filesystem that was made for the container, not one of the host's or the image's.
func (c *compiler) ownDev() bool {
	own := false
	for _, m := range c.in.spec.Mounts {
		if path.Clean(m.Destination) == "/dev" {
			o, _ := parseOptions(m.Options)
			own = !o.bind && m.Type != "bind"
		}
	}
	return own
}

var deviceTypes = map[string]uint32{"c": unix.S_IFCHR, "u": unix.S_IFCHR, "b": unix.S_IFBLK, "p": unix.S_IFIFO}

func (c *compiler) device(dev plan.Reg, d specs.LinuxDevice) error {
	mode := uint32(0o666)
	if d.FileMode != nil {
		mode = uint32(d.FileMode.Perm())
	}
	kind, ok := deviceTypes[d.Type]
	if !ok {
		return fmt.Errorf("a device of type %q: c, u, b and p are known", d.Type)
	}
	number := unix.Mkdev(uint32(d.Major), uint32(d.Minor))
	var uid, gid uint32
	if d.UID != nil {
		uid = *d.UID
	}
	if d.GID != nil {
		gid = *d.GID
	}
	name, beneath := strings.CutPrefix(path.Clean(d.Path), "/dev/")
	var parent any = dev
	made := plan.Reg(0)
	if !beneath || strings.Contains(name, "/") {
		made = c.target(path.Dir(path.Clean(d.Path)), true)
		parent, name = made, path.Base(d.Path)
	}
	if err := c.hasIDs(uid, gid); err != nil {
		return err
	}
	c.Mknodat(parent, name, kind|mode, number, plan.Accept(unix.EEXIST))
	if uid, gid = c.hostUID(uid), c.hostGID(gid); uid != 0 || gid != 0 {
		c.Fchownat(parent, name, uid, gid)
	}
	if made != 0 {
		c.Close(made)
	}
	return nil
}

// console shows the terminal, which is standard input by now, as /dev/console.
func (c *compiler) console() {
	c.At("process.terminal")
	tree := c.Reg()
	c.OpenTree(tree, 0, "", unix.OPEN_TREE_CLONE|unix.AT_EMPTY_PATH)
	c.attach(tree, "/dev/console", false)
}

// paths hides and protects what the spec says. What is not there needs neither.
func (c *compiler) paths() error {
	for _, p := range c.in.spec.Linux.ReadonlyPaths {
		c.At("linux.readonlyPaths %s", p)
		target, done := c.existing(p)
		tree := c.Reg()
		c.OpenTree(tree, target, "", unix.OPEN_TREE_CLONE|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
		c.MountSetattr(tree, 0, unix.MOUNT_ATTR_RDONLY, 0, 0)
		c.MoveMount(tree, target)
		c.Close(tree)
		c.Close(target)
		c.Mark(done)
	}
	if len(c.in.spec.Linux.MaskedPaths) == 0 {
		return nil
	}
	c.At("linux.maskedPaths")
	null := c.Reg()
	c.Openat(null, plan.Cwd, "/dev/null", unix.O_PATH) // the host's, out of reach for the container
	for _, p := range c.in.spec.Linux.MaskedPaths {
		c.At("linux.maskedPaths %s", p)
		target, done := c.existing(p)
		directory, placed := c.Label(), c.Label()
		tree := c.Reg()
		c.OpenTree(tree, null, "", unix.OPEN_TREE_CLONE|unix.AT_EMPTY_PATH)
		c.MountSetattr(tree, 0, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, 0, unix.MS_PRIVATE) // or root inside could change the host's file
		c.MoveMount(tree, target, plan.Else(directory, unix.ENOTDIR, unix.EINVAL), plan.Then(placed))
		c.Mark(directory)
		c.Simple(unix.SYS_CLOSE, "close", tree)
		c.OpenTree(tree, c.mask, "", unix.OPEN_TREE_CLONE|unix.AT_EMPTY_PATH)
		c.MoveMount(tree, target)
		c.Mark(placed)
		c.Close(tree)
		c.Close(target)
		c.Mark(done)
	}
	c.Close(null)
	return nil
}

// existing opens a path beneath the root, or goes on at the label.
func (c *compiler) existing(p string) (plan.Reg, plan.Label) {
	done := c.Label()
	target := c.Reg()
	clean := strings.TrimPrefix(path.Clean("/"+p), "/")
	if clean == "" {
		clean = "."
	}
	c.Openat2(target, c.root, clean, unix.O_PATH, inRoot, plan.Else(done, unix.ENOENT, unix.ENOTDIR))
	return target, done
}

// sysctls sets kernel parameters of the container's own namespaces, by the host's /proc, where nobody put anything in the way.
func (c *compiler) sysctls() error {
	var owner *UserMappings
	if c.inUser() {
		owner = &UserMappings{c.in.spec.Linux.UIDMappings, c.in.spec.Linux.GIDMappings}
	}
	return writeSysctls(c, c.in.spec.Linux.Sysctl, owner, func(kind specs.LinuxNamespaceType) bool { return c.namespaceOf(kind) != nil })
}
