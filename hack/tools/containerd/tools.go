//go:build tools

// Package containerd pins the containerd that `make oci-test` runs on our OCI command.
package containerd

import (
	_ "github.com/containerd/containerd/v2/cmd/containerd"
	_ "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"
)
