// Package e2e drives the real daemon as a CRI client does. Everything runs in a place of its own (package rig): it
// needs root, leaves nothing, and after every test a checker proves that the daemon leaves nothing either.
//
// With -short only the happy path runs, which is what the virtual machine does (make vm-test).
package e2e

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/criserver/criserver/test/e2e/rig"
)

// place and registry are set before any test runs.
var (
	place    *rig.Place
	registry string
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		if role, ok := roles[os.Args[1]]; ok { // this program inside a container, or as the outside
			os.Exit(role(os.Args[2:]))
		}
	}
	flag.Parse()
	place = rig.Isolate()
	os.Exit(runAll(m))
}

func runAll(m *testing.M) int {
	place.Observe = covered.observe
	var err error
	if registry, err = place.StartRegistry(); err != nil {
		fmt.Fprintf(os.Stderr, "e2e: %v\n", err)
		return 1
	}
	code := m.Run()
	if shared != nil {
		if err := shared.shutdown(); err != nil {
			fmt.Fprintf(os.Stderr, "e2e: the end of the shared daemon: %v\n", err)
			code = 1
		}
	}
	if code == 0 && *conformancePage != "" {
		if err := covered.write(*conformancePage); err != nil {
			fmt.Fprintf(os.Stderr, "e2e: conformance: %v\n", err)
			code = 1
		}
	}
	return code
}
