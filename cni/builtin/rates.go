package builtin

import (
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
)

// Rates limit the traffic of a pod, in bits a second; 0 is no limit.
type Rates struct {
	Ingress uint64 `json:"ingress,omitempty"` // to the pod
	Egress  uint64 `json:"egress,omitempty"`  // from the pod
}

const minRate, maxRate = 1_000, 1_000_000_000_000_000

func (r Rates) check() error {
	for name, rate := range map[string]uint64{"ingress": r.Ingress, "egress": r.Egress} {
		if rate != 0 && (rate < minRate || rate > maxRate) {
			return fmt.Errorf("%s rate of %d bits a second is outside %d to %d: %w", name, rate, minRate, maxRate, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// limit shapes each direction where packets leave an interface: towards the pod on the host's end, from it on its own.
// A pod with CAP_NET_ADMIN could take the second away; others cannot.
func (p *Plugin) limit(a *Attachment, hostIndex int, pod *netlink.Handle, podIndex int) error {
	for _, side := range []struct {
		handle *netlink.Handle
		name   string
		index  int
		rate   uint64
	}{{p.host, a.Interface, hostIndex, a.Rates.Ingress}, {pod, a.Name, podIndex, a.Rates.Egress}} {
		if side.rate == 0 {
			continue
		}
		if err := side.handle.QdiscAdd(tokenBucket(side.index, side.rate, a.MTU)); err != nil {
			return fmt.Errorf("limit interface %s to %d bits a second (needs sch_tbf): %w", side.name, side.rate, err)
		}
	}
	return nil
}

// tokenBucket allows bursts of 50 ms, and waits of at most 100 ms before packets are dropped (tc-tbf(8)).
func tokenBucket(index int, rate uint64, mtu int) *netlink.Tbf {
	bytesPerSecond := rate / 8
	burst := max(uint32(min(bytesPerSecond/20, 1<<30)), uint32(2*mtu), 3*1514)
	return &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       bytesPerSecond,
		Limit:      uint32(min(bytesPerSecond/10+uint64(burst), 1<<31)),
		Buffer:     netlink.Xmittime(bytesPerSecond, burst),
	}
}
