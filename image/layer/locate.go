package layer

import (
	"fmt"
	"os"
	"path"
	"strconv"

	"golang.org/x/sys/unix"
)

// Location is where a directory or file of an image is. An overlay of Dirs, uppermost first, is the directory, without what
// other layers hide; with a single one it is that directory. File is the path of what is no directory.
type Location struct {
	Dirs []string
	File string
}

// Locate finds a path in a stack of layer directories, uppermost first, as ReadFile does. The paths have no symbolic link in them.
// fs.ErrNotExist when there is nothing of that name.
func Locate(dirs []string, name string) (Location, error) {
	s, err := openStack(dirs)
	if err != nil {
		return Location{}, err
	}
	defer s.close()
	c := s.cursor()
	defer c.close()
	e, err := c.resolve(name, true)
	if err != nil {
		return Location{}, fmt.Errorf("find %q in the image: %w", name, err)
	}
	if !e.is(unix.S_IFDIR) {
		dir, err := pathOf(e.dir)
		return Location{File: path.Join(dir, e.name)}, err
	}
	var l Location
	for _, fd := range e.dirs {
		dir, err := pathOf(fd)
		if err != nil {
			return Location{}, err
		}
		l.Dirs = append(l.Dirs, dir)
	}
	return l, nil
}

// pathOf is the path of an open directory.
func pathOf(fd int) (string, error) { return os.Readlink("/proc/self/fd/" + strconv.Itoa(fd)) }
