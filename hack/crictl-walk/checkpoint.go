package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// checkpoint is the verb that needs criu, which the machine of the walk does not have: the error must say so.
func (w *walk) checkpoint() []step {
	const want = "checkpoint and restore need criu"
	return []step{{
		text: "## Checkpoint\n\nIt needs criu, which is not on the machine where this page was written.",
		args: func() []string {
			return []string{"checkpoint", "--export", filepath.Join(w.dir, "c.tar"), w.containerID}
		},
		by: &runner{run: failing},
		check: func(answer string) (string, error) {
			if !strings.Contains(answer, want) {
				return "", fmt.Errorf("want an error with %q", want)
			}
			return "... " + want + " ...\n", nil
		},
	}}
}

// failing runs a command that must fail, and answers with what it says.
func failing(_ context.Context, cmd *exec.Cmd) (string, error) {
	out, err := cmd.CombinedOutput()
	if err == nil {
		return "", errors.New("it does not fail")
	}
	return string(out), nil
}
