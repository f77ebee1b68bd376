package engine

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/engine/spec"
)

// An environment may have values that are no text, and an OCI spec, which is JSON, cannot say them. They are kept in the container's
// record and told to the shim beside the spec, which has replacement characters in their place.

// rawEnv is the environment of a process if it is not all text, else nil. Only our own runtime is told in a way that keeps it.
func (e *Engine) rawEnv(p *specs.Process, handler string) (spec.Env, error) {
	env := spec.Env(p.Env)
	if env.IsText() {
		return nil, nil
	}
	h, err := e.handler(handler)
	if err != nil || h.Path == "" {
		return env, err
	}
	for _, entry := range env {
		if name, value, _ := strings.Cut(entry, "="); !utf8.ValidString(value) {
			return nil, fmt.Errorf("value of the environment variable %q is not UTF-8, and runtime handler %q takes its configuration as JSON, which is; %q takes any bytes: %w",
				name, handler, NativeHandler, errdefs.ErrInvalidArgument)
		}
	}
	return env, nil
}

// wireEnv is an environment for the shim, which takes that of the spec where there is none.
func wireEnv(env []string) [][]byte {
	var all [][]byte
	for _, entry := range env {
		all = append(all, []byte(entry))
	}
	return all
}
