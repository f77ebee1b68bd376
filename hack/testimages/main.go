// Command testimages makes the images that the tests pull, from Debian packages, and serves them by a registry.
//
//	testimages build -o DIR [-cache DIR] [-big]    an OCI layout; made again only when something changed
//	testimages serve -dir DIR -listen ADDR         prints "listening on ADDR" as its first line
//
// What it makes depends only on the packages' versions, on this program and on the Go compiler: the same input gives the same
// digests.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "testimages:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("say build or serve")
	}
	flags := flag.NewFlagSet("testimages "+args[0], flag.ContinueOnError)
	switch args[0] {
	case "build":
		out := flags.String("o", "", "directory of the OCI layout")
		cache := flags.String("cache", "hack/cache/debs", "directory that keeps the downloaded packages")
		big := flags.Bool("big", false, "make the big images, too")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		if *out == "" {
			return errors.New("build: say where to with -o")
		}
		return build(ctx, *out, *cache, *big)
	case "serve":
		dir := flags.String("dir", "", "directory of the OCI layout")
		listen := flags.String("listen", "127.0.0.1:0", "address to listen on")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		if *dir == "" {
			return errors.New("serve: say what with -dir")
		}
		return serve(ctx, *dir, *listen, os.Stdout)
	}
	return fmt.Errorf("unknown command %q: say build or serve", args[0])
}
