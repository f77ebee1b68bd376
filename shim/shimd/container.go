package shimd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"weak"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/api"
	"github.com/criserver/criserver/shim/keeper"
	"github.com/criserver/criserver/shim/native/cgroup"
	"github.com/criserver/criserver/shim/runc"
)

// state is where a container is. Server.advance changes it:
//
//	starting --> running --> exited
//	    |           |           |
//	    +-----------+-----------+--> deleting --> (forgotten)
//
// A start that fails goes from starting straight to forgotten.
type state int

const (
	starting state = iota
	running
	exited
	deleting
)

// record is <dir>/state.json: what a later shim needs to take a container over, beside what the keeper holds.
type record struct {
	ID         string        `json:"id"`
	PodID      string        `json:"podID,omitempty"`
	PID        int           `json:"pid"`
	PIDStart   uint64        `json:"pidStart"` // field 22 of /proc/PID/stat, against reuse of the number
	StartedAt  int64         `json:"startedAt"`
	Cgroup     string        `json:"cgroup,omitempty"`
	LogPath    string        `json:"logPath,omitempty"`
	LogFormat  api.LogFormat `json:"logFormat,omitempty"`
	Namespaces []string      `json:"podNamespaces,omitempty"`
	Terminal   bool          `json:"terminal,omitempty"`
	Stdin      bool          `json:"stdin,omitempty"`
	Warnings   []string      `json:"warnings,omitempty"`
	Poststop   bool          `json:"poststop,omitempty"`  // hooks are owed while the file of that name is there
	PIDTarget  bool          `json:"pidTarget,omitempty"` // it is in another container's pid namespace
}

const stateFile = "state.json"

// container is one container. What is set before ready is closed does not change after it.
type container struct {
	id  string
	dir string

	birth
	record  record
	cgroup  *cgroup.Cgroup  // nil: the workload is in the shim's own
	binary  *runc.Container // nil: it is of our own runtime
	pidfd   int             // -1: gone for good
	streams []*stream
	log     *logFile // nil: output is thrown away
	held    holding

	specMu sync.Mutex
	spec   weak.Pointer[specs.Spec]

	ended chan struct{} // closed when the exit is known

	deletes chan struct{} // held by the Delete at work, which owns gone
	gone    bool
	puts    chan struct{} // held while the keeper is told of a change of held, so that the last one told is the last one made

	// guarded by Server.mu:
	state   state
	exit    *api.Exit
	exitSeq uint64
	hold    *hold // nil: it is not frozen
}

func newContainer(id, dir string) *container {
	return &container{id: id, dir: dir, pidfd: -1, birth: newBirth(), ended: make(chan struct{}), deletes: make(chan struct{}, 1), puts: make(chan struct{}, 1)}
}

func (c *container) key() string { return "c/" + c.id }

// holding is a set of named descriptors that the keeper holds too. The files own the numbers.
type holding struct {
	mu    sync.Mutex
	names []string
	fds   []int
	files []*os.File
}

// add takes over a file; fd is its descriptor.
func (h *holding) add(name string, fd int, f *os.File) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.names, h.fds, h.files = append(h.names, name), append(h.fds, fd), append(h.files, f)
}

// entry describes the set for the keeper. With a name and fd, that one stands in for the one with this name.
func (h *holding) entry(e keeper.Entry, name string, fd int) keeper.Entry {
	h.mu.Lock()
	defer h.mu.Unlock()
	e.Names = append([]string(nil), h.names...)
	e.FDs = append([]int(nil), h.fds...)
	for i := range e.Names {
		if e.Names[i] == name {
			e.FDs[i] = fd
		}
	}
	return e
}

// replace puts another file in the place of the one with this name, which is closed by its owner.
func (h *holding) replace(name string, fd int, f *os.File) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.names {
		if h.names[i] == name {
			h.fds[i], h.files[i] = fd, f
		}
	}
}

// copy answers with a descriptor of its own for the file with this name, or nil when there is none.
func (h *holding) copy(name string) (*os.File, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.names {
		if h.names[i] != name {
			continue
		}
		fd, err := unix.FcntlInt(uintptr(h.fds[i]), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("copy the descriptor of %s: %w", name, err)
		}
		return os.NewFile(uintptr(fd), name), nil
	}
	return nil, nil
}

