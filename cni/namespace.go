package cni

import "github.com/criserver/criserver/cni/netns"

// namespace is the pod's network namespace, not pinned yet.
func (n *Network) namespace(r Request) (*netns.NS, error) {
	if r.MadeNetns != "" {
		return netns.Take(r.MadeNetns, n.owner)
	}
	return n.pool.Get()
}
