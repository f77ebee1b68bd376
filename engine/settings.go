package engine

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/engine/spec"
)

// LoadBaseSpec reads a file with a spec that those of containers are laid over. Errors name the file and the field.
func LoadBaseSpec(path string) (*specs.Spec, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("base spec: %w", err)
	}
	var s specs.Spec
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("base spec %s: %w: %w", path, err, errdefs.ErrInvalidArgument)
	}
	if err := spec.CheckBase(&s); err != nil {
		return nil, fmt.Errorf("base spec %s: %w", path, err)
	}
	return &s, nil
}

// settings are those of a handler; "" is our own runtime.
func (e *Engine) settings(handler string) spec.Settings {
	if handler == "" {
		handler = NativeHandler
	}
	return e.cfg.Settings[handler]
}

// hardLimits are those that this process has, and so can give. With CAP_SYS_RESOURCE there are none.
func hardLimits() map[string]uint64 {
	limits := map[string]uint64{}
	for name, number := range spec.RlimitNumbers {
		var l unix.Rlimit
		if unix.Getrlimit(number, &l) == nil {
			limits[name] = l.Max
		}
	}
	return limits
}
