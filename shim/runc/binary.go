// Package runc runs containers by a program that has runc's command line: runc, crun, youki. The program makes a
// container, starts it, and is gone; what it made is the shim's child, as a container of our own runtime is, and everything
// else (output, exit, signals, limits) is done as for those.
package runc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Binary is a program and how it is called.
type Binary struct {
	Path          string   `json:"path"`
	Root          string   `json:"root"` // where it keeps its state of containers (--root)
	SystemdCgroup bool     `json:"systemdCgroup,omitempty"`
	Args          []string `json:"args,omitempty"` // further arguments before the command
}

// Check says whether the binary can be called.
func (b Binary) Check() error {
	if !filepath.IsAbs(b.Path) || !filepath.IsAbs(b.Root) {
		return fmt.Errorf("runtime: path %q and root %q must be absolute: %w", b.Path, b.Root, errdefs.ErrInvalidArgument)
	}
	return nil
}

func (b Binary) name() string { return filepath.Base(b.Path) }

// stdio are the standard streams of a command, and with that of the process that it makes; nil is /dev/null.
type stdio struct{ in, out, err *os.File }

// maxLog is how much is read of what a command has logged, in bytes.
const maxLog = 64 << 10

// run runs one command to its end and answers with its warnings. dir is where its log is kept meanwhile. When ctx ends, or
// the shim dies, the program is killed.
func (b Binary) run(ctx context.Context, dir string, s stdio, args ...string) (warnings []string, err error) {
	log, err := os.CreateTemp(dir, "log-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(log.Name())
	defer log.Close()
	global := append([]string{"--root", b.Root, "--log", log.Name(), "--log-format", "json"}, b.Args...)
	if b.SystemdCgroup {
		global = append(global, "--systemd-cgroup")
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	cmd := exec.Command(b.Path, append(global, args...)...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	for _, f := range []struct {
		file *os.File
		to   func(*os.File)
	}{{s.in, func(f *os.File) { cmd.Stdin = f }}, {s.out, func(f *os.File) { cmd.Stdout = f }}, {s.err, func(f *os.File) { cmd.Stderr = f }}} {
		if f.file != nil { // an interface with a nil file in it is not nil
			f.to(f.file)
		}
	}
	err = runToEnd(ctx, cmd)
	text, _ := io.ReadAll(io.LimitReader(log, maxLog))
	warnings, message := parseLog(text)
	switch {
	case err == nil:
		return warnings, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, os.ErrNotExist), errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("runtime %s cannot be run: %w: install it, or name another in the configuration: %w", b.Path, err, errdefs.ErrFailedPrecondition)
	}
	command := args[0]
	if message == "" {
		return nil, fmt.Errorf("%s %s: %w, and it does not say why", b.name(), command, err)
	}
	return nil, explain(b.name()+" "+command, message)
}

// runToEnd runs a program. When ctx ends it is ended with all that it has made.
func runToEnd(ctx context.Context, cmd *exec.Cmd) error {
	// The signal comes when the thread that forked ends, not the process, so it must be one that lives on.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pidfd := -1
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, PidFD: &pidfd}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer unix.Close(pidfd)
	f := &family{pid: cmd.Process.Pid, pidfd: pidfd}
	killed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(killed)
		f.kill()
	})
	err := cmd.Wait()
	if !stop() {
		<-killed
		f.reap()
	}
	return err
}

// logLine is what is read of a line of a log in JSON, as runc and crun write it.
type logLine struct {
	Level   string `json:"level"`
	Message string `json:"msg"`
}

// parseLog finds the warnings and the last error of a log. What is no JSON is taken for an error, as it is.
func parseLog(text []byte) (warnings []string, message string) {
	for line := range bytes.Lines(text) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			continue
		}
		var l logLine
		if json.Unmarshal(line, &l) != nil {
			l = logLine{Level: "error", Message: strings.ToValidUTF8(string(line), "?")}
		}
		switch l.Level {
		case "warning", "warn":
			warnings = append(warnings, l.Message)
		case "error", "fatal", "panic":
			message = l.Message
		}
	}
	return warnings, strings.TrimSpace(message)
}

// notFound are the words in which the programs say that the command of a container, or of an exec, is not in it.
var notFound = []string{"executable file not found", "executable file `", "no such file or directory", "No such file or directory"}

// explain makes an error of what a program says. A command that the container does not have is told apart, because
// that is its user's mistake and not the node's.
func explain(what, message string) error {
	if i := strings.Index(message, "exec: \""); i >= 0 && containsAny(message[i:], notFound) {
		return fmt.Errorf("%s: %w", message[i:], errdefs.ErrNotFound)
	}
	if i := strings.Index(message, "executable file `"); i >= 0 {
		return fmt.Errorf("exec: %s: %w", message[i:], errdefs.ErrNotFound)
	}
	return fmt.Errorf("%s: %s", what, message)
}

func containsAny(s string, words []string) bool {
	for _, w := range words {
		if strings.Contains(s, w) {
			return true
		}
	}
	return false
}
