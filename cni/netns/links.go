package netns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// LinkStats is what an interface has counted since it was made.
type LinkStats struct {
	Name               string
	RxBytes, TxBytes   uint64
	RxPackets          uint64
	TxPackets          uint64
	RxErrors, TxErrors uint64
	RxDropped          uint64
	TxDropped          uint64
}

// Links reads the counters of all interfaces of the namespace that is mounted at path. It is asked from outside, as Owner
// does, so no thread enters the namespace.
func Links(path string) ([]LinkStats, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	defer file.Close()
	id, err := namespaceID(int(file.Fd()))
	if err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", path, err)
	}
	request := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
	request.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	request.AddData(nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(uint32(id))))
	answers, err := request.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil && !errors.Is(err, nl.ErrDumpInterrupted) { // an interface came or went: the next reading has it
		return nil, fmt.Errorf("list the interfaces of %s: %w", path, err)
	}
	links := make([]LinkStats, 0, len(answers))
	for _, m := range answers {
		if l, ok := parseLink(m); ok {
			links = append(links, l)
		}
	}
	return links, nil
}

// namespaceID is the number by which this namespace knows the other one; the kernel gives it one if it has none yet.
func namespaceID(fd int) (int, error) {
	id, err := netlink.GetNetNsIdByFd(fd)
	if err != nil || id >= 0 {
		return id, err
	}
	// Another thread, or an interface that was moved there, may number it meanwhile.
	if err := netlink.SetNetNsIdByFd(fd, -1); err != nil && !errors.Is(err, unix.EEXIST) {
		return id, err
	}
	if id, err = netlink.GetNetNsIdByFd(fd); err == nil && id < 0 {
		err = errors.New("the kernel gives it no number")
	}
	return id, err
}

// The places of counters in struct rtnl_link_stats64 (linux/if_link.h), each of 8 bytes.
const (
	rxPackets = iota
	txPackets
	rxBytes
	txBytes
	rxErrors
	txErrors
	rxDropped
	txDropped
	usedCounters
)

// parseLink reads an RTM_NEWLINK message without its header.
func parseLink(message []byte) (LinkStats, bool) {
	if len(message) < unix.SizeofIfInfomsg {
		return LinkStats{}, false
	}
	attributes, err := nl.ParseRouteAttr(message[unix.SizeofIfInfomsg:])
	if err != nil {
		return LinkStats{}, false
	}
	var l LinkStats
	found := false
	for _, a := range attributes {
		switch {
		case a.Attr.Type == unix.IFLA_IFNAME && len(a.Value) > 0:
			l.Name = string(a.Value[:len(a.Value)-1])
		case a.Attr.Type == unix.IFLA_STATS64 && len(a.Value) >= 8*usedCounters:
			at := func(i int) uint64 { return binary.NativeEndian.Uint64(a.Value[8*i:]) }
			l.RxPackets, l.TxPackets, l.RxBytes, l.TxBytes = at(rxPackets), at(txPackets), at(rxBytes), at(txBytes)
			l.RxErrors, l.TxErrors, l.RxDropped, l.TxDropped = at(rxErrors), at(txErrors), at(rxDropped), at(txDropped)
			found = true
		}
	}
	return l, found && l.Name != ""
}
