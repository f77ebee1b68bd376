package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Adopt completes a directory for which NeedsParents is true from the layer directories below it, uppermost first, and
// updates the figures of result. Implied directories take the attributes that they have below. One that is a symbolic link
// to a directory below does not hide it: what it holds moves to where the link points. Hard links into the layers below
// become copies. After an error, or when called for other layers below, the directory is good for nothing.
func Adopt(ctx context.Context, dir *os.File, result *Result, parents []string) error {
	lower, err := openStack(parents)
	if err != nil {
		return fmt.Errorf("adopt layer: %w", err)
	}
	defer lower.close()
	a := &adopter{tree: newTree(int(dir.Fd())), lower: lower, implied: map[string]bool{}, opaque: map[string]bool{}}
	defer a.tree.close()
	if err := a.run(ctx, result); err != nil {
		return withKind("adopt layer", err)
	}
	u, err := measure(ctx, int(dir.Fd()))
	if err != nil {
		return fmt.Errorf("adopt layer: measure: %w", err)
	}
	result.Size, result.Inodes = u.size, u.inodes
	result.Implied, result.Links = slices.Sorted(maps.Keys(a.implied)), nil
	return nil
}

type adopter struct {
	tree    *tree
	lower   *stack
	implied map[string]bool // as Result.Implied, kept right while directories move
	queue   []string        // implied directories not yet looked at, parents before children
	opaque  map[string]bool // what hides has found since a directory last moved
}

// run first moves and makes what changes directories, then sets attributes, so that times stay.
func (a *adopter) run(ctx context.Context, result *Result) error {
	for _, path := range result.Implied {
		a.add(path)
	}
	for len(a.queue) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		path := a.queue[0]
		a.queue = a.queue[1:]
		if !a.implied[path] {
			continue
		}
		if err := a.relocate(path); err != nil {
			return fmt.Errorf("directory %q: %w", path, err)
		}
	}
	for _, link := range result.Links {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := a.link(link); err != nil {
			return fmt.Errorf("entry %q: hard link to %q: %w", link.Name, link.Target, err)
		}
	}
	for path := range a.implied {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := a.inherit(path); err != nil {
			return fmt.Errorf("directory %q: %w", path, err)
		}
	}
	return nil
}

func (a *adopter) add(path string) {
	if !a.implied[path] {
		a.implied[path] = true
		a.queue = append(a.queue, path)
	}
}

// open opens a directory of this layer for reading.
func (a *adopter) open(path string) (int, error) {
	if path == "" {
		path = "."
	}
	return openBeneath(a.tree.root, path, unix.O_RDONLY|unix.O_DIRECTORY)
}

// openMade opens a directory of this layer and makes it when it is missing; it is then implied.
func (a *adopter) openMade(path string) (fd int, canon string, err error) {
	if _, canon, err = a.tree.openDir(path, true); err != nil {
		return -1, "", err
	}
	made := slices.Sorted(maps.Keys(a.tree.dirs))
	clear(a.tree.dirs)
	a.tree.names = 0
	for _, path := range made {
		a.add(path)
	}
	fd, err = a.open(canon)
	return fd, canon, err
}

// below looks a path up in the layers below, without following links. Nothing is found where this layer hides them.
func (a *adopter) below(path string, use func(e *element) error) error {
	parent, _ := splitPath(path)
	hidden, err := a.hides(parent)
	if hidden || err != nil {
		return err
	}
	c := a.lower.cursor()
	defer c.close()
	e, err := c.resolve(path, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look up in the layers below: %w", err)
	}
	return use(&e)
}

// hides says whether this layer hides what the layers below have in a directory: it, or one that it is in, is opaque or
// not a directory.
func (a *adopter) hides(dir string) (bool, error) {
	if yes, known := a.opaque[dir]; known {
		return yes, nil
	}
	yes, err := false, error(nil)
	if dir != "" {
		parent, _ := splitPath(dir)
		yes, err = a.hides(parent)
	}
	if !yes && err == nil {
		yes, err = a.isOpaque(dir)
	}
	if err == nil {
		a.opaque[dir] = yes
	}
	return yes, err
}

func (a *adopter) isOpaque(dir string) (bool, error) {
	fd, err := a.open(dir)
	if errors.Is(err, unix.ENOENT) {
		return false, nil // not in this layer at all
	}
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	return isOpaque(fd)
}

// relocate moves what an implied directory holds when the layers below have a link to a directory in its place.
func (a *adopter) relocate(path string) error {
	isLink := false
	err := a.below(path, func(e *element) error {
		isLink = e.is(unix.S_IFLNK)
		return nil
	})
	if err != nil || !isLink {
		return err
	}
	c := a.lower.cursor()
	defer c.close()
	e, err := c.resolve(path, true)
	target := strings.Join(c.canon, "/")
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ELOOP):
		return nil // a link to nowhere: the directory takes its place
	case err != nil:
		return err
	case !e.is(unix.S_IFDIR) || strings.HasPrefix(target+"/", path+"/"):
		return nil
	}
	return a.move(path, target)
}

// move empties one directory of this layer into another and removes it.
func (a *adopter) move(from, target string) error {
	to, canon, err := a.openMade(target)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	parent, base := splitPath(from)
	dir, err := a.open(parent)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	a.tree.stale = true
	clear(a.opaque)
	m := &mover{moved: map[string]string{}}
	err = keepTimes(dir, func() error { return m.merge(at{dir, base, from}, to, canon) })
	if err != nil {
		return err
	}
	a.rename(from, m.moved)
	return nil
}

