package main

import (
	"fmt"
	"os"
)

// ociCommands are the subcommands of "oci"; each answers with its exit status.
var ociCommands = map[string]func(args []string) int{}

func oci(args []string) int {
	if len(args) > 0 {
		if command := ociCommands[args[0]]; command != nil {
			return command(args[1:])
		}
	}
	fmt.Fprint(os.Stderr, usage)
	return 2
}
