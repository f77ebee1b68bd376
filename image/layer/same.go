package layer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Difference compares two layer directories, by all that overlayfs shows of them: names, types, modes, owners, times of change,
// device numbers, links, extended attributes and content. It answers the first difference that it finds, "" when there is
// none. Nobody may change the directories meanwhile.
func Difference(ctx context.Context, a, b *os.File) (string, error) {
	c := &comparer{ctx: ctx, links: map[inode]inode{}}
	for i := range c.buffers {
		c.buffers[i] = make([]byte, bufferSize)
	}
	err := c.directory(int(a.Fd()), int(b.Fd()), ".", "")
	var found difference
	if errors.As(err, &found) {
		return string(found), nil
	}
	if err != nil {
		return "", fmt.Errorf("compare layers: %w", err)
	}
	return "", nil
}

// difference ends a comparison.
type difference string

func (d difference) Error() string { return string(d) }

func differs(path, format string, args ...any) error {
	return difference(fmt.Sprintf("/%s: ", path) + fmt.Sprintf(format, args...))
}

type comparer struct {
	ctx     context.Context
	links   map[inode]inode // files with several names there, and what they are here
	buffers [2][]byte
}

// directory compares what two directories hold, and of the root itself, too.
func (c *comparer) directory(a, b int, name, path string) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	names, fd, err := readDir(a, name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	others, other, err := readDir(b, name)
	if err != nil {
		return err
	}
	defer unix.Close(other)
	slices.Sort(names)
	slices.Sort(others)
	for i := range max(len(names), len(others)) {
		switch {
		case i >= len(names) || i < len(others) && names[i] > others[i]:
			return differs(joinPath(path, others[i]), "it is missing")
		case i >= len(others) || names[i] < others[i]:
			return differs(joinPath(path, names[i]), "it does not belong there")
		}
		if err := c.entry(fd, other, names[i], joinPath(path, names[i])); err != nil {
			return err
		}
	}
	if path != "" {
		return nil
	}
	here, there, err := statBoth(a, b, ".")
	if err != nil {
		return err
	}
	return c.attributes(a, b, ".", path, here, there)
}

// statBoth is what a name is in two directories.
func statBoth(a, b int, name string) (one, other *unix.Stat_t, err error) {
	one, other = new(unix.Stat_t), new(unix.Stat_t)
	if err = unix.Fstatat(a, name, one, unix.AT_SYMLINK_NOFOLLOW); err == nil {
		err = unix.Fstatat(b, name, other, unix.AT_SYMLINK_NOFOLLOW)
	}
	return one, other, err
}

// entry compares what a name is. A directory's own times say little once what is in it differs, so they come last.
func (c *comparer) entry(a, b int, name, path string) error {
	one, other, err := statBoth(a, b, name)
	if err != nil {
		return err
	}
	if one.Mode&unix.S_IFMT == unix.S_IFDIR && other.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := c.directory(a, b, name, path); err != nil {
			return err
		}
		return c.attributes(a, b, name, path, one, other)
	}
	if err := c.attributes(a, b, name, path, one, other); err != nil {
		return err
	}
	switch one.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return c.content(a, b, name, path)
	case unix.S_IFLNK:
		target, err := readlinkat(a, name)
		if err != nil {
			return err
		}
		right, err := readlinkat(b, name)
		if err == nil && target != right {
			return differs(path, "it links to %q, not %q", target, right)
		}
		return err
	}
	return nil
}

// attributes compares what stat and the extended attributes say.
func (c *comparer) attributes(a, b int, name, path string, one, other *unix.Stat_t) error {
	isDir := one.Mode&unix.S_IFMT == unix.S_IFDIR
	switch {
	case one.Mode != other.Mode:
		return differs(path, "its type and mode are %o, not %o", one.Mode, other.Mode)
	case one.Uid != other.Uid || one.Gid != other.Gid:
		return differs(path, "its owner is %d:%d, not %d:%d", one.Uid, one.Gid, other.Uid, other.Gid)
	case one.Rdev != other.Rdev:
		return differs(path, "its device number is %#x, not %#x", one.Rdev, other.Rdev)
	case !isDir && one.Size != other.Size:
		return differs(path, "it has %d bytes, not %d", one.Size, other.Size)
	case !isDir && one.Nlink != other.Nlink:
		return differs(path, "it has %d names, not %d", one.Nlink, other.Nlink)
	case one.Mtim != other.Mtim && !isWhiteout(one):
		return differs(path, "its time of change differs")
	}
	if !isDir && one.Nlink > 1 {
		key, now := inode{other.Dev, other.Ino}, inode{one.Dev, one.Ino}
		if known, ok := c.links[key]; ok && known != now {
			return differs(path, "it is not linked to the file that it should be")
		}
		c.links[key] = now
	}
	return c.xattrs(procPath(a, name), procPath(b, name), path)
}

func (c *comparer) xattrs(a, b, path string) error {
	one, err := readXattrs(a)
	if err != nil {
		return err
	}
	other, err := readXattrs(b)
	if err != nil {
		return err
	}
	for attr, value := range other {
		if got, ok := one[attr]; !ok || !bytes.Equal(got, value) {
			return differs(path, "its attribute %s differs", attr)
		}
	}
	for attr := range one {
		if _, ok := other[attr]; !ok {
			return differs(path, "it has the attribute %s, which it should not have", attr)
		}
	}
	return nil
}

// readXattrs reads all but what security modules put there by themselves.
func readXattrs(path string) (map[string][]byte, error) {
	names, err := listXattrs(path)
	if err != nil || len(names) == 0 {
		return nil, err
	}
	all := map[string][]byte{}
	for _, name := range names {
		if dropXattr(name) && name != opaqueXattr {
			continue
		}
		if all[name], err = getXattr(path, name); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// content compares files of one size.
func (c *comparer) content(a, b int, name, path string) error {
	var files [2]*os.File
	for i, dir := range []int{a, b} {
		fd, err := openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOATIME)
		if err != nil {
			return err
		}
		files[i] = os.NewFile(uintptr(fd), name)
		defer files[i].Close()
	}
	for {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(files[0], c.buffers[0])
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return differs(path, "it cannot be read: %v", err)
		}
		m, other := io.ReadFull(files[1], c.buffers[1])
		if other != nil && other != io.EOF && other != io.ErrUnexpectedEOF {
			return other
		}
		if !bytes.Equal(c.buffers[0][:n], c.buffers[1][:m]) {
			return differs(path, "its content differs")
		}
		if err != nil {
			return nil
		}
	}
}
