package spec

import (
	"slices"
	"strings"
	"sync"

	"github.com/moby/sys/capability"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// defaultCaps are what a container has that asks for nothing.
var defaultCaps = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

var knownCaps = sync.OnceValue(func() map[string]bool {
	known := map[string]bool{}
	for _, c := range capability.ListKnown() {
		known["CAP_"+strings.ToUpper(c.String())] = true
	}
	return known
})

// capabilities sets the capabilities. Inheritable ones are only those that are ambient too: others would be gained by
// any file with inheritable capabilities.
func (b *builder) capabilities(s *specs.Spec) error {
	security := b.in.Container.Security
	caps, err := b.bounding(security)
	if err != nil {
		return err
	}
	ambient, all, err := capNames("add_ambient_capabilities", security.CapAmbient)
	if err != nil {
		return err
	}
	if all {
		ambient = slices.Clone(caps)
	}
	for _, c := range ambient {
		if !slices.Contains(caps, c) && slices.Contains(b.in.Host.Capabilities, c) {
			caps = append(caps, c) // an ambient capability is a permitted one
		}
	}
	slices.Sort(caps)
	ambient = b.grantable(ambient)
	s.Process.Capabilities = &specs.LinuxCapabilities{
		Bounding: caps, Effective: caps, Permitted: caps, Inheritable: ambient, Ambient: ambient,
	}
	return nil
}

// bounding is the default set, or none or all with "ALL", with what is added, without what is dropped. All means all
// that we have.
func (b *builder) bounding(security Security) ([]string, error) {
	if security.Privileged {
		return slices.Clone(b.in.Host.Capabilities), nil
	}
	add, addAll, err := capNames("add_capabilities", security.CapAdd)
	if err != nil {
		return nil, err
	}
	drop, dropAll, err := capNames("drop_capabilities", security.CapDrop)
	if err != nil {
		return nil, err
	}
	var caps []string
	switch {
	case dropAll && !addAll:
	case addAll && !dropAll:
		caps = slices.Clone(b.in.Host.Capabilities)
	case !addAll:
		for _, c := range defaultCaps {
			if slices.Contains(b.in.Host.Capabilities, c) {
				caps = append(caps, c)
			}
		}
	}
	for _, c := range b.grantable(add) {
		if !slices.Contains(caps, c) {
			caps = append(caps, c)
		}
	}
	return slices.DeleteFunc(caps, func(c string) bool { return slices.Contains(drop, c) }), nil
}

// grantable leaves out, with a warning, what the daemon itself lacks.
func (b *builder) grantable(caps []string) []string {
	var granted []string
	for _, c := range caps {
		if slices.Contains(b.in.Host.Capabilities, c) {
			granted = append(granted, c)
			continue
		}
		if warning := c + " is not given: this daemon lacks it"; !slices.Contains(b.out.Warnings, warning) {
			b.warn("%s", warning)
		}
	}
	return granted
}

// capNames brings names to the form CAP_CHOWN, sorted, each once.
func capNames(field string, names []string) (caps []string, all bool, err error) {
	for _, name := range names {
		c := strings.ToUpper(name)
		if c == "ALL" || c == "CAP_ALL" {
			all = true
			continue
		}
		if !strings.HasPrefix(c, "CAP_") {
			c = "CAP_" + c
		}
		if !knownCaps()[c] {
			return nil, false, invalid("%s %q is not a capability", field, name)
		}
		caps = append(caps, c)
	}
	slices.Sort(caps)
	return slices.Compact(caps), all, nil
}
