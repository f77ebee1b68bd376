package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// report is what state and list print of a container.
type report struct {
	Version     string               `json:"ociVersion"`
	ID          string               `json:"id"`
	Pid         int                  `json:"pid"`
	Status      specs.ContainerState `json:"status"`
	Bundle      string               `json:"bundle"`
	Rootfs      string               `json:"rootfs"`
	Created     time.Time            `json:"created"`
	Annotations map[string]string    `json:"annotations,omitempty"`
	Owner       string               `json:"owner"`
}

func (a *app) describe(id string) (report, error) {
	c, err := a.find(id)
	if err != nil {
		return report{}, err
	}
	r := report{Version: c.Version, ID: c.ID, Pid: c.Pid, Bundle: c.Bundle, Rootfs: c.Rootfs, Created: c.Created}
	if r.Status, err = c.status(); err != nil {
		return r, err
	}
	if r.Status == specs.StateStopped {
		r.Pid = 0
	}
	if spec, err := c.spec(); err == nil {
		r.Annotations = spec.Annotations
	}
	return r, nil
}

func state(a *app, args []string) error {
	id, err := a.id(a.flags("state"), args)
	if err != nil {
		return err
	}
	r, err := a.describe(id)
	if err != nil {
		return err
	}
	return a.printJSON(r)
}

func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func list(a *app, args []string) error {
	set := a.flags("list")
	format := set.String("format", "table", "table or json")
	set.StringVar(format, "f", "table", "")
	quiet := set.Bool("quiet", false, "ids only")
	set.BoolVar(quiet, "q", false, "")
	if err := a.parse(set, args, true); err != nil {
		return err
	}
	entries, err := os.ReadDir(a.root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	all := []report{}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		r, err := a.describe(e.Name())
		if errdefs.IsNotFound(err) { // deleted meanwhile
			continue
		}
		if err != nil {
			a.warn(err.Error())
			continue
		}
		all = append(all, r)
	}
	switch {
	case *quiet:
		for _, r := range all {
			fmt.Fprintln(a.out, r.ID)
		}
		return nil
	case *format == "json":
		return json.NewEncoder(a.out).Encode(all)
	case *format != "table":
		return fmt.Errorf("--format %q: table and json are known: %w", *format, errdefs.ErrInvalidArgument)
	}
	w := tabwriter.NewWriter(a.out, 12, 1, 3, ' ', 0)
	fmt.Fprint(w, "ID\tPID\tSTATUS\tBUNDLE\tCREATED\tOWNER\n")
	for _, r := range all {
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\troot\n", r.ID, r.Pid, r.Status, r.Bundle, r.Created.Format(time.RFC3339Nano))
	}
	return w.Flush()
}

func ps(a *app, args []string) error {
	set := a.flags("ps")
	format := set.String("format", "table", "table or json")
	set.StringVar(format, "f", "table", "")
	if err := a.parse(set, args, false); err != nil {
		return err
	}
	if set.NArg() == 0 {
		return fmt.Errorf("the id of a container is wanted: %w", errdefs.ErrInvalidArgument)
	}
	c, err := a.find(set.Arg(0))
	if err != nil {
		return err
	}
	g, err := c.group()
	if err != nil {
		return err
	}
	pids := []int{}
	if g != nil {
		found, err := g.Pids()
		if err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		pids = append(pids, found...)
	}
	switch *format {
	case "json":
		return json.NewEncoder(a.out).Encode(pids)
	case "table":
		return a.psTable(pids, set.Args()[1:])
	}
	return fmt.Errorf("--format %q: table and json are known: %w", *format, errdefs.ErrInvalidArgument)
}

// psTable has the system's ps print, and leaves out the lines of other processes.
func (a *app) psTable(pids []int, options []string) error {
	if len(options) == 0 {
		options = []string{"-ef"}
	}
	out, err := exec.CommandContext(a.ctx, "ps", options...).Output()
	if err != nil {
		return fmt.Errorf("ps %s: %w", strings.Join(options, " "), err)
	}
	lines := strings.Split(strings.TrimRight(string(out), "\n"), "\n")
	column := slices.Index(strings.Fields(lines[0]), "PID")
	if column < 0 {
		return fmt.Errorf("ps %s prints no PID column: %w", strings.Join(options, " "), errdefs.ErrInvalidArgument)
	}
	fmt.Fprintln(a.out, lines[0])
	for _, line := range lines[1:] {
		fields := strings.Fields(line)
		if len(fields) <= column {
			continue
		}
		if pid, err := strconv.Atoi(fields[column]); err == nil && slices.Contains(pids, pid) {
			fmt.Fprintln(a.out, line)
		}
	}
	return nil
}
