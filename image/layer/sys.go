package layer

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// retry repeats a call that a signal, or for openat2 a rename elsewhere, interrupted.
func retry(call func() error) error {
	for {
		if err := call(); err != unix.EINTR && err != unix.EAGAIN {
			return err
		}
	}
}

func openBeneath(root int, path string, flags uint64) (fd int, err error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: beneath}
	err = retry(func() error {
		fd, err = unix.Openat2(root, path, &how)
		return err
	})
	return fd, err
}

func openat(dir int, name string, flags int) (fd int, err error) {
	err = retry(func() error {
		fd, err = unix.Openat(dir, name, flags|unix.O_CLOEXEC, 0)
		return err
	})
	return fd, err
}

// reopen gives a second descriptor of a directory.
func reopen(fd int) (int, error) { return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0) }

func readlinkat(dir int, name string) (string, error) {
	buf := make([]byte, maxPath+1)
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// procPath names an entry of an open directory for the calls that take no descriptor. Only the last component is of the
// layer, and those calls do not follow it.
func procPath(dir int, name string) string { return "/proc/self/fd/" + strconv.Itoa(dir) + "/" + name }

func setXattr(dir int, name, attr string, value []byte) error {
	if err := unix.Lsetxattr(procPath(dir, name), attr, value, 0); err != nil {
		return fmt.Errorf("set %s of %q: %w", attr, name, err)
	}
	return nil
}

// isOpaque says whether a directory hides those below it. The descriptor must not be O_PATH.
func isOpaque(fd int) (bool, error) {
	var value [4]byte
	n, err := unix.Fgetxattr(fd, opaqueXattr, value[:])
	switch {
	case errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ERANGE):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("get %s: %w", opaqueXattr, err)
	}
	return n == 1 && value[0] == 'y', nil
}

// utimesFD sets the times of what an O_PATH descriptor means (AT_EMPTY_PATH here needs Linux 5.8).
func utimesFD(fd int, atime, mtime unix.Timespec) error {
	return unix.UtimesNanoAt(fd, "", []unix.Timespec{atime, mtime}, unix.AT_EMPTY_PATH)
}

// removeAll removes name in dir and all beneath it. Layers are at most maxDepth deep, and so is the recursion.
func removeAll(dir int, name string) error {
	err := unix.Unlinkat(dir, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) {
		return err
	}
	if err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err == nil {
		return nil
	}
	names, fd, err := readDir(dir, name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, child := range names {
		if err := removeAll(fd, child); err != nil {
			return err
		}
	}
	return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
}

// readDir lists a directory and leaves it open.
func readDir(dir int, name string) ([]string, int, error) {
	fd, err := openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return nil, -1, err
	}
	second, err := reopen(fd)
	if err != nil {
		unix.Close(fd)
		return nil, -1, err
	}
	f := os.NewFile(uintptr(second), name)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		unix.Close(fd)
		return nil, -1, err
	}
	return names, fd, nil
}

// listXattrs names the extended attributes of a file, links not followed.
func listXattrs(path string) ([]string, error) {
	buf := make([]byte, 64<<10) // XATTR_LIST_MAX
	n, err := unix.Llistxattr(path, buf)
	if errors.Is(err, unix.ENOTSUP) || n <= 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00"), nil
}

func getXattr(path, attr string) ([]byte, error) {
	buf := make([]byte, 64<<10) // XATTR_SIZE_MAX
	n, err := unix.Lgetxattr(path, attr, buf)
	if err != nil {
		return nil, err
	}
	return buf[:n], nil
}
