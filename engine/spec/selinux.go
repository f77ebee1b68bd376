package spec

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Labels are the SELinux labels of a pod's processes and files, from which those of its containers are made.
type Labels struct {
	Process string `json:"process"`
	Mount   string `json:"mount"`
}

// selinux sets the labels: the pod's, in which what the container asks for takes the place of what the pod has. A privileged
// container is confined only when it names a type itself; its files have the label in any case, so that others may use them. Where
// SELinux is off there are none, as clients expect who send them to every node.
func (b *builder) selinux(s *specs.Spec) error {
	security := b.in.Container.Security
	if !b.in.Host.SELinux {
		if why := b.in.Host.NoSELinux; why != "" && b.wantsLabels() {
			return fmt.Errorf("SELinux labels (selinux_options, selinux_relabel) are not given on this node: %s: %w", why, errdefs.ErrFailedPrecondition)
		}
		return nil
	}
	process, err := parseLabel(b.in.Labels.Process)
	if err != nil {
		return err
	}
	mount, err := parseLabel(b.in.Labels.Mount)
	if err != nil {
		return err
	}
	asked := SELinux{}
	if security.SELinux != nil {
		asked = *security.SELinux
	}
	process.override(asked)
	mount.override(SELinux{User: asked.User, Level: asked.Level})
	if !security.Privileged || asked.Type != "" {
		s.Process.SelinuxLabel = process.String()
	}
	s.Linux.MountLabel = mount.String()
	return nil
}

// wantsLabels says that labels are asked for.
func (b *builder) wantsLabels() bool {
	for _, m := range b.in.Container.Mounts {
		if m.SELinuxRelabel {
			return true
		}
	}
	return b.in.Container.Security.SELinux != nil
}

// parseLabel reads user:role:type:level, of which the level may have colons of its own.
func parseLabel(label string) (SELinux, error) {
	parts := strings.SplitN(label, ":", 4)
	if len(parts) < 3 {
		return SELinux{}, fmt.Errorf("SELinux label %q of the pod is none, user:role:type:level: %w", label, errdefs.ErrInternal)
	}
	l := SELinux{User: parts[0], Role: parts[1], Type: parts[2]}
	if len(parts) == 4 {
		l.Level = parts[3]
	}
	return l, nil
}

func (l *SELinux) override(with SELinux) {
	for _, part := range []struct {
		to   *string
		from string
	}{{&l.User, with.User}, {&l.Role, with.Role}, {&l.Type, with.Type}, {&l.Level, with.Level}} {
		if part.from != "" {
			*part.to = part.from
		}
	}
}

// String is the label as the kernel takes it. A policy without levels has labels without them.
func (l SELinux) String() string {
	return strings.TrimSuffix(strings.Join([]string{l.User, l.Role, l.Type, l.Level}, ":"), ":")
}

// Options are what is asked for, in the form of github.com/opencontainers/selinux.
func (l SELinux) Options() []string {
	var options []string
	for _, part := range []struct{ name, value string }{{"user", l.User}, {"role", l.Role}, {"type", l.Type}, {"level", l.Level}} {
		if part.value != "" {
			options = append(options, part.name+":"+part.value)
		}
	}
	return options
}
