package runc

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"time"
)

// Features are what a program says of itself (`runc features`), as far as a client of ours can be told.
type Features struct {
	// Known is false for a program that does not have the command: nothing can be said of it then.
	Known bool
	// RecursiveReadonly: a mount can be made read-only with all that is mounted below it ("rro").
	RecursiveReadonly bool
	// UserNamespaces: a container can have a user namespace, and mounts with owners as it has them.
	UserNamespaces bool
	// MappedMounts: owners of a mount can be mapped ("uidMappings"). Older programs pass over what says so.
	MappedMounts bool
	// Version is the newest version of the OCI runtime spec that it takes; "" when it does not say.
	Version string
}

// probeLimit bounds a probe.
const probeLimit = 10 * time.Second

// Probe asks a program for its features. A program that cannot be run is an error; one that has no such command, or that
// is slow to answer on a busy node, is not: nothing is known of it then.
func Probe(ctx context.Context, path string) (Features, error) {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	// Every one of them has --version. It tells one without the command from a file that is no such program.
	if err := exec.CommandContext(ctx, path, "--version").Run(); err != nil && ctx.Err() == nil {
		return Features{}, fmt.Errorf("%s --version: %w", path, err)
	}
	text, err := exec.CommandContext(ctx, path, "features").Output()
	if err != nil {
		return Features{}, nil
	}
	return parseFeatures(text), nil
}

func parseFeatures(text []byte) Features {
	var said struct {
		Max          string   `json:"ociVersionMax"`
		MountOptions []string `json:"mountOptions"`
		Linux        struct {
			Namespaces      []string `json:"namespaces"`
			MountExtensions struct {
				IDMap struct {
					Enabled bool `json:"enabled"`
				} `json:"idmap"`
			} `json:"mountExtensions"`
		} `json:"linux"`
	}
	if json.Unmarshal(text, &said) != nil {
		return Features{}
	}
	mapped := said.Linux.MountExtensions.IDMap.Enabled
	return Features{
		Known: true, RecursiveReadonly: slices.Contains(said.MountOptions, "rro"), Version: said.Max, MappedMounts: mapped,
		UserNamespaces: mapped && slices.Contains(said.Linux.Namespaces, "user"),
	}
}
