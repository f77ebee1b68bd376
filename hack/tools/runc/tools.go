//go:build tools

// Package tools pins the runc that tests run as a RuntimeClass handler and compare with.
package tools

import _ "github.com/opencontainers/runc"
