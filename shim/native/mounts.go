package native

import (
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native/plan"
)

// settable are the attributes of a mount that options name, and whether the option sets or clears them.
var settable = map[string]struct {
	attribute uint64
	clear     bool
}{
	"ro": {attribute: unix.MOUNT_ATTR_RDONLY}, "rw": {unix.MOUNT_ATTR_RDONLY, true},
	"nosuid": {attribute: unix.MOUNT_ATTR_NOSUID}, "suid": {unix.MOUNT_ATTR_NOSUID, true},
	"nodev": {attribute: unix.MOUNT_ATTR_NODEV}, "dev": {unix.MOUNT_ATTR_NODEV, true},
	"noexec": {attribute: unix.MOUNT_ATTR_NOEXEC}, "exec": {unix.MOUNT_ATTR_NOEXEC, true},
	"nodiratime": {attribute: unix.MOUNT_ATTR_NODIRATIME}, "diratime": {unix.MOUNT_ATTR_NODIRATIME, true},
	"nosymfollow": {attribute: unix.MOUNT_ATTR_NOSYMFOLLOW}, "symfollow": {unix.MOUNT_ATTR_NOSYMFOLLOW, true},
	"noatime": {attribute: unix.MOUNT_ATTR_NOATIME}, "strictatime": {attribute: unix.MOUNT_ATTR_STRICTATIME}, "relatime": {attribute: unix.MOUNT_ATTR_RELATIME},
}

var propagationOptions = map[string]uint64{
	"private": unix.MS_PRIVATE, "rprivate": unix.MS_PRIVATE | unix.MS_REC,
	"slave": unix.MS_SLAVE, "rslave": unix.MS_SLAVE | unix.MS_REC,
	"shared": unix.MS_SHARED, "rshared": unix.MS_SHARED | unix.MS_REC,
	"unbindable": unix.MS_UNBINDABLE, "runbindable": unix.MS_UNBINDABLE | unix.MS_REC,
}

// mountOptions are the options of a mount, sorted by what takes them.
type mountOptions struct {
	set, clear       uint64 // attributes of the mount
	setAll, clearAll uint64 // attributes of it and of all mounts below ("rro")
	propagation      uint64
	bind, recursive  bool
	idmap, idmapAll  bool     // owners are mapped, of it or of all mounts below, too
	filesystem       []string // for the filesystem: key or key=value
}

// IsMountAttribute says whether an option is one of a mount, such as ro, and not of a filesystem.
func IsMountAttribute(option string) bool {
	_, ok := settable[option]
	return ok
}

func parseOptions(options []string) (mountOptions, error) {
	var m mountOptions
	for _, o := range options {
		if s, ok := settable[o]; ok {
			m.apply(&m.set, &m.clear, s.attribute, s.clear, strings.HasSuffix(o, "atime") && !strings.HasSuffix(o, "diratime"))
			continue
		}
		if s, ok := settable[strings.TrimPrefix(o, "r")]; ok && strings.HasPrefix(o, "r") {
			m.apply(&m.setAll, &m.clearAll, s.attribute, s.clear, false)
			continue
		}
		if p, ok := propagationOptions[o]; ok {
			m.propagation = p
			continue
		}
		switch o {
		case "bind":
			m.bind = true
		case "rbind":
			m.bind, m.recursive = true, true
		case "defaults", "async", "nomand", "norelatime", "nostrictatime", "loud":
		case "idmap":
			m.idmap = true
		case "ridmap":
			m.idmap, m.idmapAll = true, true
		case "tmpcopyup", "remount":
			return m, fmt.Errorf("mount option %q is not supported", o)
		default:
			m.filesystem = append(m.filesystem, o)
		}
	}
	return m, nil
}

func (m *mountOptions) apply(set, clear *uint64, attribute uint64, cleared, atime bool) {
	switch {
	case atime: // one value of a field, not a bit
		*clear |= unix.MOUNT_ATTR__ATIME
		*set = *set&^unix.MOUNT_ATTR__ATIME | attribute
	case cleared:
		*set &^= attribute
		*clear |= attribute
	default:
		*set |= attribute
		*clear &^= attribute
	}
}

