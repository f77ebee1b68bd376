package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/criserver/criserver/cri"
)

// drain stops what a running daemon runs, by way of its socket, so that it sees what any other client would.
func drain(ctx context.Context, args []string, out io.Writer) error {
	flags := newFlags()
	grace := flags.Duration("grace", 30*time.Second, "time that containers have to end by themselves")
	cfg, err := configured(flags, args)
	if err != nil {
		return err
	}
	path := cfg.SocketPath()
	connection, err := dial(path)
	if err != nil {
		return err
	}
	defer connection.Close()
	if err := cri.Drain(ctx, connection, *grace, func(line string) { fmt.Fprintln(out, line) }); err != nil {
		return fmt.Errorf("drain by %s: %w", path, err)
	}
	return nil
}
