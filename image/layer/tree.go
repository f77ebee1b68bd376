package layer

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// cachedDirs is how many directories stay open; tars come a directory at a time, so few are needed.
	cachedDirs = 64
	// maxDirs and maxDirNames (bytes of their paths) bound the memory that directories take.
	maxDirs     = 1_000_000
	maxDirNames = 128 << 20
	// maxLinks is how many symbolic links one lookup may pass, as in Linux's own.
	maxLinks = 40

	opaqueXattr = "trusted.overlay.opaque"
)

// beneath opens without leaving the directory and without following any link (openat2, Linux 5.6).
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

// dirState is what finish has to know of a directory.
type dirState struct {
	implied      bool
	atime, mtime unix.Timespec
}

type cachedDir struct {
	fd    int
	canon string
	used  uint64
}

// tree is the layer directory while it is written. It opens directories beneath the root and keeps some open.
type tree struct {
	root  int // owned by the caller of Write
	dirs  map[string]dirState
	cache map[string]*cachedDir // by the path asked for
	tick  uint64
	names int  // bytes of the paths in dirs
	stale bool // something was removed: forget the cache at the next open
	// removed says that something was removed at any time, so that sums of what was made are wrong.
	removed bool
}

func newTree(root int) *tree {
	return &tree{root: root, dirs: map[string]dirState{}, cache: map[string]*cachedDir{}}
}

func (t *tree) close() {
	for _, d := range t.cache {
		unix.Close(d.fd)
	}
	clear(t.cache)
}

// openDir opens a directory of the tree with O_PATH and says its path without symbolic links. The descriptor belongs to
// the tree and is good until the call after next. Missing directories are made when create is true, and are implied.
func (t *tree) openDir(path string, create bool) (int, string, error) {
	if t.stale {
		t.close()
		t.stale = false
	}
	if path == "" {
		return t.root, "", nil
	}
	t.tick++
	if d := t.cache[path]; d != nil {
		d.used = t.tick
		return d.fd, d.canon, nil
	}
	fd, err := openBeneath(t.root, path, unix.O_PATH|unix.O_DIRECTORY)
	canon := path
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
		fd, canon, err = t.walk(path, create)
	}
	if err != nil {
		return -1, "", err
	}
	t.evict()
	t.cache[path] = &cachedDir{fd: fd, canon: canon, used: t.tick}
	return fd, canon, nil
}

// evict closes the directory that was not used for longest when the cache is full.
func (t *tree) evict() {
	if len(t.cache) < cachedDirs {
		return
	}
	var oldest string
	least := t.tick + 1
	for path, d := range t.cache {
		if d.used < least {
			oldest, least = path, d.used
		}
	}
	unix.Close(t.cache[oldest].fd)
	delete(t.cache, oldest)
}

// walker goes down a path one component at a time, symbolic links followed as if the layer were the root directory.
type walker struct {
	t     *tree
	fd    int
	canon []string
	todo  []string // the next component is the last
	links int
}

func (t *tree) walk(path string, create bool) (int, string, error) {
	fd, err := reopen(t.root)
	if err != nil {
		return -1, "", err
	}
	w := &walker{t: t, fd: fd}
	w.push(path)
	for len(w.todo) > 0 {
		name := w.todo[len(w.todo)-1]
		w.todo = w.todo[:len(w.todo)-1]
		if err := w.step(name, create); err != nil {
			unix.Close(w.fd)
			return -1, "", err
		}
	}
	canon := strings.Join(w.canon, "/")
	if err := checkLengths(canon); err != nil {
		unix.Close(w.fd)
		return -1, "", err
	}
	return w.fd, canon, nil
}

func (w *walker) push(path string) {
	parts := strings.Split(path, "/")
	for i := len(parts) - 1; i >= 0; i-- {
		if parts[i] != "" && parts[i] != "." {
			w.todo = append(w.todo, parts[i])
		}
	}
}

// step goes one component on.
func (w *walker) step(name string, create bool) error {
	if name == ".." {
		return w.up()
	}
	next, err := openat(w.fd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT) && create:
		next, err = w.make(name, true)
	case errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP):
		return w.special(name, create)
	}
	if err != nil {
		return fmt.Errorf("open directory %q: %w", joinPath(strings.Join(w.canon, "/"), name), err)
	}
	w.down(next, name)
	return nil
}

func (w *walker) down(fd int, name string) {
	unix.Close(w.fd)
	w.fd = fd
	w.canon = append(w.canon, name)
}

// up goes to the parent; at the root it stays there.
func (w *walker) up() error {
	if len(w.canon) == 0 {
		return nil
	}
	return w.restart(w.canon[:len(w.canon)-1])
}

func (w *walker) restart(canon []string) error {
	var fd int
	var err error
	if len(canon) == 0 {
		fd, err = reopen(w.t.root)
	} else {
		fd, err = openBeneath(w.t.root, strings.Join(canon, "/"), unix.O_PATH|unix.O_DIRECTORY)
	}
	if err != nil {
		return err
	}
	unix.Close(w.fd)
	w.fd, w.canon = fd, canon
	return nil
}

// special handles what is not a directory on the way: links are followed, a whiteout gives way to a directory.
func (w *walker) special(name string, create bool) error {
	full := joinPath(strings.Join(w.canon, "/"), name)
	var st unix.Stat_t
	if err := unix.Fstatat(w.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("stat %q: %w", full, err)
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		if w.links++; w.links > maxLinks {
			return refuse("its path passes more than %d symbolic links", maxLinks)
		}
		target, err := readlinkat(w.fd, name)
		if err != nil {
			return fmt.Errorf("read link %q: %w", full, err)
		}
		w.push(target)
		if len(w.todo) > 2*maxPath {
			return refuse("its path is longer than %d bytes", maxPath)
		}
		if strings.HasPrefix(target, "/") {
			return w.restart(nil)
		}
		return nil
	case isWhiteout(&st) && create:
		w.t.removed = true
		if err := unix.Unlinkat(w.fd, name, 0); err != nil {
			return fmt.Errorf("replace whiteout %q: %w", full, err)
		}
		next, err := w.make(name, false)
		if err != nil {
			return fmt.Errorf("make directory %q: %w", full, err)
		}
		err = setXattr(w.fd, name, opaqueXattr, []byte("y"))
		w.down(next, name)
		return err
	}
	return refuse("%q on its path is not a directory", full)
}

// make makes and opens a directory that has no entry (yet).
func (w *walker) make(name string, implied bool) (int, error) {
	full := joinPath(strings.Join(w.canon, "/"), name)
	if err := checkLengths(full); err != nil {
		return -1, err
	}
	if err := unix.Mkdirat(w.fd, name, 0o755); err != nil {
		return -1, err
	}
	if err := unix.Fchmodat(w.fd, name, 0o755, 0); err != nil {
		return -1, err
	}
	if err := w.t.record(full, dirState{implied: implied}); err != nil {
		return -1, err
	}
	return openat(w.fd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
}

// record keeps what finish has to know of a directory.
func (t *tree) record(path string, state dirState) error {
	if _, known := t.dirs[path]; !known {
		t.names += len(path)
	}
	t.dirs[path] = state
	if len(t.dirs) > maxDirs || t.names > maxDirNames {
		return refuse("the layer has more than %d directories, or their names take more than %d bytes", maxDirs, maxDirNames)
	}
	return nil
}

func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}
