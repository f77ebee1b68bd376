package native

import (
	"context"
	"fmt"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native/plan"
	"github.com/criserver/criserver/shim/native/stage"
)

// Attachment is what a program that takes paths wants of a container: mounts in the caller's own mount namespace. Files
// stay the caller's.
type Attachment struct {
	Rootfs *Mount // attached at Root; nil: none
	Root   string
	Label  string   // SELinux label of Rootfs and Overlays; "": none
	Shm    *os.File // a pod's shared memory (Pod.Shm), attached at ShmAt; nil: none
	ShmAt  string
	Proc   *os.File // a pod's proc (Pod.Proc), attached at ProcAt; nil: none
	ProcAt string

	// User has the owners of Rootfs and Overlays shown as a user namespace, which has the mappings of Spec, maps them. Nil: as they are.
	User *os.File
	Spec *specs.Spec
	// Overlays are attached as well. They are of a container with a user namespace, inside which their layers are out of reach.
	Overlays []Overlay
	// Filesystems, such as sysfs, show the host's namespaces, for a container that is in those and has no right to mount them.
	Filesystems []Filesystem
}

// Filesystem is one that needs no more than its type, and the directory that it is attached to.
type Filesystem struct{ Type, At string }

// Overlay is an overlay and the directory that it is attached to.
type Overlay struct {
	Options []string
	At      string
}

// Attach makes mounts that the caller unmounts. When it fails, what was attached before the failing call is left.
func (r *Runtime) Attach(ctx context.Context, a Attachment) error {
	in := &input{host: r.host, rootAt: a.Root}
	var extra []*os.File
	give := func(f *os.File) int {
		extra = append(extra, f)
		return stage.Extra + len(extra) - 1
	}
	if a.Shm != nil {
		in.shm = give(a.Shm)
	}
	if a.Proc != nil {
		in.proc = give(a.Proc)
	}
	if a.User != nil {
		in.spec, in.userns = a.Spec, give(a.User)
	}
	b, err := compileAttach(in, a)
	if err != nil {
		return err
	}
	p, err := r.launch(ctx, b, launch{extra: extra, waits: true})
	if err != nil {
		return err
	}
	p.discard() // it has done its work and waits
	return nil
}

func compileAttach(in *input, a Attachment) (*built, error) {
	c := &compiler{Plan: plan.New(execOperations), in: in}
	b := &built{plan: c.Plan, argv: []string{"attach"}}
	attach := c.attachRoot
	if in.userns != 0 {
		attach = c.attachMapped
	}
	if err := attach(a); err != nil {
		return nil, err
	}
	if a.Shm != nil {
		c.At("shared memory")
		tree := c.Reg()
		c.copyShm(tree)
		c.place(tree, a.ShmAt)
	}
	if a.Proc != nil {
		c.At("proc")
		tree := c.Reg()
		c.copyRoot(tree, in.proc)
		c.place(tree, a.ProcAt)
	}
	for _, f := range a.Filesystems {
		c.At("%s", f.Type)
		fs, tree := c.Reg(), c.Reg()
		c.Fsopen(fs, f.Type)
		c.FsconfigCreate(fs)
		c.Fsmount(tree, fs, hidden)
		c.Close(fs)
		c.place(tree, f.At)
	}
	c.wait()
	return b, nil
}

func (c *compiler) attachRoot(a Attachment) error {
	c.At("root")
	switch m := a.Rootfs; {
	case m == nil:
	case m.Type == "overlay":
		o, err := parseOverlay(m.Options)
		if err != nil {
			return fmt.Errorf("root: %w", err)
		}
		o.label(a.Label)
		c.root = c.Reg()
		return c.overlay(o)
	case m.Type == "bind" || m.Type == "":
		tree, err := c.rootTree(m)
		if err != nil {
			return err
		}
		c.place(tree, a.Root)
	default:
		return fmt.Errorf("root: a mount of type %q is not a root filesystem: overlay or bind is", m.Type)
	}
	return nil
}

// attachMapped makes overlays of layers whose owners are mapped. The copies of layers that are mapped lie over the layers (as those of
// mapLayers always do) in a mount namespace of the stage's own, in which the overlays are made; then it goes back and attaches them.
func (c *compiler) attachMapped(a Attachment) error {
	all := a.Overlays
	if m := a.Rootfs; m != nil {
		if m.Type != "overlay" {
			return fmt.Errorf("root: a mount of type %q cannot show owners as a user namespace has them: an overlay can", m.Type)
		}
		all = append([]Overlay{{m.Options, a.Root}}, all...)
	}
	c.At("user namespace")
	home := c.Reg()
	c.Openat(home, plan.Cwd, "/proc/self/ns/mnt", 0)
	c.Unshare(unix.CLONE_NEWNS)
	c.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, "")
	trees := make([]plan.Reg, len(all))
	for i, overlay := range all {
		c.At("overlay at %s", overlay.At)
		o, err := parseOverlay(overlay.Options)
		if err != nil {
			return fmt.Errorf("overlay at %s: %w", overlay.At, err)
		}
		o.label(a.Label)
		if i == 0 && a.Rootfs != nil && o.upper != "" { // it cannot be mapped; those of others have their owners already
			c.Fchownat(plan.Cwd, o.upper, c.hostUID(0), c.hostGID(0))
		}
		if trees[i], err = c.overlayTree(o); err != nil {
			return fmt.Errorf("overlay at %s: %w", overlay.At, err)
		}
	}
	c.Setns(home, unix.CLONE_NEWNS)
	c.Close(home)
	for i, overlay := range all {
		c.At("overlay at %s", overlay.At)
		c.place(trees[i], overlay.At)
		c.Close(trees[i])
	}
	return nil
}
