// Package bounded runs programs that the operator names, with a bound on what they may print; the context bounds their time.
package bounded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// pipeDelay is how long after a program's end its output may be held open by what it started.
const pipeDelay = time.Second

// Command is what to run.
type Command struct {
	Path  string
	Args  []string // without the program's own name
	Stdin []byte
	// MaxOutput is how many bytes of each of standard output and error are kept; the rest is read and dropped.
	MaxOutput int
}

// Output is what became of a program that ran to its end.
type Output struct {
	Code           int // of its exit; 128 + N after signal N
	Stdout, Stderr []byte
	// Cut says that it printed more than was kept.
	Cut bool
}

// Run runs a program to its end. When the context ends it is killed with all that it started in its process group, and the error
// is the context's cause. An exit code is no error.
func Run(ctx context.Context, c Command) (Output, error) {
	cmd := exec.CommandContext(ctx, c.Path, c.Args...)
	cmd.Dir = "/"
	cmd.Stdin = bytes.NewReader(c.Stdin)
	stdout, stderr := &head{max: c.MaxOutput}, &head{max: c.MaxOutput}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.WaitDelay = pipeDelay
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	err := cmd.Run()
	if ctx.Err() != nil {
		return Output{}, context.Cause(ctx)
	}
	out := Output{Stdout: stdout.data, Stderr: stderr.data, Cut: stdout.cut || stderr.cut}
	if cmd.ProcessState == nil {
		return Output{}, fmt.Errorf("run %s: %w", c.Path, err)
	}
	// Whatever else went wrong, a program that does not read its input to the end for example, it ended, and with that code.
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if out.Code = status.ExitStatus(); status.Signaled() {
		out.Code = 128 + int(status.Signal())
	}
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) && !errors.Is(err, unix.EPIPE) {
		return Output{}, fmt.Errorf("run %s: %w", c.Path, err)
	}
	return out, nil
}

// head keeps the beginning of what is written.
type head struct {
	max  int
	data []byte
	cut  bool
}

// Write implements io.Writer.
func (h *head) Write(p []byte) (int, error) {
	room := h.max - len(h.data)
	h.data = append(h.data, p[:min(room, len(p))]...)
	h.cut = h.cut || len(p) > room
	return len(p), nil
}
