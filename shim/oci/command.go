// Package oci is the command line of the native runtime, as other engines and people drive an OCI runtime. There is no daemon
// behind it: a container's state is a directory, and the process of "create" ends while the container waits for "start".
package oci

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native"
)

// DefaultRoot is where the state of containers is.
const DefaultRoot = "/run/criserver/oci"

// app is one run of the program.
type app struct {
	ctx      context.Context
	version  string
	self     string // how the program was called, for the usage
	out, err io.Writer

	root      string
	log       string
	logFormat string
	debug     bool
	systemd   bool
	runtime   *native.Runtime // made when it is needed
}

// command is a subcommand.
type command struct {
	name, args, help string
	run              func(a *app, args []string) error
}

func commands() []command {
	return []command{
		{"create", "[options] ID", "make a container, whose process waits for start", create},
		{"start", "ID", "run the process of a container that was made", start},
		{"run", "[options] ID", "create, start and wait for the end", run},
		{"exec", "[options] ID [COMMAND ...]", "run a further process in a container", execute},
		{"state", "ID", "print a container's state", state},
		{"kill", "[--all] ID [SIGNAL]", "send a signal, TERM if none is named, to a container's process", kill},
		{"delete", "[--force] ID", "remove what is left of a container that has ended", remove},
		{"pause", "ID", "freeze the processes of a container", pause},
		{"resume", "ID", "let them go on", resume},
		{"update", "--resources FILE ID", "change the limits of a container", update},
		{"ps", "[--format json] ID", "print the pids of a container's processes", ps},
		{"list", "[--format json] [--quiet]", "print all containers", list},
		{"features", "", "print what this runtime can do", features},
		{"spec", "[--bundle DIR]", "write a config.json to begin with", writeSpec},
		{"plan", "CONFIG.JSON", "print the system calls that would make a container", plan},
	}
}

// exitError ends the program with a code and without a message.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// Main runs the command line and answers with the exit code. self is how the program was called.
func Main(self, version string, args []string, out, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	a := &app{ctx: ctx, version: version, self: self, out: out, err: stderr}
	err := a.main(args)
	if a.runtime != nil {
		_ = a.runtime.Close()
	}
	var code exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	case errors.Is(err, errUsage):
		return 2
	}
	a.report(err)
	return 1
}

var errUsage = errors.New("usage")

func (a *app) main(args []string) error {
	set := a.flags("")
	set.StringVar(&a.root, "root", DefaultRoot, "directory of the containers' state")
	set.StringVar(&a.log, "log", "", "file that errors are written to besides")
	set.StringVar(&a.logFormat, "log-format", "text", "text or json")
	set.BoolVar(&a.debug, "debug", false, "write warnings to standard error, too")
	set.BoolVar(&a.systemd, "systemd-cgroup", false, "linux.cgroupsPath is slice:prefix:name")
	version := set.Bool("version", false, "print the version")
	set.BoolVar(version, "v", false, "")
	_ = set.String("rootless", "auto", "false or auto: this runtime is for root")
	if err := a.parse(set, args, false); err != nil {
		return err
	}
	if *version {
		_, err := fmt.Fprintf(a.out, "criserver-oci version %s\nspec: %s\n", a.version, specs.Version)
		return err
	}
	if a.logFormat != "text" && a.logFormat != "json" {
		return fmt.Errorf("--log-format %q: text and json are known: %w", a.logFormat, errdefs.ErrInvalidArgument)
	}
	rest := set.Args()
	if len(rest) == 0 {
		a.usage()
		return errUsage
	}
	for _, c := range commands() {
		if c.name == rest[0] {
			return c.run(a, rest[1:])
		}
	}
	a.usage()
	if rest[0] == "help" {
		return nil
	}
	return errUsage
}

func (a *app) usage() {
	fmt.Fprintf(a.err, "usage: %s [--root DIR] [--log FILE] [--log-format text|json] [--debug] COMMAND\n\n", a.self)
	for _, c := range commands() {
		fmt.Fprintf(a.err, "  %-9s %-28s %s\n", c.name, c.args, c.help)
	}
}

func (a *app) flags(name string) *flag.FlagSet {
	set := flag.NewFlagSet(strings.TrimSpace(a.self+" "+name), flag.ContinueOnError)
	set.SetOutput(a.err)
	return set
}

