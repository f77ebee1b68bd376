package engine

import "net/netip"

// SetPodCIDRs says what the node was given for the addresses of its pods, at most one range of each family. Pods that run keep
// theirs. It is remembered until the machine restarts.
func (e *Engine) SetPodCIDRs(cidrs []netip.Prefix) error { return e.cfg.Network.SetPodCIDRs(cidrs) }
