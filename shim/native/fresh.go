package native

import (
	"path"
	"strings"

	"github.com/criserver/criserver/shim/native/plan"
)

// fresh is a tmpfs that the plan made, attached and keeps open. Nothing is in it but what the plan made, so the way to a name in it
// need not be looked for from the container's root, where the image may have put links.
type fresh struct {
	at   string
	tree plan.Reg
}

// attach moves a detached mount to a path beneath the root and closes it.
func (c *compiler) attach(tree plan.Reg, destination string, directory bool) {
	c.attachOpen(tree, destination, directory)
	c.Close(tree)
}

// attachFresh does so with an empty tmpfs, which stays open for what comes to lie in it.
func (c *compiler) attachFresh(tree plan.Reg, destination string) {
	c.attachOpen(tree, destination, true)
	c.fresh = append(c.fresh, fresh{path.Clean("/" + destination), tree})
}

// attachOpen moves a detached mount to a path beneath the root.
func (c *compiler) attachOpen(tree plan.Reg, destination string, directory bool) {
	at := path.Clean("/" + destination)
	if parent, ok := c.freshAbove(at); ok {
		name := path.Base(at)
		c.make(parent, name, directory)
		c.MoveMountTo(tree, parent, name)
		return
	}
	c.leaveFresh() // a link of the image may lead the mount to where it covers one
	target := c.target(destination, directory)
	c.MoveMount(tree, target)
	c.Close(target)
}

// freshAbove is the fresh tmpfs that a path is a name in. There is none when the mount at that path would cover a fresh one.
func (c *compiler) freshAbove(at string) (parent plan.Reg, ok bool) {
	for _, f := range c.fresh {
		if f.at == at || strings.HasPrefix(f.at, at+"/") {
			return 0, false
		}
		if f.at == path.Dir(at) {
			parent, ok = f.tree, true
		}
	}
	return parent, ok
}

// leaveFresh closes those that are fresh.
func (c *compiler) leaveFresh() {
	for _, f := range c.fresh {
		c.Close(f.tree)
	}
	c.fresh = nil
}