// remove takes the file with this name out of the set; it is the caller's then. Nil when there is none.
func (h *holding) remove(name string) *os.File {
	h.mu.Lock()
	defer h.mu.Unlock()
	i := slices.Index(h.names, name)
	if i < 0 {
		return nil
	}
	f := h.files[i]
	h.names, h.fds, h.files = slices.Delete(h.names, i, i+1), slices.Delete(h.fds, i, i+1), slices.Delete(h.files, i, i+1)
	return f
}

// close closes all but the one called except.
func (h *holding) close(except string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, f := range h.files {
		if h.names[i] != except {
			_ = f.Close()
		}
	}
	h.names, h.fds, h.files = nil, nil, nil
}

func (c *container) entry() keeper.Entry {
	return c.held.entry(keeper.Entry{Key: c.key(), PID: c.record.PID, Dir: c.dir}, "", -1)
}

// maxSpec is the largest config.json that is read, in bytes.
const maxSpec = 8 << 20

// loadSpec reads <dir>/config.json, or answers with the copy that the last call left in memory.
func (c *container) loadSpec() (*specs.Spec, error) {
	c.specMu.Lock()
	cached := c.spec.Value()
	c.specMu.Unlock()
	if cached != nil {
		return cached, nil
	}
	var spec specs.Spec
	if err := readJSON(c.dir, "config.json", &spec); err != nil {
		return nil, err
	}
	if spec.Process == nil || spec.Linux == nil {
		return nil, fmt.Errorf("%s/config.json has no process or no linux section: %w", c.dir, errdefs.ErrInvalidArgument)
	}
	if spec.Process.OOMScoreAdj == nil { // the shim's own protection is not for its workloads
		zero := 0
		spec.Process.OOMScoreAdj = &zero
	}
	c.specMu.Lock()
	c.spec = weak.Make(&spec)
	c.specMu.Unlock()
	return &spec, nil
}

// readJSON decodes a file of a container's directory.
func readJSON(dir, name string, v any) error {
	fd, err := unix.Open(filepath.Join(dir, name), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: filepath.Join(dir, name), Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSpec+1))
	if err != nil {
		return fmt.Errorf("%s/%s: %w", dir, name, err)
	}
	if len(b) > maxSpec {
		return fmt.Errorf("%s/%s has more than %d bytes: %w", dir, name, maxSpec, errdefs.ErrInvalidArgument)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s/%s is not valid: %w: %w", dir, name, err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// find answers with a container whose start has succeeded.
func (s *Server) find(ctx context.Context, id string) (*container, error) {
	s.mu.Lock()
	c := s.containers[id]
	s.mu.Unlock()
	if c == nil {
		return nil, fmt.Errorf("container %q is not known to the shim: %w", id, errdefs.ErrNotFound)
	}
	if err := c.wait(ctx); err != nil {
		return nil, err
	}
	if c.failure != nil {
		return nil, fmt.Errorf("container %q did not start: %w", id, errdefs.ErrNotFound)
	}
	return c, nil
}

// advance is the one place where a container's state changes. It reports whether the step is one of the diagram.
func (s *Server) advance(c *container, to state) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if to != c.state+1 && (to != deleting || c.state == deleting) {
		return false
	}
	c.state = to
	return true
}

func (s *Server) stateOf(c *container) state {
	s.mu.Lock()
	defer s.mu.Unlock()
	return c.state
}

// awaits reports whether a process is a container's whose exit is not known yet.
func (s *Server) awaits(pid int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.containers {
		if (c.state == running || c.state == deleting) && c.exit == nil && c.record.PID == pid {
			return true
		}
	}
	return false
}

// forget takes a container off the list.
func (s *Server) forget(c *container) { forget(&s.mu, s.containers, c.id, c) }

// runningPidfd is find for calls that need the process. The descriptor is a copy, the caller's.
func (s *Server) runningPidfd(ctx context.Context, id string) (*container, *os.File, error) {
	c, err := s.find(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	notRunning := fmt.Errorf("container %q does not run: %w", id, errdefs.ErrFailedPrecondition)
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.state != running || c.pidfd < 0 {
		return nil, nil, notRunning
	}
	fd, err := unix.FcntlInt(uintptr(c.pidfd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, nil, errors.Join(notRunning, err)
	}
	return c, os.NewFile(uintptr(fd), "pidfd"), nil
}
