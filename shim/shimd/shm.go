package shimd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/criu"
)

// packShm writes the shared memory of a frozen container's pod to a file.
func packShm(pid int, to string) error {
	root, err := openShm(pid, "dev/shm")
	if err != nil {
		return err
	}
	defer root.Close()
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(criu.PackShm(root, f), f.Close())
}

// fillShm fills a pod's shared memory, where a process that we have made finds it, with what a checkpoint has of it. One
// at a time of the pod's containers does it.
func (s *Server) fillShm(ctx context.Context, podID string, pid int, place, from string) error {
	s.mu.Lock()
	p := s.pods[podID]
	s.mu.Unlock()
	if p == nil {
		return fmt.Errorf("pod %q is not known to the shim: %w", podID, errdefs.ErrNotFound)
	}
	select {
	case p.stops <- struct{}{}:
		defer func() { <-p.stops }()
	case <-ctx.Done():
		return ctx.Err()
	}
	root, err := openShm(pid, place[1:])
	if err != nil {
		return err
	}
	defer root.Close()
	f, err := os.OpenFile(from, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return errors.Join(err, fmt.Errorf("%s is not a regular file: %w", from, errdefs.ErrInvalidArgument))
	}
	return criu.UnpackShm(root, f)
}

// openShm opens a directory of shared memory in another process's mount namespace. It is sure to be a tmpfs, whatever that
// process has put in its place.
func openShm(pid int, place string) (*os.Root, error) {
	proc := "/proc/" + strconv.Itoa(pid) + "/root"
	dir, err := unix.Open(proc, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: proc, Err: err}
	}
	defer unix.Close(dir)
	how := &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	fd, err := unix.Openat2(dir, place, how)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: filepath.Join(proc, place), Err: err}
	}
	defer unix.Close(fd)
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return nil, err
	}
	if st.Type != unix.TMPFS_MAGIC {
		return nil, fmt.Errorf("%s of process %d is not a tmpfs: %w", place, pid, errdefs.ErrFailedPrecondition)
	}
	return os.OpenRoot("/proc/self/fd/" + strconv.Itoa(fd))
}
