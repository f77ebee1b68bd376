package layer

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"
)

// ReadFile reads the regular file path, of at most limit bytes, from a stack of layer directories, uppermost first, as
// an overlay of them would show it: whiteouts and opaque directories count, symbolic links are followed beneath the merged
// root and never leave it. fs.ErrNotExist when there is no regular file of that name; errdefs.ErrResourceExhausted when
// it is larger than limit.
func ReadFile(dirs []string, path string, limit int64) ([]byte, error) {
	s, err := openStack(dirs)
	if err != nil {
		return nil, err
	}
	defer s.close()
	c := s.cursor()
	defer c.close()
	e, err := c.resolve(path, true)
	if err == nil {
		var data []byte
		if data, err = e.read(limit); err == nil {
			return data, nil
		}
	}
	return nil, fmt.Errorf("read %q of the image: %w", path, err)
}

// stack shows layer directories as an overlay of them does.
type stack struct{ roots []int }

// openStack opens the directories, uppermost first, down to the first that hides all below it.
func openStack(dirs []string) (*stack, error) {
	s := &stack{}
	for _, dir := range dirs {
		fd, err := openat(unix.AT_FDCWD, dir, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			s.close()
			return nil, fmt.Errorf("open layer %s: %w", dir, err)
		}
		s.roots = append(s.roots, fd)
		last, err := isOpaque(fd)
		if err != nil {
			s.close()
			return nil, fmt.Errorf("layer %s: %w", dir, err)
		}
		if last {
			break
		}
	}
	return s, nil
}

func (s *stack) close() { closeAll(s.roots) }

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// element is what a name means in a merged directory. The zero element is nothing.
type element struct {
	found bool
	st    unix.Stat_t
	name  string
	dir   int   // the directory, of the uppermost layer that has the name, in which it is
	dirs  []int // for a directory: its parts, uppermost first
}

func (e *element) is(format uint32) bool { return e.found && e.st.Mode&unix.S_IFMT == format }

// child looks name up in a merged directory. The caller closes e.dirs.
func child(dirs []int, name string) (e element, err error) {
	defer func() {
		if err != nil {
			closeAll(e.dirs)
		}
	}()
	for _, dir := range dirs {
		var st unix.Stat_t
		err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return e, err
		}
		isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
		if isWhiteout(&st) || e.found && !isDir {
			return e, nil
		}
		if !e.found {
			e.found, e.st, e.name, e.dir = true, st, name, dir
		}
		if !isDir {
			return e, nil
		}
		fd, err := openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if err != nil {
			return e, err
		}
		e.dirs = append(e.dirs, fd)
		if last, err := isOpaque(fd); last || err != nil {
			return e, err
		}
	}
	return e, nil
}

// cursor is a place in the merged tree.
type cursor struct {
	s     *stack
	dirs  []int
	canon []string
	todo  []string // the next component is the last
	links int
}

func (s *stack) cursor() *cursor { return &cursor{s: s, dirs: s.roots} }

func (c *cursor) close() { c.move(nil, nil) }

// move goes to a directory whose descriptors the cursor then owns, except those of the roots.
func (c *cursor) move(dirs []int, canon []string) {
	if len(c.canon) > 0 {
		closeAll(c.dirs)
	}
	c.dirs, c.canon = dirs, canon
}

func (c *cursor) push(path string) error {
	if len(path) > maxPath {
		return unix.ENAMETOOLONG
	}
	parts := strings.Split(path, "/")
	for i := len(parts) - 1; i >= 0; i-- {
		if parts[i] != "" && parts[i] != "." {
			c.todo = append(c.todo, parts[i])
		}
	}
	return nil
}

// resolve goes down path from where the cursor is. With follow, symbolic links are followed; without, any one on the way
// means that there is nothing, and one at the end is the answer. The element is good until the cursor moves or is
// closed; for a directory the cursor is in it. fs.ErrNotExist when there is nothing.
func (c *cursor) resolve(path string, follow bool) (element, error) {
	if err := c.push(path); err != nil {
		return element{}, err
	}
	for len(c.todo) > 0 {
		name := c.todo[len(c.todo)-1]
		c.todo = c.todo[:len(c.todo)-1]
		if name == ".." {
			if err := c.up(); err != nil {
				return element{}, err
			}
			continue
		}
		e, err := child(c.dirs, name)
		switch {
		case err != nil:
			return element{}, err
		case !e.found:
			return element{}, fs.ErrNotExist
		case e.is(unix.S_IFDIR):
			canon := append(c.canon[:len(c.canon):len(c.canon)], name)
			if len(canon) > maxDepth {
				closeAll(e.dirs)
				return element{}, unix.ENAMETOOLONG
			}
			c.move(e.dirs, canon)
		case e.is(unix.S_IFLNK) && follow:
			if err := c.follow(&e); err != nil {
				return element{}, err
			}
		case len(c.todo) > 0:
			return element{}, fs.ErrNotExist
		default:
			return e, nil
		}
	}
	return c.here()
}

// here is the directory that the cursor is in.
func (c *cursor) here() (element, error) {
	e := element{found: true, name: ".", dirs: c.dirs}
	if len(c.dirs) == 0 {
		return element{}, fs.ErrNotExist
	}
	e.dir = c.dirs[0]
	return e, unix.Fstat(e.dir, &e.st)
}

func (c *cursor) follow(e *element) error {
	if c.links++; c.links > maxLinks {
		return unix.ELOOP
	}
	target, err := readlinkat(e.dir, e.name)
	if err != nil {
		return err
	}
	if strings.HasPrefix(target, "/") {
		c.move(c.s.roots, nil)
	}
	return c.push(target)
}

// up goes to the parent, from the root again, so that one directory's descriptors are open at a time and no more.
func (c *cursor) up() error {
	if len(c.canon) == 0 {
		return nil
	}
	parent := c.canon[:len(c.canon)-1]
	c.move(c.s.roots, nil)
	for _, name := range parent {
		e, err := child(c.dirs, name)
		if err != nil {
			return err
		}
		if !e.is(unix.S_IFDIR) {
			return fs.ErrNotExist
		}
		c.move(e.dirs, append(c.canon[:len(c.canon):len(c.canon)], name))
	}
	return nil
}

// read answers the content of a regular file.
func (e *element) read(limit int64) ([]byte, error) {
	if !e.is(unix.S_IFREG) {
		return nil, fmt.Errorf("it is not a regular file: %w", fs.ErrNotExist)
	}
	fd, err := openat(e.dir, e.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), e.name)
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("it is larger than %d bytes: %w", limit, errdefs.ErrResourceExhausted)
	}
	return data, nil
}
