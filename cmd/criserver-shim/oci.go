package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/shim/native"
)

// ociCommands are the subcommands of "oci".
var ociCommands = map[string]func(args []string, out io.Writer) error{
	"plan": plan,
}

func oci(args []string) int {
	if len(args) == 0 || ociCommands[args[0]] == nil {
		fmt.Fprint(os.Stderr, usage)
		return 2
	}
	if err := ociCommands[args[0]](args[1:], os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "criserver-shim oci %s: %v\n", args[0], err)
		return 1
	}
	return 0
}

// plan prints the system calls that would make the container of a config.json. It makes nothing.
func plan(args []string, out io.Writer) error {
	if len(args) != 1 {
		return errors.New("the path of a config.json is wanted")
	}
	b, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	var spec specs.Spec
	if err := json.Unmarshal(b, &spec); err != nil {
		return fmt.Errorf("%s is no OCI runtime spec: %w", args[0], err)
	}
	if spec.Process == nil || spec.Linux == nil {
		return fmt.Errorf("%s has no process or no linux section", args[0])
	}
	r, err := native.New()
	if err != nil {
		return err
	}
	defer r.Close()
	text, err := r.Plan(native.Config{ID: "plan", Spec: &spec})
	if err != nil {
		return err
	}
	_, err = io.WriteString(out, text)
	return err
}
