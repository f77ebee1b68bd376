package native

import (
	"context"
	"fmt"
	"os"

	"github.com/criserver/criserver/shim/native/plan"
	"github.com/criserver/criserver/shim/native/stage"
)

// Attachment is what a program that takes paths wants of a container: mounts in the caller's own mount namespace. Files
// stay the caller's.
type Attachment struct {
	Rootfs *Mount // attached at Root; nil: none
	Root   string
	Shm    *os.File // a pod's shared memory (Pod.Shm), attached at ShmAt; nil: none
	ShmAt  string
}

// Attach makes mounts that the caller unmounts. When it fails, what was attached before the failing call is left.
func (r *Runtime) Attach(ctx context.Context, a Attachment) error {
	in := &input{host: r.host, rootAt: a.Root}
	var extra []*os.File
	if a.Shm != nil {
		in.shm = stage.Extra
		extra = append(extra, a.Shm)
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
	c := &compiler{Plan: plan.New(), in: in}
	b := &built{plan: c.Plan, argv: []string{"attach"}}
	c.At("root")
	switch m := a.Rootfs; {
	case m == nil:
	case m.Type == "overlay":
		o, err := parseOverlay(m.Options)
		if err != nil {
			return nil, fmt.Errorf("root: %w", err)
		}
		c.root = c.Reg()
		if err := c.overlay(o); err != nil {
			return nil, err
		}
	case m.Type == "bind" || m.Type == "":
		tree, err := c.rootTree(m)
		if err != nil {
			return nil, err
		}
		c.place(tree, a.Root)
	default:
		return nil, fmt.Errorf("root: a mount of type %q is not a root filesystem: overlay or bind is", m.Type)
	}
	if a.Shm != nil {
		c.At("shared memory")
		tree := c.Reg()
		c.copyShm(tree)
		c.place(tree, a.ShmAt)
	}
	c.wait()
	return b, nil
}
