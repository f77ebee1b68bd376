package cni

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/criserver/criserver/internal/fsx"
)

// cidrsFile keeps what SetPodCIDRs was told, beside the records: who tells it does so once, not after each start of ours.
// The records' names end in ".json".
const cidrsFile = "pod-cidrs"

// cidrsRecord is the content of cidrsFile. What was told in another boot is told anew.
type cidrsRecord struct {
	BootID string         `json:"bootID"`
	Mode   string         `json:"mode"`
	CIDRs  []netip.Prefix `json:"cidrs"`
}

// SetPodCIDRs changes where the addresses of pods come from, such as when kubelet says what the node was given; it is
// remembered until the machine restarts. Attached pods keep theirs. In ModeCNI only plugins with the ipRanges capability hear of it.
func (n *Network) SetPodCIDRs(cidrs []netip.Prefix) error {
	n.changingCIDRs.Lock()
	defer n.changingCIDRs.Unlock()
	if n.cfg.Mode == ModeCNI {
		n.lists.setCIDRs(cidrs)
	} else if err := n.plugin.SetCIDRs(cidrs); err != nil {
		return err
	}
	told := cidrsRecord{BootID: fsx.BootID(), Mode: n.cfg.Mode, CIDRs: cidrs}
	if err := fsx.ReplaceJSON(filepath.Join(n.cfg.StateDir, cidrsFile), told); err != nil {
		return fmt.Errorf("record the pods' addresses: %w", err)
	}
	if slices.Equal(n.toldCIDRs, cidrs) {
		return nil
	}
	n.toldCIDRs = slices.Clone(cidrs)
	if n.cfg.Mode == ModeCNI {
		n.log.Info("the pods' addresses are told to plugins with the ipRanges capability; others have their own configuration", "cidrs", cidrs)
	} else {
		n.log.Info("pods get their addresses from the ranges that the node was given", "cidrs", cidrs)
	}
	return nil
}

// recallCIDRs puts what was told in an earlier life of this process over the configuration.
func recallCIDRs(cfg *Config) {
	var told cidrsRecord
	err := fsx.ReadJSON(filepath.Join(cfg.StateDir, cidrsFile), &told)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		cfg.Logger.Warn("what pods' addresses were told is lost; those of the configuration are used", "err", err)
	case told.BootID == fsx.BootID() && told.Mode == cfg.Mode && len(told.CIDRs) > 0:
		cfg.PodCIDRs = told.CIDRs
	}
}
