package cni

import "net/netip"

// PortMapping publishes a port of the pod on the host. Protocol is tcp, udp or sctp; an invalid HostIP is every address.
type PortMapping struct {
	Protocol      string     `json:"protocol"`
	HostPort      uint16     `json:"hostPort"`
	ContainerPort uint16     `json:"containerPort"`
	HostIP        netip.Addr `json:"hostIP,omitzero"`
}

// Request names a pod to attach.
type Request struct {
	PodID        string            `json:"podID"`
	Namespace    string            `json:"namespace"`
	Name         string            `json:"name"`
	UID          string            `json:"uid"`
	PortMappings []PortMapping     `json:"portMappings,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	CgroupParent string            `json:"cgroupParent,omitempty"`
	DNS          *DNS              `json:"dns,omitempty"` // told to plugins that ask for it
	// MadeNetns is where a network namespace can be opened that was made for the pod, since a user namespace of the pod's owns it.
	// Empty: one is made.
	MadeNetns string `json:"-"`
}

// DNS is the content of a pod's resolv.conf.
type DNS struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// Result says what a pod got.
type Result struct {
	Netns string       `json:"netns"` // path, a bind mount of the namespace
	IPs   []netip.Addr `json:"ips"`   // the first is the primary one
}
