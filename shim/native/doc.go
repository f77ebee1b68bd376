// Package native is the OCI runtime: it compiles an OCI runtime spec into a plan, a list of raw system calls, and has a
// freestanding program, the stage, run it. All knowledge of containers is here, in Go; the stage knows only how to make
// calls. See docs/adr/0001-plan-and-stage.md.
package native
