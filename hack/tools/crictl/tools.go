//go:build tools

// Package tools pins the commands of sigs.k8s.io/cri-tools that hack/ builds and runs.
package tools

import (
	_ "sigs.k8s.io/cri-tools/cmd/crictl"
	_ "sigs.k8s.io/cri-tools/cmd/critest"
)
