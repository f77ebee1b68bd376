package native

import (
	"fmt"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// validate refuses what this runtime does not do, and what no runtime could: nothing is dropped silently.
func validate(in *input) error {
	spec, p := in.spec, in.process
	if p == nil || len(p.Args) == 0 || p.Args[0] == "" {
		return fmt.Errorf("process.args: no program is named: %w", errdefs.ErrInvalidArgument)
	}
	if len(p.Cwd) == 0 || p.Cwd[0] != '/' {
		return fmt.Errorf("process.cwd: %q is not an absolute path: %w", p.Cwd, errdefs.ErrInvalidArgument)
	}
	if spec.Linux == nil {
		return fmt.Errorf("linux: the section is missing: %w", errdefs.ErrInvalidArgument)
	}
	seen := map[specs.LinuxNamespaceType]bool{}
	for _, n := range spec.Linux.Namespaces {
		if seen[n.Type] {
			return fmt.Errorf("linux.namespaces: %s is named twice: %w", n.Type, errdefs.ErrInvalidArgument)
		}
		seen[n.Type] = true
	}
	if len(spec.Linux.TimeOffsets) > 0 && !seen[specs.TimeNamespace] {
		return fmt.Errorf("linux.timeOffsets: a time namespace is required for them: %w", errdefs.ErrInvalidArgument)
	}
	if !seen[specs.MountNamespace] && !in.hostMounts {
		return fmt.Errorf("linux.namespaces: a mount namespace is required: %w", errdefs.ErrInvalidArgument)
	}
	if seen[specs.UserNamespace] {
		for _, n := range spec.Linux.Namespaces {
			if n.Type == specs.MountNamespace && n.Path != "" || !seen[specs.MountNamespace] {
				return fmt.Errorf("linux.namespaces: with a user namespace a mount namespace of the container's own is required: %w", errdefs.ErrInvalidArgument)
			}
		}
	}
	if err := validateHooks(spec); err != nil {
		return err
	}
	if err := validateUser(spec, p, seen[specs.UserNamespace]); err != nil {
		return err
	}
	for _, u := range unsupported(spec, p) {
		if u.asked {
			return fmt.Errorf("%s is not supported: %w", u.field, errdefs.ErrNotImplemented)
		}
	}
	return nil
}

type request struct {
	field string
	asked bool
}

func unsupported(spec *specs.Spec, p *specs.Process) []request {
	l := spec.Linux
	return []request{
		{"linux.netDevices", len(l.NetDevices) > 0},
		{"vm, solaris, windows or zos", spec.VM != nil || spec.Solaris != nil || spec.Windows != nil || spec.ZOS != nil},
	}
}
