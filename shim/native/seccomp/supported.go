package seccomp

import (
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Supported are the actions, architectures and flags that a profile may name.
func Supported() (actions, architectureNames, flags []string) {
	for _, a := range []specs.LinuxSeccompAction{
		specs.ActAllow, specs.ActErrno, specs.ActKill, specs.ActKillProcess, specs.ActKillThread, specs.ActLog, specs.ActTrace, specs.ActTrap,
	} {
		actions = append(actions, string(a))
	}
	for _, a := range architectures {
		architectureNames = append(architectureNames, string(a.name))
	}
	slices.Sort(architectureNames)
	return actions, architectureNames, []string{string(specs.LinuxSeccompFlagLog), string(specs.LinuxSeccompFlagSpecAllow)}
}
