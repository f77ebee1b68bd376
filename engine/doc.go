// Package engine is the core: pods and containers, their states and records, teardown, recovery.
package engine
