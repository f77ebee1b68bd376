//go:build tools

// Package ocivalidate pins the validation suite of OCI runtime-tools and what it needs.
package ocivalidate

import (
	_ "github.com/opencontainers/runtime-tools/cmd/runtimetest"
	_ "github.com/opencontainers/runtime-tools/validation/util"
)
