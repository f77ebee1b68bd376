package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/cni/netns"
)

// loopback is where Dial looks for who listens, in this order.
var loopback = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}

// Dial connects to a TCP port on the loopback addresses of an attached pod, as a process in it would. errdefs.ErrNotFound when
// the pod is not attached, errdefs.ErrFailedPrecondition when nothing listens.
func (n *Network) Dial(ctx context.Context, podID string, port uint16) (net.Conn, error) {
	r := n.record(podID)
	if r == nil || r.State != stateAttached {
		return nil, fmt.Errorf("network of pod %q: %w", podID, errdefs.ErrNotFound)
	}
	var errs []error
	for _, address := range loopback {
		conn, err := netns.DialTCP(ctx, r.Netns, netip.AddrPortFrom(address, port))
		if err == nil {
			return conn, nil
		}
		// A kernel without IPv6 has nothing to add to what IPv4 said.
		if !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EADDRNOTAVAIL) {
			errs = append(errs, err)
		}
	}
	err := errors.Join(errs...)
	if errors.Is(err, unix.ECONNREFUSED) {
		return nil, fmt.Errorf("nothing listens: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return nil, err
}
