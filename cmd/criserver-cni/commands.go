package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/criserver/criserver/cni/builtin"
	"github.com/criserver/criserver/cni/netns"
	"github.com/criserver/criserver/internal/fsx"
)

func add(args *skel.CmdArgs) error {
	c, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	want, err := c.ports()
	if err != nil {
		return err
	}
	ns, err := netns.Open(args.Netns)
	if err != nil {
		return types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_NETNS: "+err.Error(), "")
	}
	defer ns.Close()
	n, err := open(c)
	if err != nil {
		return err
	}
	defer n.close()
	id := key(args.ContainerID, args.IfName)
	if n.records[id] != nil {
		return fmt.Errorf("%s of container %s is attached already: run DEL first: %w", args.IfName, args.ContainerID, errdefs.ErrAlreadyExists)
	}
	a, err := n.Reserve(id, args.IfName, want, c.rates())
	if err != nil {
		return err
	}
	r := &record{BootID: fsx.BootID(), Network: c.Name, ContainerID: args.ContainerID, IfName: args.IfName, Attachment: a}
	if err := n.put(r); err != nil {
		return err
	}
	if err := n.Attach(context.Background(), id, a, ns); err != nil {
		return errors.Join(err, n.remove(r))
	}
	return types.PrintResult(result(c, a, args), c.CNIVersion)
}

func result(c *config, a *builtin.Attachment, args *skel.CmdArgs) *current.Result {
	out := &current.Result{CNIVersion: current.ImplementedSpecVersion, DNS: c.DNS, Interfaces: []*current.Interface{
		{Name: a.Bridge}, {Name: a.Interface, Mtu: a.MTU}, {Name: args.IfName, Sandbox: args.Netns, Mtu: a.MTU, Mac: a.HardwareAddr().String()}}}
	for i, p := range a.Addresses {
		gateway := net.IP(a.Gateways[i].AsSlice())
		out.IPs = append(out.IPs, &current.IPConfig{Interface: current.Int(2), Gateway: gateway,
			Address: net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}})
		all := net.IPNet{IP: make(net.IP, p.Addr().BitLen()/8), Mask: net.CIDRMask(0, p.Addr().BitLen())}
		out.Routes = append(out.Routes, &types.Route{Dst: all, GW: gateway})
	}
	return out
}

// del needs no namespace, and what is not attached is no error.
func del(args *skel.CmdArgs) error {
	c, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	n, err := open(c)
	if err != nil {
		return err
	}
	defer n.close()
	r := n.records[key(args.ContainerID, args.IfName)]
	if r == nil {
		return nil
	}
	return n.remove(r)
}

func check(args *skel.CmdArgs) error {
	c, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	n, err := open(c)
	if err != nil {
		return err
	}
	defer n.close()
	r := n.records[key(args.ContainerID, args.IfName)]
	if r == nil {
		return types.NewError(types.ErrUnknownContainer, fmt.Sprintf("%s of container %s is not attached", args.IfName, args.ContainerID), "")
	}
	if !n.Exists(r.Attachment) {
		return fmt.Errorf("interface %s is gone: %w", r.Attachment.Interface, errdefs.ErrNotFound)
	}
	ns, err := netns.Open(args.Netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	return hasAddresses(ns.Handle(), r)
}

func hasAddresses(h *netlink.Handle, r *record) error {
	link, err := h.LinkByName(r.IfName)
	if err != nil {
		return fmt.Errorf("interface %s: %w", r.IfName, err)
	}
	addrs, err := h.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("addresses of %s: %w", r.IfName, err)
	}
	has := make(map[netip.Addr]bool)
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			has[ip.Unmap()] = true
		}
	}
	for _, want := range r.Attachment.IPs() {
		if !has[want] {
			return fmt.Errorf("interface %s has lost address %s: %w", r.IfName, want, errdefs.ErrNotFound)
		}
	}
	return nil
}

// gc goes on past errors.
func gc(args *skel.CmdArgs) error {
	c, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	var valid struct {
		Attachments []types.GCAttachment `json:"cni.dev/valid-attachments"`
	}
	if err := json.Unmarshal(args.StdinData, &valid); err != nil {
		return types.NewError(types.ErrDecodingFailure, "cni.dev/valid-attachments", err.Error())
	}
	keep := make(map[string]bool)
	for _, a := range valid.Attachments {
		keep[key(a.ContainerID, a.IfName)] = true
	}
	n, err := open(c)
	if err != nil {
		return err
	}
	defer n.close()
	var errs []error
	for id, r := range n.records {
		if r.Network == c.Name && !keep[id] {
			errs = append(errs, n.remove(r))
		}
	}
	return errors.Join(errs...)
}

// status is an error when ADD could not work.
func status(args *skel.CmdArgs) error {
	c, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	n, err := open(c)
	if err != nil {
		return types.NewError(50, err.Error(), "") // 50: the plugin is not available (CNI specification 1.1)
	}
	defer n.close()
	if err := n.Probe(); err != nil {
		return types.NewError(50, err.Error(), "")
	}
	return nil
}
