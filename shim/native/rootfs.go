package native

import (
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native/plan"
)

// longest string that fsconfig(2) takes, and the most that mount(2) takes in all.
const (
	fsconfigLimit  = 255
	mountDataLimit = 4095
)

// rootfs mounts the root filesystem into a register. It is attached only here, in the container's mount namespace: over
// its own upper (or source) directory, because it must lie somewhere until it becomes the root.
func (c *compiler) rootfs() error {
	c.sharedSources()
	c.At("linux.rootfsPropagation")
	if c.namespaceOf(specs.MountNamespace) != nil {
		c.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, "") // or what is mounted from here on would be mounted on the host
	}
	c.At("root")
	m := c.in.rootfs
	if m == nil {
		return fmt.Errorf("root: neither a root filesystem nor root.path is given")
	}
	c.root = c.Reg()
	switch m.Type {
	case "overlay":
		o, err := parseOverlay(m.Options)
		if err != nil {
			return fmt.Errorf("root: %w", err)
		}
		o.label(c.in.spec.Linux.MountLabel)
		c.mapLayers(o)
		if c.inUser() && o.upper != "" { // it cannot be mapped
			c.Fchownat(plan.Cwd, o.upper, c.hostUID(0), c.hostGID(0))
		}
		if err := c.overlay(o); err != nil {
			return err
		}
		c.emptyDirectory(o.spare())
		return nil
	case "bind", "":
		tree, err := c.rootTree(m)
		if err != nil {
			return err
		}
		c.emptyDirectory(m.Source)
		c.place(tree, c.rootPlace(m.Source))
		c.root = tree
		return nil
	}
	return fmt.Errorf("root: a mount of type %q is not a root filesystem: overlay or bind is", m.Type)
}

// rootTree copies the mount of a root filesystem that is a directory of the host.
func (c *compiler) rootTree(m *Mount) (plan.Reg, error) {
	o, err := parseOptions(m.Options)
	if err != nil {
		return 0, fmt.Errorf("root: %w", err)
	}
	tree := c.Reg()
	flags := unix.OPEN_TREE_CLONE
	if o.recursive {
		flags |= unix.AT_RECURSIVE
	}
	c.OpenTree(tree, plan.Cwd, m.Source, flags)
	c.attributes(tree, o)
	return tree, nil
}

// emptyDirectory readies what masked directories become: copies of one empty tmpfs. It lies over a directory of the host
// that nothing needs any more, because only a mount that is attached can be copied (before Linux 6.15).
func (c *compiler) emptyDirectory(place string) {
	if len(c.in.spec.Linux.MaskedPaths) == 0 {
		return
	}
	fs := c.Reg()
	c.mask = c.Reg()
	c.Fsopen(fs, "tmpfs")
	c.FsconfigString(fs, "size", "4k")
	c.contextOf(fs, "tmpfs")
	c.FsconfigCreate(fs)
	c.Fsmount(c.mask, fs, unix.MOUNT_ATTR_RDONLY|hidden)
	c.Close(fs)
	c.place(c.mask, place)
}

// place attaches a mount to a directory of the host.
func (c *compiler) place(tree plan.Reg, directory string) {
	target := c.Reg()
	c.Openat(target, plan.Cwd, directory, unix.O_PATH|unix.O_DIRECTORY)
	c.MoveMount(tree, target)
	c.Close(target)
}

// overlayOptions are the options of an overlay as mount(2) takes them.
type overlayOptions struct {
	lower       []string // uppermost first
	upper, work string
	set         uint64   // attributes of the mount
	context     string   // SELinux label of all files
	other       []string // as they came
}

func parseOverlay(options []string) (overlayOptions, error) {
	var o overlayOptions
	for _, option := range options {
		key, value, _ := strings.Cut(option, "=")
		switch key {
		case "context":
			o.context = strings.Trim(value, `"`)
		case "lowerdir":
			o.lower = strings.Split(value, ":")
		case "upperdir":
			o.upper = value
		case "workdir":
			o.work = value
		default:
			if s, ok := settable[option]; ok {
				if !s.clear {
					o.set |= s.attribute
				}
				continue
			}
			o.other = append(o.other, option)
		}
	}
	if len(o.lower) == 0 {
		return o, fmt.Errorf("the overlay has no lowerdir")
	}
	if (o.upper == "") != (o.work == "") {
		return o, fmt.Errorf("the overlay has an upperdir or a workdir, but not both")
	}
	for _, d := range append([]string{o.upper, o.work}, o.lower...) {
		if d != "" && !path.IsAbs(d) {
			return o, fmt.Errorf("the overlay's directory %q is not absolute", d)
		}
	}
	return o, nil
}