// rename keeps the record of implied directories right after some beneath from have moved.
func (a *adopter) rename(from string, moved map[string]string) {
	delete(a.implied, from)
	var again []string
	for path := range a.implied {
		if strings.HasPrefix(path, from+"/") {
			delete(a.implied, path)
			if now, ok := movedPath(path, moved); ok {
				again = append(again, now)
			}
		}
	}
	slices.Sort(again)
	for _, path := range again {
		a.add(path)
	}
}

// movedPath says where a path is now, when it or a directory that it is in was moved as a whole.
func movedPath(path string, moved map[string]string) (string, bool) {
	for prefix := path; prefix != ""; prefix, _ = splitPath(prefix) {
		if to, ok := moved[prefix]; ok {
			return to + path[len(prefix):], true
		}
	}
	return "", false
}

// mover merges directories and notes what it moved, by old path.
type mover struct{ moved map[string]string }

// merge moves all that is in the directory from into the directory to, and removes from.
func (m *mover) merge(from at, to int, toPath string) error {
	names, fd, err := readDir(from.dir, from.name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if yes, err := isOpaque(fd); err != nil {
		return err
	} else if yes {
		if err := unix.Fsetxattr(to, opaqueXattr, []byte("y"), 0); err != nil {
			return fmt.Errorf("set %s: %w", opaqueXattr, err)
		}
	}
	err = keepTimes(to, func() error {
		for _, name := range names {
			child := at{fd, name, joinPath(from.path, name)}
			if err := m.child(child, to, joinPath(toPath, name)); err != nil {
				return fmt.Errorf("move %q to %q: %w", child.path, joinPath(toPath, name), err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return unix.Unlinkat(from.dir, from.name, unix.AT_REMOVEDIR)
}

func (m *mover) child(from at, to int, toPath string) error {
	err := unix.Renameat2(from.dir, from.name, to, from.name, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EEXIST) {
		if both, next := bothDirs(from, to); both {
			defer unix.Close(next)
			return m.merge(from, next, toPath)
		}
		if err := removeAll(to, from.name); err != nil {
			return err
		}
		err = unix.Renameat(from.dir, from.name, to, from.name)
	}
	if err == nil {
		m.moved[from.path] = toPath
	}
	return err
}

// bothDirs says whether a name is a directory here and there, and opens the one there.
func bothDirs(from at, to int) (bool, int) {
	var st unix.Stat_t
	if unix.Fstatat(from.dir, from.name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return false, -1
	}
	fd, err := openat(to, from.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	return err == nil, fd
}

// keepTimes runs change, which alters a directory, and gives the directory its times back.
func keepTimes(dir int, change func() error) error {
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil {
		return err
	}
	if err := change(); err != nil {
		return err
	}
	return unix.UtimesNanoAt(dir, ".", []unix.Timespec{st.Atim, st.Mtim}, 0)
}

// link makes a copy of a file of the layers below, in place of a hard link to it.
func (a *adopter) link(link Link) error {
	parent, base := splitPath(link.Name)
	dir, _, err := a.openMade(parent)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	found := false
	err = a.below(link.Target, func(e *element) error {
		found = e.is(unix.S_IFREG) || e.is(unix.S_IFLNK)
		if !found {
			return nil
		}
		return keepTimes(dir, func() error { return copyElement(e, dir, base) })
	})
	if err == nil && !found {
		return refuse("neither the layer before this entry nor those below have that file")
	}
	return err
}

// copyElement copies a file or a symbolic link with its attributes.
func copyElement(e *element, dir int, name string) error {
	if e.is(unix.S_IFLNK) {
		target, err := readlinkat(e.dir, e.name)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(target, dir, name); err != nil {
			return err
		}
		return copyAttributes(e, dir, name)
	}
	in, err := openat(e.dir, e.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	source := os.NewFile(uintptr(in), e.name)
	defer source.Close()
	out, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	destination := os.NewFile(uintptr(out), name)
	defer destination.Close()
	if _, err := io.Copy(destination, source); err != nil {
		return err
	}
	return copyAttributes(e, dir, name)
}

// inherit gives an implied directory the attributes that it has in the layers below.
func (a *adopter) inherit(path string) error {
	return a.below(path, func(e *element) error {
		if !e.is(unix.S_IFDIR) {
			return nil
		}
		fd, err := openBeneath(a.tree.root, path, unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return copyAttributes(e, fd, ".")
	})
}

// copyAttributes gives a file the owner, mode, extended attributes and times of another, but not overlay's own marks.
func copyAttributes(e *element, dir int, name string) error {
	if err := unix.Fchownat(dir, name, int(e.st.Uid), int(e.st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set owner: %w", err)
	}
	if !e.is(unix.S_IFLNK) {
		if err := unix.Fchmodat(dir, name, e.st.Mode&0o7777, 0); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	names, err := listXattrs(procPath(e.dir, e.name))
	if err != nil {
		return fmt.Errorf("list attributes: %w", err)
	}
	for _, attr := range names {
		if dropXattr(attr) {
			continue
		}
		value, err := getXattr(procPath(e.dir, e.name), attr)
		if err != nil {
			return fmt.Errorf("get %s: %w", attr, err)
		}
		if err := storeXattr(dir, name, attr, value); err != nil {
			return err
		}
	}
	times := []unix.Timespec{e.st.Atim, e.st.Mtim}
	return unix.UtimesNanoAt(dir, name, times, unix.AT_SYMLINK_NOFOLLOW)
}
