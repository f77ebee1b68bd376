package cni

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/criserver/criserver/cni/netns"
)

// DefaultInterface is the interface of a pod that has its addresses.
const DefaultInterface = interfaceName

// LinkStats is what an interface of a pod has counted since it was made.
type LinkStats = netns.LinkStats

// Links reads the counters of the pod's interfaces but loopback, DefaultInterface first. errdefs.ErrNotFound for a pod that
// is not attached.
func (n *Network) Links(_ context.Context, podID string) ([]LinkStats, error) {
	r := n.record(podID)
	if r == nil || r.State != stateAttached {
		return nil, fmt.Errorf("network of pod %q: %w", podID, errdefs.ErrNotFound)
	}
	links, err := netns.Links(r.Netns)
	if err != nil {
		return nil, err
	}
	links = slices.DeleteFunc(links, func(l LinkStats) bool { return l.Name == "lo" })
	slices.SortStableFunc(links, func(a, b LinkStats) int {
		switch {
		case a.Name == b.Name:
			return 0
		case a.Name == DefaultInterface:
			return -1
		case b.Name == DefaultInterface:
			return 1
		}
		return 0
	})
	return links, nil
}
