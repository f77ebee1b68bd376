// Package engine is the core: pods and containers, their states and records, teardown, recovery.
//
// It stands on three seams (seams.go): the image store, the network and the shim. What clients call is on Engine. A call
// that changes something finds or reserves its pod or container in memory, and then runs as an operation of it (ops.go):
// one after the other for each, in goroutines that do not end with their callers, joined by those that ask for the same.
//
// An operation records before it acts (record.go) and moves states along one diagram (state.go). What it made it can
// lose: rollback, removal and recovery are the same teardown (teardown.go). What a process does by itself comes from the
// shim (follow.go): news is a hint, the shim's list and exit.json are the truth. When an engine is opened, records, shim
// and what is behind the seams are brought in line (restore.go).
//
// Engine.mu guards what is in memory and is never held across I/O. A record on disk has one writer: the operation that
// runs on its pod or container.
package engine
