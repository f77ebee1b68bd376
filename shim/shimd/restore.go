package shimd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/api"
	"github.com/criserver/criserver/shim/criu"
	"github.com/criserver/criserver/shim/keeper"
	"github.com/criserver/criserver/shim/native"
)

// restoreLimit bounds a start from a checkpoint, whose memory has to be read.
const restoreLimit = 150 * time.Second

// restore has criu make a container's processes from their images. The keeper knows of the container before, so that a
// restore that is cut short is ended with all that is in the container's cgroup.
func (s *Server) restore(ctx context.Context, c *container, r *api.StartRequest, config native.Config) (*process, error) {
	if c.cgroup == nil || c.record.Terminal {
		return nil, fmt.Errorf("a container without a cgroup of its own, or with a terminal, cannot be restored: %w", errdefs.ErrFailedPrecondition)
	}
	if hooksOfStart(config.Spec) {
		return nil, fmt.Errorf("a container with OCI hooks cannot be restored: %w", errdefs.ErrFailedPrecondition)
	}
	descriptors, err := criu.Read(r.Restore.Images)
	if err != nil {
		return nil, err
	}
	if err := s.link.put(c.entry()); err != nil {
		return nil, err
	}
	shm := filepath.Join(r.Restore.Work, "shm")
	if err := os.Mkdir(shm, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	opened := &openedSources{}
	defer opened.close()
	restore := &criu.Restore{
		Images: r.Restore.Images, Work: r.Restore.Work, Descriptors: descriptors,
		Joined: map[string]string{}, Streams: map[string]int{},
		Sources: criu.Sources{Spec: config.Spec, Cgroup: native.CgroupMounts(config), Beneath: opened.beneath},
	}
	if config.Shm != nil {
		restore.Sources.Shm = shm
	}
	for name, kind := range namespaceOf {
		if f := config.Namespaces[kind]; f != nil {
			restore.Joined[name] = "/proc/" + strconv.Itoa(os.Getpid()) + "/fd/" + strconv.Itoa(int(f.Fd()))
		}
	}
	files, close, err := restoredFiles(config)
	defer close()
	if err != nil {
		return nil, err
	}
	n := native.RestoreConfig{Config: config, Program: r.Restore.Criu, ShmPlace: shm}
	for _, f := range files {
		n.Files = append(n.Files, f.file)
	}
	n.Args = func(root string, first int) ([]string, error) {
		restore.Root = root
		for i, f := range files {
			if f.name == netName {
				restore.Network = first + i
			} else {
				restore.Streams[f.name] = first + i
			}
		}
		return restore.Args()
	}
	p, err := s.runRestore(ctx, c, r, n)
	if err != nil {
		s.endRestore(c)
		return nil, err
	}
	return p, nil
}

func (h handler) restore(context.Context, native.RestoreConfig) (*process, error) {
	return nil, fmt.Errorf("only the native runtime restores checkpoints: use its handler: %w", errdefs.ErrFailedPrecondition)
}

// openedSources are places beneath mounts' sources that criu is told by descriptors of ours.
type openedSources struct{ fds []int }

func (o *openedSources) beneath(source, rest string) (string, error) {
	dir, err := unix.Open(source, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: source, Err: err}
	}
	defer unix.Close(dir)
	fd, err := unix.Openat2(dir, rest, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return "", fmt.Errorf("%w: %w", &os.PathError{Op: "open", Path: filepath.Join(source, rest), Err: err}, errdefs.ErrFailedPrecondition)
	}
	o.fds = append(o.fds, fd)
	return "/proc/" + strconv.Itoa(os.Getpid()) + "/fd/" + strconv.Itoa(fd), nil
}

func (o *openedSources) close() {
	for _, fd := range o.fds {
		_ = unix.Close(fd)
	}
}

// netName is the network namespace among the files for criu.
const netName = "network"

type namedFile struct {
	name string
	file *os.File
}

