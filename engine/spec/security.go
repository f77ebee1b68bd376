package spec

import (
	"fmt"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// The kinds of a Profile.
const (
	Unconfined     = "unconfined"
	RuntimeDefault = "runtime/default"
	Localhost      = "localhost"
)

// seccomp sets the filter. A privileged container has none.
func (b *builder) seccomp(s *specs.Spec) error {
	profile := b.in.Container.Security.Seccomp
	if b.in.Container.Security.Privileged {
		return nil
	}
	kind := profile.Kind
	if kind == "" {
		kind = b.in.Host.UnsetSeccomp
	}
	if b.in.Host.NoSeccomp && kind != "" && kind != Unconfined {
		return fmt.Errorf("seccomp profile %q: this kernel has no seccomp filters: %w", kind, errdefs.ErrFailedPrecondition)
	}
	var err error
	switch kind {
	case "", Unconfined:
	case RuntimeDefault:
		s.Linux.Seccomp, err = defaultSeccomp(s)
	case Localhost:
		s.Linux.Seccomp, err = seccomp.LoadProfile(string(b.in.Seccomp), s)
		if err != nil {
			err = invalid("seccomp profile %s: %v", profile.Path, err)
		}
	default:
		return invalid("seccomp profile %q: must be %s, %s or %s", profile.Kind, RuntimeDefault, Unconfined, Localhost)
	}
	return err
}

// defaults holds the default profile for the few sets of capabilities that are in use. A profile is never changed once
// it is made.
var defaults struct {
	sync.Mutex
	profiles map[string]*specs.LinuxSeccomp
}

const maxDefaults = 64

// defaultSeccomp is the default profile for the capabilities of s.
func defaultSeccomp(s *specs.Spec) (*specs.LinuxSeccomp, error) {
	key := strings.Join(s.Process.Capabilities.Bounding, " ")
	defaults.Lock()
	profile := defaults.profiles[key]
	defaults.Unlock()
	if profile != nil {
		return profile, nil
	}
	profile, err := seccomp.GetDefaultProfile(s)
	if err != nil {
		return nil, fmt.Errorf("default seccomp profile: %w", err)
	}
	defaults.Lock()
	defer defaults.Unlock()
	if defaults.profiles == nil || len(defaults.profiles) >= maxDefaults {
		defaults.profiles = map[string]*specs.LinuxSeccomp{}
	}
	defaults.profiles[key] = profile
	return profile, nil
}

// appArmor sets the profile. What the host has not switched on is not asked for, but a profile that is named must not be
// missing silently.
func (b *builder) appArmor(s *specs.Spec) error {
	security := b.in.Container.Security
	switch profile := security.AppArmor; profile.Kind {
	case "", RuntimeDefault:
		if b.in.Host.AppArmor && !security.Privileged {
			s.Process.ApparmorProfile = b.in.Host.AppArmorDefault
		}
	case Unconfined:
	case Localhost:
		if !b.in.Host.AppArmor {
			return fmt.Errorf("AppArmor profile %s: AppArmor is off on this node: %w", profile.Path, errdefs.ErrFailedPrecondition)
		}
		if profile.Path == "" {
			return invalid("AppArmor profile of kind %s has no name", Localhost)
		}
		if !security.Privileged {
			s.Process.ApparmorProfile = profile.Path
		}
	default:
		return invalid("AppArmor profile %q: must be %s, %s or %s", profile.Kind, RuntimeDefault, Unconfined, Localhost)
	}
	return nil
}
