package runc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/internal/fsx"
	"github.com/criserver/criserver/shim/native"
)

// recordFile is what a container's directory has of the program that runs it. It is written before anything is made, so
// that whoever finds the directory can undo what was.
const recordFile = "runtime.json"

// Container is a container of a Binary. It may be made again from its directory at any time.
type Container struct {
	binary Binary
	id     string
	dir    string
	mounts string // where its filesystems are mounted; see record
}

// record is what is kept of a container.
type record struct {
	Binary
	// Mounts is a directory for the root and other overlays of a container with a user namespace. The program enters that before it
	// takes the root by its path, which root in there must be able to walk: a bundle is nobody else's. "": in the bundle.
	Mounts string `json:"mounts,omitempty"`
}

// New records that a container is run by b. What an earlier start left is the caller's to clean up first (Load). mounts is for one
// with a user namespace, else empty: a directory to be made, in one that anybody may search.
func New(b Binary, id, dir, mounts string) (*Container, error) {
	if err := b.Check(); err != nil {
		return nil, err
	}
	if mounts != "" && !filepath.IsAbs(mounts) {
		return nil, fmt.Errorf("directory of mounts %q must be absolute: %w", mounts, errdefs.ErrInvalidArgument)
	}
	if err := os.MkdirAll(b.Root, 0o711); err != nil {
		return nil, fmt.Errorf("state directory of %s: %w", b.name(), err)
	}
	return &Container{b, id, dir, mounts}, fsx.ReplaceJSON(filepath.Join(dir, recordFile), record{b, mounts})
}

// Load finds the program that runs the container of a directory. It is nil for one that none runs.
func Load(id, dir string) (*Container, error) {
	var r record
	err := fsx.ReadJSON(filepath.Join(dir, recordFile), &r)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = r.Check()
	}
	if err != nil {
		return nil, err
	}
	return &Container{r.Binary, id, dir, r.Mounts}, nil
}

func (c *Container) bundle() string { return filepath.Join(c.dir, bundleDir) }

// Process is a process that a program made. The caller owns the files and reaps it: it is a child of ours when we were
// a child subreaper while the program ran.
type Process struct {
	PID      int
	Pidfd    *os.File
	Console  *os.File // the master side, non-blocking; nil without a terminal
	Warnings []string
}

// Create makes a container whose process waits for Start. sockets is a directory with a short name. When it fails,
// Cleanup removes what is left.
func (c *Container) Create(ctx context.Context, rt Attacher, config native.Config, sockets string) (*Process, error) {
	bundle, b := c.bundle(), c.plan(config)
	if err := b.mkdirs(); err != nil {
		return nil, err
	}
	text, err := json.Marshal(b.spec(config, os.Getpid()))
	if err != nil {
		return nil, fmt.Errorf("encode the OCI spec: %w", err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), text, 0o600); err != nil {
		return nil, err
	}
	if config.Rootfs != nil || config.Shm != nil {
		if err := rt.Attach(ctx, b.attachment(config)); err != nil {
			return nil, err
		}
	}
	p, err := c.launch(ctx, launch{
		command: []string{"create", "--bundle", bundle}, dir: bundle, sockets: sockets, terminal: config.Spec.Process.Terminal,
		stdio: stdio{config.Stdin, config.Stdout, config.Stderr},
	})
	// The container has a mount of its own.
	return p, errors.Join(err, unmount(filepath.Join(bundle, shmName)))
}

// Attacher makes mounts. *native.Runtime is the one.
type Attacher interface {
	Attach(context.Context, native.Attachment) error
}

// Start lets the process go.
func (c *Container) Start(ctx context.Context) error {
	_, err := c.binary.run(ctx, c.bundle(), stdio{}, "start", c.id)
	return err
}

// Exec runs a further process in the container. When it returns without an error, the program runs.
func (c *Container) Exec(ctx context.Context, config native.ExecConfig, sockets string) (*Process, error) {
	dir, err := os.MkdirTemp(c.bundle(), "exec-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	text, err := json.Marshal(config.Process)
	if err != nil {
		return nil, fmt.Errorf("encode the process: %w", err)
	}
	file := filepath.Join(dir, "process.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return nil, err
	}
	return c.launch(ctx, launch{
		command: []string{"exec", "--detach", "--process", file}, dir: dir, sockets: sockets, terminal: config.Process.Terminal,
		stdio: stdio{config.Stdin, config.Stdout, config.Stderr},
	})
}

// launch is a command that makes a process.
type launch struct {
	command  []string
	dir      string
	sockets  string
	terminal bool
	stdio    stdio
}

// launch runs the command and takes hold of what it has made.
func (c *Container) launch(ctx context.Context, l launch) (*Process, error) {
	p := &Process{}
	pidFile := filepath.Join(l.dir, pidName)
	args := append(l.command, "--pid-file", pidFile)
	var console *consoleSocket
	if l.terminal {
		var err error
		if console, err = listenConsole(l.sockets); err != nil {
			return nil, err
		}
		defer console.close()
		args = append(args, "--console-socket", console.path)
		l.stdio = stdio{}
	}
	var err error
	p.Warnings, err = c.binary.run(ctx, l.dir, l.stdio, append(args, c.id)...)
	if err != nil {
		kill(pidFile)
		return nil, err
	}
	if p.PID, err = readPID(pidFile); err != nil {
		return nil, fmt.Errorf("%s %s: %w", c.binary.name(), l.command[0], err)
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		return nil, fmt.Errorf("pidfd of process %d: %w", p.PID, err)
	}
	p.Pidfd = os.NewFile(uintptr(fd), "pidfd")
	if console != nil {
		if p.Console, err = console.receive(); err != nil {
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
			native.End(p.Pidfd)
			return nil, fmt.Errorf("%s %s: its terminal: %w", c.binary.name(), l.command[0], err)
		}
	}
	return p, nil
}

// kill ends the process that a command has made which failed, or was killed, after that.
func kill(pidFile string) {
	pid, err := readPID(pidFile)
	if err != nil {
		return
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	// The program may have reaped it: what has the number now is not our child.
	if unix.Waitid(unix.P_PIDFD, fd, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil) != nil {
		_ = f.Close()
		return
	}
	native.End(f)
}

func readPID(file string) (int, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid < 2 {
		return 0, fmt.Errorf("%s has %q, which is no pid", file, text)
	}
	return pid, nil
}

// Cleanup removes all that is left of a container whose processes have ended: the program's state of it, and the
// mounts. It may be repeated. A program that is gone meanwhile is done without.
func (c *Container) Cleanup(ctx context.Context) error {
	var errs []error
	state := filepath.Join(c.binary.Root, c.id)
	if _, err := os.Lstat(state); err == nil {
		errs = append(errs, c.delete(ctx, state))
	}
	errs = append(errs, removeMounts(c.bundle(), []string{rootfsName, shmName}))
	if c.mounts != "" {
		errs = append(errs, removeMountsIn(c.mounts))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(c.dir, recordFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// delete has the program forget a container. Without force it is quicker, and refused when the program is in doubt.
func (c *Container) delete(ctx context.Context, state string) error {
	dir := c.bundle()
	if _, err := os.Lstat(dir); err != nil {
		dir = c.dir
	}
	_, err := c.binary.run(ctx, dir, stdio{}, "delete", c.id)
	if err != nil && ctx.Err() == nil {
		_, err = c.binary.run(ctx, dir, stdio{}, "delete", "--force", c.id)
	}
	if errdefs.IsFailedPrecondition(err) { // the program cannot be run, and its processes have ended
		err = nil
	}
	if err != nil {
		return err
	}
	return os.RemoveAll(state)
}
