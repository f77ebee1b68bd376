package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/internal/fsx"
	"github.com/criserver/criserver/internal/procstat"
	"github.com/criserver/criserver/shim/native"
	"github.com/criserver/criserver/shim/native/cgroup"
)

// A container's directory, <root>/<id>:
//
//	state.json   the record, written before anything is made and again when the process waits
//	config.json  the spec as create read it: later changes of the bundle do not count
//	start        FIFO: a byte lets the process go; removed then
//	report       FIFO: the call that failed after that
const (
	stateFile  = "state.json"
	configFile = "config.json"
	startFIFO  = "start"
	reportFIFO = "report"
)

// record is state.json.
type record struct {
	Version  string      `json:"ociVersion"`
	ID       string      `json:"id"`
	Bundle   string      `json:"bundle"`
	Rootfs   string      `json:"rootfs"`
	Created  time.Time   `json:"created"`
	Cgroup   string      `json:"cgroup"`
	Pid      int         `json:"pid"`      // 0: it was never made
	PidStart uint64      `json:"pidStart"` // against reuse of the number
	Late     native.Late `json:"late"`
	// Mounts is, for a container without a mount namespace, how many mounts were at its root before it, and one more.
	Mounts int `json:"mounts,omitempty"`
}

// container is one that create has made, or has begun to.
type container struct {
	record
	dir  string
	lock *os.File // held by commands that change something
}

// validID is what a directory can be called.
func validID(id string) error {
	bad := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_+-.", r))
	}
	if id == "" || id == "." || id == ".." || len(id) > 255 || strings.ContainsFunc(id, bad) {
		return fmt.Errorf("container id %q: letters, digits, '_', '+', '-' and '.' are wanted: %w", id, errdefs.ErrInvalidArgument)
	}
	return nil
}

// claim makes the directory of a new container.
func (a *app) claim(id string) (*container, error) {
	if err := validID(id); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(a.root, 0o711); err != nil {
		return nil, err
	}
	c := &container{dir: filepath.Join(a.root, id)}
	if err := os.Mkdir(c.dir, 0o711); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("container with id %s exists already: %w", id, errdefs.ErrAlreadyExists)
		}
		return nil, err
	}
	return c, c.hold()
}

// find reads the record of a container.
func (a *app) find(id string) (*container, error) {
	if err := validID(id); err != nil {
		return nil, err
	}
	c := &container{dir: filepath.Join(a.root, id)}
	b, err := os.ReadFile(filepath.Join(c.dir, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(c.dir); err == nil { // create was killed before it made anything
			c.record = record{ID: id}
			return c, nil
		}
		return nil, fmt.Errorf("container %q does not exist: %w", id, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &c.record); err != nil {
		return nil, fmt.Errorf("%s/%s cannot be read: %w (delete --force removes the container)", c.dir, stateFile, err)
	}
	return c, nil
}

// change is find for commands that change something: one at a time.
func (a *app) change(id string) (*container, error) {
	c, err := a.find(id)
	if err != nil {
		return nil, err
	}
	if err := c.hold(); err != nil {
		return nil, err
	}
	again, err := a.find(id) // what the one before us has left
	if err != nil {
		c.release()
		return nil, err
	}
	again.lock = c.lock
	return again, nil
}

// hold locks the directory until release, or until the program ends.
func (c *container) hold() error {
	f, err := os.Open(c.dir)
	if err != nil {
		return err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		_ = f.Close()
		return fmt.Errorf("lock %s: %w", c.dir, err)
	}
	c.lock = f
	return nil
}

func (c *container) release() {
	if c.lock != nil {
		_ = c.lock.Close()
		c.lock = nil
	}
}

func (c *container) save() error { return fsx.ReplaceJSON(filepath.Join(c.dir, stateFile), c.record) }

func (c *container) spec() (*specs.Spec, error) { return readSpec(filepath.Join(c.dir, configFile)) }

// group is the container's cgroup; nil when it was never made.
func (c *container) group() (*cgroup.Cgroup, error) {
	if c.Cgroup == "" {
		return nil, nil
	}
	return cgroup.New(c.Cgroup, nil)
}

// process opens the container's process. Nil: it has ended.
func (c *container) process() (*os.File, error) {
	if c.Pid == 0 {
		return nil, nil
	}
	fd, err := unix.PidfdOpen(c.Pid, 0)
	if err == unix.ESRCH {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("pidfd of process %d: %w", c.Pid, err)
	}
	// Only after the pidfd is there, what /proc says is of the process that it stands for.
	state, start, err := procStat(c.Pid)
	if err != nil || start != c.PidStart || state == "Z" || state == "X" {
		return nil, unix.Close(fd)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// status finds out where a container is.
//
//	creating --> created --> running <--> paused
//	    |           |           |
//	    +-----------+-----------+--> stopped
func (c *container) status() (specs.ContainerState, error) {
	pidfd, err := c.process()
	if err != nil {
		return "", err
	}
	if pidfd == nil {
		return specs.StateStopped, nil
	}
	defer pidfd.Close()
	if c.waits() {
		return specs.StateCreated, nil
	}
	if g, err := c.group(); err == nil && g != nil && g.Frozen() {
		return "paused", nil
	}
	return specs.StateRunning, nil
}

// waits: the FIFO is there, and the process is the stage still. Who started it may have been killed before it removed the FIFO.
func (c *container) waits() bool {
	if _, err := os.Lstat(filepath.Join(c.dir, startFIFO)); err != nil {
		return false
	}
	program, err := os.Readlink("/proc/" + strconv.Itoa(c.Pid) + "/exe")
	return err == nil && strings.HasPrefix(program, "/memfd:stage")
}

// procStat reads the state and the start time of a process (proc_pid_stat(5), fields 3 and 22).
func procStat(pid int) (state string, start uint64, err error) {
	stat, err := procstat.Read(pid)
	if err != nil {
		return "", 0, err
	}
	start, err = strconv.ParseUint(stat.Field(procstat.Start), 10, 64)
	return stat.Field(procstat.State), start, err
}
