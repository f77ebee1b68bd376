// Command criserver-keeper holds descriptors and reaps orphans for criserver-shim, which it starts and starts again.
// The daemon runs it; see shim/SHIM.md.
package main

import (
	"os"
	"runtime/debug"
	"syscall"

	"github.com/criserver/criserver/shim/keeper"
)

const usage = "usage: criserver-keeper --state DIR --shim PATH --keeper PATH [--adopt]\n"

func main() {
	debug.SetGCPercent(10)
	c := keeper.Config{Env: syscall.Environ()}
	args := os.Args[1:]
	for len(args) > 0 {
		flag := args[0]
		args = args[1:]
		if flag == "--adopt" {
			c.Adopt = true
			continue
		}
		if len(args) == 0 {
			fail(usage)
		}
		switch flag {
		case "--state":
			c.State = args[0]
		case "--shim":
			c.Shim = args[0]
		case "--keeper":
			c.Keeper = args[0]
		default:
			fail(usage)
		}
		args = args[1:]
	}
	if c.State == "" || c.Shim == "" || c.Keeper == "" {
		fail(usage)
	}
	if err := keeper.Run(c); err != nil && err != keeper.ErrLocked {
		fail("criserver-keeper: " + err.Error() + "\n")
	}
}

func fail(text string) {
	_, _ = os.Stderr.WriteString(text)
	os.Exit(1)
}