// mounts makes the mounts of the spec in their order.
func (c *compiler) mounts() error {
	for i := range c.in.spec.Mounts {
		m := &c.in.spec.Mounts[i]
		c.At("mounts[%d] %s", i, m.Destination)
		o, err := parseOptions(m.Options)
		if err != nil {
			return fmt.Errorf("mounts[%d] %s: %w", i, m.Destination, err)
		}
		if c.inUser() && o.propagation&unix.MS_SHARED != 0 {
			return fmt.Errorf("mounts[%d] %s: %w", i, m.Destination, errSharedInUser)
		}
		switch {
		case o.bind || m.Type == "bind":
			err = c.bind(m, o)
		case m.Type == "cgroup" || m.Type == "cgroup2":
			err = c.cgroupMount(m, o)
		case m.Type == "overlay":
			err = c.layers(m)
		case c.in.shm != 0 && path.Clean(m.Destination) == "/dev/shm":
			c.podShm(m.Destination)
		case m.Type == "proc" && c.joins(specs.PIDNamespace) && !c.in.host.ProcPidns:
			err = c.podProc(m.Destination, o)
		default:
			err = c.filesystem(m, o)
		}
		if err != nil {
			return fmt.Errorf("mounts[%d] %s: %w", i, m.Destination, err)
		}
	}
	c.leaveFresh()
	return nil
}

// podShm attaches a copy of the mount that all containers of the pod share.
func (c *compiler) podShm(destination string) {
	tree := c.Reg()
	c.copyShm(tree)
	c.attach(tree, destination, true)
}

func (c *compiler) copyShm(tree plan.Reg) {
	if c.in.host.CloneDetached {
		c.OpenTree(tree, c.in.shm, "", unix.OPEN_TREE_CLONE|unix.AT_EMPTY_PATH)
	} else {
		c.copyRoot(tree, c.in.shm)
	}
}

// podProc attaches a proc of a pid namespace that the stage only joins, on a kernel that makes one only from inside. To enter
// for that, with all the privileges that it takes, would show the stage to whoever is in there; so the pod has it ready.
func (c *compiler) podProc(destination string, o mountOptions) error {
	if c.in.proc == 0 {
		return fmt.Errorf("proc of another container's pid namespace needs Linux 6.17: %w", errdefs.ErrFailedPrecondition)
	}
	tree := c.Reg()
	c.copyRoot(tree, c.in.proc)
	c.MountSetattr(tree, 0, o.set, o.clear, unix.MS_PRIVATE)
	c.attach(tree, destination, true)
	return nil
}

// copyRoot copies the root of another mount namespace.
func (c *compiler) copyRoot(tree plan.Reg, namespace int) {
	home := c.Reg()
	c.Openat(home, plan.Cwd, "/proc/self/ns/mnt", 0)
	c.Setns(namespace, unix.CLONE_NEWNS)
	c.OpenTree(tree, plan.Cwd, "/", unix.OPEN_TREE_CLONE)
	c.Setns(home, unix.CLONE_NEWNS)
	c.Close(home)
}

// bind attaches a copy of a mount of the host.
func (c *compiler) bind(m *specs.Mount, o mountOptions) error {
	if len(o.filesystem) > 0 {
		return fmt.Errorf("a bind mount does not take the option %q", o.filesystem[0])
	}
	directory, err := c.in.isDirectory(m.Source)
	if err != nil {
		return err
	}
	idmap, err := c.idmapOf(m, o)
	if err != nil {
		return err
	}
	tree, taken := c.shared[m]
	if !taken {
		tree = c.copyTree(m.Source, o.recursive)
	}
	if idmap != 0 && !(idmap == c.in.userns && c.isMapped(m.Source)) {
		flags := 0
		if o.idmapAll {
			flags = unix.AT_RECURSIVE
		}
		c.MountIdmap(tree, flags, idmap)
	}
	c.attributes(tree, o)
	c.attach(tree, m.Destination, directory)
	return nil
}

func (c *compiler) copyTree(source string, recursive bool) plan.Reg {
	tree := c.Reg()
	flags := unix.OPEN_TREE_CLONE
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	c.OpenTree(tree, plan.Cwd, source, flags)
	return tree
}

// sharedSources copies the sources of mounts that pass mounts on to the host. They do so only while the stage's mounts are peers of
// the host's.
func (c *compiler) sharedSources() {
	for i := range c.in.spec.Mounts {
		m := &c.in.spec.Mounts[i]
		o, err := parseOptions(m.Options)
		if err != nil || o.propagation&unix.MS_SHARED == 0 || !o.bind && m.Type != "bind" {
			continue // bad options are found later
		}
		c.At("mounts[%d] %s", i, m.Destination)
		if c.shared == nil {
			c.shared = map[*specs.Mount]plan.Reg{}
		}
		c.shared[m] = c.copyTree(m.Source, o.recursive)
	}
}