// restoredFiles are the descriptors that criu gives to the processes it makes.
func restoredFiles(config native.Config) (files []namedFile, done func(), err error) {
	var own []*os.File
	done = func() {
		for _, f := range own {
			_ = f.Close()
		}
	}
	open := func(name, path string, flags int) {
		f, openErr := os.OpenFile(path, flags, 0)
		if openErr != nil {
			err = errors.Join(err, openErr)
			return
		}
		own = append(own, f)
		files = append(files, namedFile{name, f})
	}
	for name, f := range map[string]*os.File{criu.Stdin: config.Stdin, criu.Stdout: config.Stdout, criu.Stderr: config.Stderr} {
		if f != nil {
			files = append(files, namedFile{name, f})
		}
	}
	open(criu.Null, os.DevNull, os.O_RDWR)
	for _, n := range config.Spec.Linux.Namespaces {
		if n.Type != specs.NetworkNamespace {
			continue
		}
		if n.Path == "" {
			return files, done, fmt.Errorf("linux.namespaces network: only one with a path can be restored into: %w", errdefs.ErrFailedPrecondition)
		}
		open(netName, n.Path, os.O_RDONLY)
	}
	return files, done, err
}

// runRestore runs criu and finds the process that it has made.
func (s *Server) runRestore(ctx context.Context, c *container, r *api.StartRequest, n native.RestoreConfig) (*process, error) {
	run, err := s.runtimeOf(c).restore(ctx, n)
	if err != nil {
		return nil, err
	}
	if n.Shm != nil && r.Restore.Shm != "" {
		if err := s.fillShm(ctx, c.record.PodID, run.pid, n.ShmPlace, r.Restore.Shm); err != nil {
			run.abandon()
			return nil, err
		}
	}
	if err := run.start(ctx); err != nil {
		return nil, err
	}
	code, err := awaitChild(ctx, run.pidfd)
	if err != nil {
		return nil, err
	}
	if code != 0 {
		return nil, criuError("exit status "+strconv.Itoa(code), filepath.Join(r.Restore.Work, criu.LogRestore))
	}
	text, err := os.ReadFile(filepath.Join(r.Restore.Work, criu.PIDFile))
	if err != nil {
		return nil, fmt.Errorf("criu has not said which process it made: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 0 {
		return nil, fmt.Errorf("criu says that it made process %q", text)
	}
	// It is our child and not reaped, so the number cannot be another's.
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("pidfd of process %d: %w", pid, err)
	}
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	if _, err := keeper.Wait(unix.P_PIDFD, fd, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT); err != nil {
		_ = pidfd.Close()
		return nil, fmt.Errorf("process %d that criu made is not a child of the shim: %w", pid, err)
	}
	return &process{
		pid: pid, pidfd: pidfd, start: func(context.Context) error { return nil }, abandon: func() { native.End(pidfd) },
	}, nil
}

// awaitChild waits for the end of a child and reaps it; it is killed when the context ends first.
func awaitChild(ctx context.Context, pidfd *os.File) (code int, err error) {
	fd := int(pidfd.Fd())
	for pause := time.Millisecond; !hasEnded(fd, 0); pause = min(2*pause, 20*time.Millisecond) {
		select {
		case <-ctx.Done():
			native.End(pidfd)
			return 0, fmt.Errorf("criu does not end: %w", ctx.Err())
		case <-time.After(pause):
		}
	}
	code, known := peek(fd)
	if !known {
		code = unknownCode
	}
	reap(fd)
	_ = pidfd.Close()
	return code, nil
}

// endRestore ends what a failed restore has made. The root process may be a child of ours that nobody knows.
func (s *Server) endRestore(c *container) {
	ctx, cancel := context.WithTimeout(context.Background(), thawLimit)
	defer cancel()
	if err := c.cgroup.Kill(ctx); err != nil {
		s.note.Error("what a restore has made is not ended", "container", c.id, "error", err)
	}
	for pid, fd := range zombies(os.Getpid()) {
		if c.cgroup.Contains(pid) {
			reap(fd)
		}
		_ = unix.Close(fd)
	}
}