// parse reads flags; with mixed, those between and behind the other arguments too.
func (a *app) parse(set *flag.FlagSet, args []string, mixed bool) error {
	var plain []string
	for {
		if err := set.Parse(args); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				return exitError(0)
			}
			return errUsage
		}
		rest := set.Args()
		if !mixed || len(rest) == 0 {
			// Parse again what is left, so that Args answers with it.
			return set.Parse(slices.Concat([]string{"--"}, plain, rest))
		}
		plain, args = append(plain, rest[0]), rest[1:]
	}
}

// id reads the only argument of a command, after its flags.
func (a *app) id(set *flag.FlagSet, args []string) (string, error) {
	if err := a.parse(set, args, true); err != nil {
		return "", err
	}
	if set.NArg() != 1 {
		return "", fmt.Errorf("the id of one container is wanted, %d arguments are given: %w", set.NArg(), errdefs.ErrInvalidArgument)
	}
	return set.Arg(0), nil
}

// report writes an error where whoever called looks for it.
func (a *app) report(err error) {
	fmt.Fprintf(a.err, "%s: %v\n", a.self, err)
	a.record("error", err.Error())
}

// warn writes what was done in another way than asked for.
func (a *app) warn(text string) {
	if a.debug || a.log == "" {
		fmt.Fprintf(a.err, "%s: warning: %s\n", a.self, text)
	}
	a.record("warning", text)
}

// record appends to the log. A log that cannot be written must not hide the error.
func (a *app) record(level, text string) {
	if a.log == "" {
		return
	}
	f, err := os.OpenFile(a.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_CLOEXEC, 0o644)
	if err != nil {
		fmt.Fprintf(a.err, "%s: --log: %v\n", a.self, err)
		return
	}
	defer f.Close()
	now := time.Now().Format(time.RFC3339)
	if a.logFormat == "json" {
		_ = json.NewEncoder(f).Encode(struct {
			Level string `json:"level"`
			Msg   string `json:"msg"`
			Time  string `json:"time"`
		}{level, text, now})
		return
	}
	fmt.Fprintf(f, "time=%q level=%s msg=%q\n", now, level, text)
}

// engine is the runtime, made once.
func (a *app) engine() (*native.Runtime, error) {
	if a.runtime != nil {
		return a.runtime, nil
	}
	r, err := native.New()
	a.runtime = r
	return r, err
}

// readSpec reads a config.json and checks what the native runtime does not.
func readSpec(path string) (*specs.Spec, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var spec specs.Spec
	if err := json.Unmarshal(b, &spec); err != nil {
		return nil, fmt.Errorf("%s is no OCI runtime spec: %w: %w", path, err, errdefs.ErrInvalidArgument)
	}
	if spec.Linux == nil {
		return nil, fmt.Errorf("%s has no linux section: %w", path, errdefs.ErrInvalidArgument)
	}
	var major, minor, patch int
	if n, _ := fmt.Sscanf(spec.Version, "%d.%d.%d", &major, &minor, &patch); n != 3 || major != 1 {
		return nil, fmt.Errorf("%s: ociVersion %q: this runtime knows 1.x.y: %w", path, spec.Version, errdefs.ErrInvalidArgument)
	}
	return &spec, nil
}

// plan prints the system calls that would make the container of a config.json. It makes nothing.
func plan(a *app, args []string) error {
	set := a.flags("plan")
	if err := a.parse(set, args, true); err != nil {
		return err
	}
	if set.NArg() != 1 {
		return fmt.Errorf("the path of a config.json is wanted: %w", errdefs.ErrInvalidArgument)
	}
	spec, err := readSpec(set.Arg(0))
	if err != nil {
		return err
	}
	if spec.Process == nil {
		return fmt.Errorf("%s has no process: %w", set.Arg(0), errdefs.ErrInvalidArgument)
	}
	r, err := a.engine()
	if err != nil {
		return err
	}
	bundle, err := filepath.Abs(filepath.Dir(set.Arg(0)))
	if err != nil {
		return err
	}
	text, err := r.Plan(native.Config{ID: "plan", Spec: spec, Bundle: bundle})
	if err != nil {
		return err
	}
	_, err = io.WriteString(a.out, text)
	return err
}