// attributes sets what the options say on a detached copy.
func (c *compiler) attributes(tree plan.Reg, o mountOptions) {
	propagation := o.propagation
	if propagation == 0 {
		propagation = unix.MS_PRIVATE | unix.MS_REC
	}
	recursive := 0
	if propagation&unix.MS_REC != 0 {
		recursive = unix.AT_RECURSIVE
	}
	if recursive != 0 && o.set|o.clear == 0 || recursive == 0 && o.setAll|o.clearAll == 0 { // one call does it
		c.MountSetattr(tree, recursive, o.set|o.setAll, o.clear|o.clearAll, propagation&^unix.MS_REC)
		return
	}
	c.MountSetattr(tree, recursive, 0, 0, propagation&^unix.MS_REC)
	if o.setAll|o.clearAll != 0 {
		c.MountSetattr(tree, unix.AT_RECURSIVE, o.setAll, o.clearAll, 0)
	}
	if o.set|o.clear != 0 {
		c.MountSetattr(tree, 0, o.set, o.clear, 0)
	}
}

// inRoot is how what lies in the container is found: from its root, links of /proc to anywhere refused.
const inRoot = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS

// target opens the place of a mount beneath the root, which is made when it is missing.
func (c *compiler) target(destination string, directory bool) plan.Reg {
	r := c.Reg()
	clean := strings.TrimPrefix(path.Clean("/"+destination), "/")
	if clean == "" {
		clean = "."
	}
	missing, done := c.Label(), c.Label()
	c.Openat2(r, c.root, clean, unix.O_PATH, inRoot, plan.Else(missing, unix.ENOENT), plan.Then(done))
	c.Mark(missing)
	c.makePath(r, c.root, clean, directory)
	c.Mark(done)
	return r
}

// makePath makes what is missing of a path, whose end is missing, and opens it. A symbolic link that leads to nothing is
// not made good.
func (c *compiler) makePath(r plan.Reg, root any, clean string, directory bool) {
	parts := strings.Split(clean, "/")
	last := len(parts) - 1
	parent := root
	for i, part := range parts[:last] {
		here, there := c.Label(), c.Label()
		next := c.Reg()
		c.Openat2(next, root, strings.Join(parts[:i+1], "/"), unix.O_PATH, inRoot, plan.Else(here, unix.ENOENT), plan.Then(there))
		c.Mark(here)
		c.make(parent, part, true)
		c.openMade(next, parent, part)
		c.Mark(there)
		c.closeParent(parent, root)
		parent = next
	}
	c.make(parent, parts[last], directory)
	c.openMade(r, parent, parts[last])
	c.closeParent(parent, root)
}

// make makes a directory or a file that is the container's root's.
func (c *compiler) make(parent any, name string, directory bool) {
	option, there := plan.Accept(unix.EEXIST), plan.Label(0)
	if c.inUser() {
		there = c.Label()
		option = plan.Else(there, unix.EEXIST)
	}
	if directory {
		c.Mkdirat(parent, name, 0o755, option)
	} else {
		c.Mknodat(parent, name, unix.S_IFREG|0o644, 0, option)
	}
	if c.inUser() {
		c.Fchownat(parent, name, c.hostUID(0), c.hostGID(0))
		c.Mark(there)
	}
}

