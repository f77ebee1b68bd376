package engine

import (
	"fmt"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/engine/cdi"
	"github.com/criserver/criserver/engine/spec"
)

// InjectDevices edits s so that the container has the CDI devices.
func (e *Engine) InjectDevices(s *specs.Spec, names []string) error {
	if len(names) == 0 {
		return nil
	}
	if len(e.cfg.CDIDirs) == 0 {
		return fmt.Errorf("CDI device %s: CDI is turned off by cdi.enabled in this node's configuration: %w", names[0], errdefs.ErrFailedPrecondition)
	}
	if err := cdi.Inject(s, e.cfg.CDIDirs, names); err != nil {
		return err
	}
	s.Version = spec.LowestVersion(s)
	return nil
}

// CDI answers which CDI devices containers can ask for, and what is wrong with the files that describe them. It reads
// the files. With CDI turned off the answer is empty.
func (e *Engine) CDI() (cdi.State, error) {
	if len(e.cfg.CDIDirs) == 0 {
		return cdi.State{}, nil
	}
	return cdi.Read(e.cfg.CDIDirs)
}

// BlockIOClass is what a class of block I/O means. The error of one that is not configured says so.
func (e *Engine) BlockIOClass(class string) (*specs.LinuxBlockIO, error) {
	limits, err := e.classes.blockIOClass(class)
	if err != nil {
		return nil, fmt.Errorf("blockio class %q: %w: %w", class, err, errdefs.ErrFailedPrecondition)
	}
	return limits, nil
}
