// Command criserver is the daemon, and the operator's commands beside it. It only wires: flags and configuration here,
// everything else in the packages.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/cmd/criserver/config"
	"github.com/criserver/criserver/cmd/criserver/daemon"
	"github.com/criserver/criserver/internal/idle"
)

// version is set when the program is linked.
var version = "0.1.0-dev"

const usage = `usage: criserver [FLAGS]            run the daemon
       criserver config default     print the configuration, every key with its default
       criserver config check [FILE]
       criserver drain [FLAGS]      stop all containers and pods of a running daemon
       criserver image ...          pull, push, import, export, check images by a running daemon
       criserver version

flags:
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "criserver:", err)
		}
		os.Exit(1)
	}
}

// run is main for tests: args without the program's name.
func run(ctx context.Context, args []string, out io.Writer) error {
	command := ""
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		command, args = args[0], args[1:]
	}
	switch command {
	case "":
		return serve(ctx, args)
	case "config":
		return configCommand(args, out)
	case "drain":
		return drain(ctx, args, out)
	case "image":
		return image(ctx, args, out)
	case "version":
		fmt.Fprintf(out, "criserver %s (%s, %s/%s)\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return nil
	}
	return fmt.Errorf("unknown command %q; see criserver --help", command)
}

func serve(ctx context.Context, args []string) error {
	cfg, err := configured(newFlags(), args)
	if err != nil {
		return err
	}
	log := newLog(cfg, os.Stderr)
	slog.SetDefault(log)
	idle.SlowMonitor()
	return daemon.Run(ctx, cfg, daemon.Options{Version: version, Log: log})
}

func newLog(cfg config.Config, w io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: cfg.SlogLevel()}
	if cfg.Log.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

func newFlags() *flag.FlagSet {
	flags := flag.NewFlagSet("criserver", flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage)
		flags.PrintDefaults()
	}
	return flags
}

// configured parses flags and reads the configuration that they name. It takes no other arguments.
func configured(flags *flag.FlagSet, args []string) (config.Config, error) {
	load := configFlags(flags)
	if err := flags.Parse(args); err != nil {
		return config.Config{}, err
	}
	if flags.NArg() > 0 {
		return config.Config{}, fmt.Errorf("unexpected argument %q; see criserver --help", flags.Arg(0))
	}
	return load()
}

// configFlags adds the flags of the configuration, and returns what reads it once they are parsed. Flags win over the file.
func configFlags(flags *flag.FlagSet) func() (config.Config, error) {
	file := flags.String("config", "", "configuration file (default "+config.DefaultPath+" if there is one)")
	overrides := map[string]*string{}
	for name, text := range map[string]string{
		"root":       "directory of what outlives a reboot",
		"state":      "directory of what lives until reboot",
		"listen":     "CRI socket: a path or a unix:// URL",
		"log-level":  "debug, info, warn or error",
		"log-format": "text or json",
	} {
		overrides[name] = flags.String(name, "", text+" (overrides the configuration)")
	}
	return func() (config.Config, error) {
		cfg, err := config.Load(*file)
		if err != nil {
			return config.Config{}, err
		}
		for name, key := range map[string]*string{
			"root": &cfg.Root, "state": &cfg.State, "listen": &cfg.Listen, "log-level": &cfg.Log.Level, "log-format": &cfg.Log.Format,
		} {
			if *overrides[name] != "" {
				*key = *overrides[name]
			}
		}
		return cfg, cfg.Check()
	}
}

func configCommand(args []string, out io.Writer) error {
	if len(args) == 1 && args[0] == "default" {
		_, err := out.Write(config.DefaultText())
		return err
	}
	if len(args) == 0 || args[0] != "check" || len(args) > 2 {
		return errors.New("usage: criserver config default | criserver config check [FILE]")
	}
	path := config.DefaultPath
	if len(args) == 2 {
		path = args[1]
	}
	if _, err := config.Load(path); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s: ok\n", path)
	return nil
}