func (c *compiler) openMade(r plan.Reg, parent any, name string) {
	c.Openat2(r, parent, name, unix.O_PATH|unix.O_NOFOLLOW, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
}

func (c *compiler) closeParent(parent, root any) {
	if parent != root {
		c.Close(parent.(plan.Reg))
	}
}

// filesystem makes a filesystem of its own.
func (c *compiler) filesystem(m *specs.Mount, o mountOptions) error {
	fs, tree := c.Reg(), c.Reg()
	if m.Type == "proc" && c.joins(specs.PIDNamespace) {
		c.foreignProc(fs)
	} else {
		c.Fsopen(fs, m.Type)
	}
	if m.Source != "" {
		c.FsconfigString(fs, "source", m.Source)
	}
	options, err := c.ownerOptions(m.Type, o.filesystem)
	if err != nil {
		return err
	}
	options = c.labelled(m.Type, options)
	if err := c.configure(fs, options); err != nil {
		return err
	}
	attributes := o.set | o.setAll
	readonly := attributes & unix.MOUNT_ATTR_RDONLY
	if m.Type == "tmpfs" {
		attributes &^= unix.MOUNT_ATTR_RDONLY // other mounts may need places in it
	}
	if o.clear&unix.MOUNT_ATTR__ATIME != 0 {
		attributes &^= unix.MOUNT_ATTR__ATIME & ^o.set
	}
	c.Fsmount(tree, fs, attributes)
	c.Close(fs)
	c.labelRoot(m.Type, tree)
	if o.propagation != 0 {
		recursive := 0
		if o.propagation&unix.MS_REC != 0 {
			recursive = unix.AT_RECURSIVE
		}
		c.MountSetattr(tree, recursive, 0, 0, o.propagation&^unix.MS_REC)
	}
	if m.Type == "tmpfs" && readonly != 0 {
		c.attachOpen(tree, m.Destination, true)
		c.later = append(c.later, func() { c.MountSetattr(tree, 0, unix.MOUNT_ATTR_RDONLY, 0, 0); c.Close(tree) })
		return nil
	}
	if m.Type == "tmpfs" {
		c.attachFresh(tree, m.Destination)
		return nil
	}
	c.attach(tree, m.Destination, true)
	return nil
}

func (c *compiler) configure(fs plan.Reg, options []string) error {
	for _, o := range options {
		key, value, valued := strings.Cut(o, "=")
		if len(value) > 255 { // fsconfig(2)
			return fmt.Errorf("the option %s= is longer than 255 bytes", key)
		}
		if valued {
			c.FsconfigString(fs, key, value)
		} else {
			c.FsconfigFlag(fs, key)
		}
	}
	c.FsconfigCreate(fs)
	return nil
}

// foreignProc opens a proc for a pid namespace that the stage only joins: its own is the host's (Linux 6.17). The namespace is
// that of the child that it will fork.
func (c *compiler) foreignProc(fs plan.Reg) {
	ns := c.Reg()
	c.Openat(ns, plan.Cwd, "/proc/self/ns/pid_for_children", 0)
	c.Fsopen(fs, "proc")
	c.FsconfigFd(fs, "pidns", ns)
	c.Close(ns)
}

// cgroupMount shows the container its own cgroup: the v2 directory, or a tmpfs with a directory for each hierarchy.
func (c *compiler) cgroupMount(m *specs.Mount, o mountOptions) error {
	if len(c.in.tasks) == 0 && c.in.unified == "" {
		return fmt.Errorf("linux.cgroupsPath is not set, so there is no cgroup to show")
	}
	if len(c.in.tasks) == 0 {
		c.attach(c.cgroupTree(c.in.unified, o), m.Destination, true)
		return nil
	}
	fs, tree := c.Reg(), c.Reg()
	c.Fsopen(fs, "tmpfs")
	if err := c.configure(fs, c.labelled("tmpfs", []string{"mode=755", "size=64k"})); err != nil {
		return err
	}
	c.Fsmount(tree, fs, o.set&^unix.MOUNT_ATTR_RDONLY)
	c.Close(fs)
	c.attachOpen(tree, m.Destination, true)
	for _, tasks := range c.in.tasks {
		directory := path.Dir(tasks)
		c.cgroupWithin(tree, hierarchy(directory, c.in.spec.Linux.CgroupsPath), directory, o)
	}
	if c.in.unified != "" {
		c.cgroupWithin(tree, "unified", c.in.unified, o)
	}
	if o.set&unix.MOUNT_ATTR_RDONLY != 0 {
		c.MountSetattr(tree, 0, unix.MOUNT_ATTR_RDONLY, 0, 0)
	}
	c.Close(tree)
	return nil
}

// cgroupWithin attaches a hierarchy's directory in the tmpfs for all of them.
func (c *compiler) cgroupWithin(tmpfs plan.Reg, name, source string, o mountOptions) {
	tree := c.cgroupTree(source, o)
	c.make(tmpfs, name, true)
	c.MoveMountTo(tree, tmpfs, name)
	c.Close(tree)
}

func (c *compiler) cgroupTree(source string, o mountOptions) plan.Reg {
	tree := c.Reg()
	c.OpenTree(tree, plan.Cwd, source, unix.OPEN_TREE_CLONE)
	c.MountSetattr(tree, 0, o.set, o.clear, unix.MS_PRIVATE)
	return tree
}

// hierarchy is the name under which a v1 hierarchy is mounted: the last element before the cgroup's own path.
func hierarchy(directory, cgroupsPath string) string {
	return path.Base(strings.TrimSuffix(directory, path.Clean("/"+cgroupsPath)))
}
