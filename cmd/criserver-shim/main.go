// Command criserver-shim runs the workloads of a node. The keeper starts it ("serve"); "oci" is for people and other engines.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/internal/idle"
	"github.com/criserver/criserver/shim/keeper"
	"github.com/criserver/criserver/shim/oci"
	"github.com/criserver/criserver/shim/shimd"
)

// version is set by the linker.
var version = "dev"

const usage = `usage:
  criserver-shim serve --state DIR --keeper PATH --shim PATH
  criserver-shim oci COMMAND ...   an OCI runtime; called as criserver-oci, without "oci"
`

// ociName is what other engines call this program by: they give it the arguments of an OCI runtime.
const ociName = "criserver-oci"

func main() {
	args := os.Args[1:]
	if filepath.Base(os.Args[0]) == ociName {
		os.Exit(oci.Main(ociName, version, args, os.Stdout, os.Stderr))
	}
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	switch args[0] {
	case "serve":
		os.Exit(serve(args[1:]))
	case "oci":
		os.Exit(oci.Main("criserver-shim oci", version, args[1:], os.Stdout, os.Stderr))
	default:
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
}

func serve(args []string) int {
	// Before anything is opened: no process of a container that shares our uid may look into this one.
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	unix.CloseOnExec(keeper.LinkFD)
	idle.SlowMonitor()
	tune()
	c := shimd.Config{Log: slog.New(slog.NewTextHandler(os.Stderr, nil)).With("process", "criserver-shim"), Version: version}
	set := flag.NewFlagSet("serve", flag.ContinueOnError)
	set.StringVar(&c.State, "state", "", "directory of the socket and of the pods' records")
	set.StringVar(&c.Keeper, "keeper", "", "path of criserver-keeper")
	set.StringVar(&c.Shim, "shim", "", "path of criserver-shim")
	if err := set.Parse(args); err != nil || c.State == "" || c.Keeper == "" || c.Shim == "" {
		fmt.Fprint(os.Stderr, usage)
		return 2
	}
	// SIGPIPE: a standard error whose reader is gone must not end the shim. It is caught, not ignored, because workloads
	// would inherit that.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	go idle.Trim(ctx, trimPeriod) // ends with ctx
	switch err := shimd.Serve(ctx, c); {
	case err == nil:
		return 0
	case errors.Is(err, shimd.ErrServed):
		return keeper.ExitServed
	default:
		c.Log.Error("the shim ends", "error", err)
		return 1
	}
}

// trimPeriod is how often is looked whether the shim has nothing to do.
const trimPeriod = 5 * time.Second

// tune keeps the shim small, which lives as long as the node, and lets it collect garbage seldom while it is busy: each
// collection costs as much as an exec. What that leaves behind idle.Trim gives back.
func tune() {
	debug.SetGCPercent(100)
	runtime.GOMAXPROCS(min(4, runtime.NumCPU()))
}