// place is the directory that the overlay is attached to.
func (o *overlayOptions) place() string {
	if o.upper != "" {
		return o.upper
	}
	return o.lower[0]
}

// spare is a directory that the overlay has opened, so that its name is of no use any more.
func (o *overlayOptions) spare() string {
	if o.work != "" {
		return o.work
	}
	return o.lower[len(o.lower)-1]
}

func (o *overlayOptions) fitsFsconfig() bool {
	for _, d := range append([]string{o.upper, o.work}, o.lower...) {
		if len(d) > fsconfigLimit {
			return false
		}
	}
	return true
}

func (c *compiler) overlay(o overlayOptions) error {
	c.forgetVolatile(o)
	if !c.in.host.LowerdirPlus || !o.fitsFsconfig() {
		return c.classicOverlay(o)
	}
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
		return fmt.Errorf("root: %w", err)
	}
	c.Fsmount(c.root, fs, o.set)
	c.Close(fs)
	c.place(c.root, c.rootPlace(o.place()))
	return nil
}

// forgetVolatile removes the mark by which overlayfs refuses a volatile upper directory that was mounted before.
func (c *compiler) forgetVolatile(o overlayOptions) {
	if slices.Contains(o.other, "volatile") {
		// The mark that an earlier, failed start of this boot left. Of another boot there is no container (docs/on-disk.md).
		mark := o.work + "/work/incompat/volatile"
		c.SimpleOr([]plan.Option{plan.Accept(unix.ENOENT)}, unix.SYS_UNLINKAT, "unlinkat", plan.Cwd, mark+"/dirty", 0)
		c.SimpleOr([]plan.Option{plan.Accept(unix.ENOENT)}, unix.SYS_UNLINKAT, "unlinkat", plan.Cwd, mark, unix.AT_REMOVEDIR)
	}
}

// classicOverlay is for kernels that take the layers only in one string of a page: paths are relative to the directory
// that all have in common.
func (c *compiler) classicOverlay(o overlayOptions) error {
	text, common, err := o.classic()
	if err != nil {
		return fmt.Errorf("root: %w", err)
	}
	c.Chdir(common)
	at := c.rootPlace(o.place())
	c.Mount("overlay", at, "overlay", 0, text)
	c.Openat(c.root, plan.Cwd, at, unix.O_PATH|unix.O_DIRECTORY)
	if o.set != 0 {
		c.MountSetattr(c.root, 0, o.set, 0, 0)
	}
	c.Chdir("/")
	return nil
}

// classic is the string for mount(2), and the directory that its paths are relative to.
func (o *overlayOptions) classic() (text, common string, err error) {
	all := append([]string{}, o.lower...)
	if o.upper != "" {
		all = append(all, o.upper, o.work)
	}
	common = commonDirectory(all)
	relative := func(d string) string { return strings.TrimPrefix(d, common+"/") }
	var lower []string
	for _, d := range o.lower {
		lower = append(lower, relative(d))
	}
	data := []string{"lowerdir=" + strings.Join(lower, ":")}
	if o.upper != "" {
		data = append(data, "upperdir="+relative(o.upper), "workdir="+relative(o.work))
	}
	if o.context != "" {
		data = append(data, `context="`+o.context+`"`) // levels have commas
	}
	text = strings.Join(append(data, o.other...), ",")
	if len(text) > mountDataLimit {
		return "", "", fmt.Errorf("the overlay's options take %d bytes and mount(2) of this kernel takes %d: use an image with fewer layers", len(text), mountDataLimit)
	}
	return text, common, nil
}

func commonDirectory(paths []string) string {
	common := path.Dir(paths[0])
	for _, p := range paths[1:] {
		for common != "/" && !strings.HasPrefix(p, common+"/") {
			common = path.Dir(common)
		}
	}
	return strings.TrimSuffix(common, "/")
}
