package native

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native/plan"
)

// unlabelled are filesystems whose files have the labels that the policy gives them. mqueue cannot be mounted with a label,
// since it is the same filesystem for a whole ipc namespace; its root is labelled (labelRoot).
var unlabelled = []string{"proc", "sysfs", "cgroup", "cgroup2", "mqueue"}

// labelled adds the SELinux label of the container's files to the options of a filesystem of its own.
func (c *compiler) labelled(fstype string, options []string) []string {
	label := c.in.spec.Linux.MountLabel
	if label == "" || slices.Contains(unlabelled, fstype) ||
		slices.ContainsFunc(options, func(o string) bool { return strings.HasPrefix(o, "context=") }) {
		return options
	}
	return append(slices.Clone(options), "context="+label)
}

// contextOf is labelled for a filesystem that is configured call by call.
func (c *compiler) contextOf(fs plan.Reg, fstype string) {
	for _, o := range c.labelled(fstype, nil) {
		key, value, _ := strings.Cut(o, "=")
		c.FsconfigString(fs, key, value)
	}
}

// labelRoot labels the root directory of a mount that took no label.
func (c *compiler) labelRoot(fstype string, tree plan.Reg) {
	label := c.in.spec.Linux.MountLabel
	if label == "" || fstype != "mqueue" {
		return
	}
	c.Fchdir(tree)
	c.Simple(unix.SYS_SETXATTR, "setxattr", ".", "security.selinux", label, len(label)+1, 0)
	c.Chdir("/")
}

// label sets the SELinux label of an overlay, unless its options have one.
func (o *overlayOptions) label(label string) {
	if o.context == "" {
		o.context = label
	}
}

// options are those for fsconfig(2) besides the layers.
func (o *overlayOptions) options() []string {
	if o.context == "" {
		return o.other
	}
	return append([]string{"context=" + o.context}, o.other...)
}
