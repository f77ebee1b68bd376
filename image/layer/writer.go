package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// writer unpacks one tar.
type writer struct {
	tree    *tree
	tar     *tar.Reader
	buffer  []byte
	options Options
	result  Result
	size    int64  // sum of file sizes so far
	links   []Link // hard links whose target was not there when they came
}

// run unpacks entry by entry.
func (w *writer) run() error {
	for {
		hdr, err := w.tar.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("after entry %d: %w", w.result.Entries, err)
		}
		if w.result.Entries++; w.result.Entries > w.options.MaxEntries {
			return refuse("the layer has more than %d entries", w.options.MaxEntries)
		}
		if err := w.entry(hdr); err != nil {
			return fmt.Errorf("entry %q: %w", hdr.Name, err)
		}
	}
}

func (w *writer) entry(hdr *tar.Header) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := cleanName(hdr.Name)
	if err != nil {
		return err
	}
	what, target, err := classify(name)
	if err != nil {
		return err
	}
	switch what {
	case ignored:
		return nil
	case opaque:
		return w.opaque(target)
	case whiteout:
		return w.whiteout(target)
	}
	if err := checkHeader(hdr); err != nil {
		return err
	}
	if name == "" {
		return w.root(hdr)
	}
	parent, base := splitPath(name)
	dir, canon, err := w.tree.openDir(parent, true)
	if err != nil {
		return err
	}
	return w.create(at{dir, base, joinPath(canon, base)}, hdr)
}

// at is a place in the tree: a name in an open directory. Path is where that is, for records and messages.
type at struct {
	dir  int
	name string
	path string
}

// checkHeader refuses numbers that no file can have.
func checkHeader(hdr *tar.Header) error {
	// The largest 32-bit number means "leave it" to chown.
	for _, id := range []int{hdr.Uid, hdr.Gid} {
		if id < 0 || id >= math.MaxUint32 {
			return refuse("its owner %d is not an id", id)
		}
	}
	if hdr.Typeflag == tar.TypeChar || hdr.Typeflag == tar.TypeBlock {
		if hdr.Devmajor < 0 || hdr.Devmajor >= 1<<12 || hdr.Devminor < 0 || hdr.Devminor >= 1<<20 {
			return refuse("%d:%d is not a device number", hdr.Devmajor, hdr.Devminor)
		}
	}
	return nil
}

func (w *writer) create(p at, hdr *tar.Header) error {
	switch hdr.Typeflag {
	case tar.TypeReg, '\x00', tar.TypeCont, tar.TypeGNUSparse:
		return w.regular(p, hdr)
	case tar.TypeDir:
		return w.directory(p, hdr)
	case tar.TypeLink:
		return w.hardlink(p, hdr)
	case tar.TypeSymlink:
		if hdr.Linkname == "" || len(hdr.Linkname) > maxPath || strings.IndexByte(hdr.Linkname, 0) >= 0 {
			return refuse("its target is empty, too long, or holds a NUL byte")
		}
		return w.node(p, hdr, func() error { return unix.Symlinkat(hdr.Linkname, p.dir, p.name) })
	case tar.TypeChar:
		return w.node(p, hdr, func() error { return w.mknod(p, unix.S_IFCHR, hdr) })
	case tar.TypeBlock:
		return w.node(p, hdr, func() error { return w.mknod(p, unix.S_IFBLK, hdr) })
	case tar.TypeFifo:
		return w.node(p, hdr, func() error { return unix.Mknodat(p.dir, p.name, unix.S_IFIFO|0o600, 0) })
	}
	return refuse("its type %q is not known", hdr.Typeflag)
}

func (w *writer) mknod(p at, format uint32, hdr *tar.Header) error {
	return unix.Mknodat(p.dir, p.name, format|0o600, int(unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor))))
}

// place runs put, and once more after what is there was removed.
func (w *writer) place(p at, put func() error) error {
	err := retry(put)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := w.remove(p); err != nil {
		return err
	}
	return retry(put)
}

// remove makes room for an entry that comes again as something else.
func (w *writer) remove(p at) error {
	w.tree.stale, w.tree.removed = true, true
	if err := removeAll(p.dir, p.name); err != nil {
		return fmt.Errorf("replace an earlier entry: %w", err)
	}
	return nil
}

func (w *writer) regular(p at, hdr *tar.Header) error {
	if hdr.Size > w.options.MaxSize-w.size {
		return refuse("the layer's files are larger than %d bytes", w.options.MaxSize)
	}
	w.size += hdr.Size
	var fd int
	err := w.place(p, func() (err error) {
		// Nobody else gets to the layer's directory yet, so the mode may be right at once, umask permitting.
		const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
		fd, err = unix.Openat(p.dir, p.name, flags, modeOf(hdr)&0o777)
		return err
	})
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	defer unix.Close(fd)
	if isSparse(hdr) {
		err = w.copySparse(fd, hdr.Size)
	} else {
		err = w.copyData(fd)
	}
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if err := w.fileAttributes(p, fd, hdr, &st); err != nil {
		return err
	}
	if len(hdr.PAXRecords) > 0 { // attributes may take a block
		if err := unix.Fstat(fd, &st); err != nil {
			return fmt.Errorf("stat: %w", err)
		}
	}
	w.count(&st)
	return nil
}

// node makes what is neither a regular file nor a directory.
func (w *writer) node(p at, hdr *tar.Header, put func() error) error {
	if err := w.place(p, put); err != nil {
		return fmt.Errorf("create: %w", err)
	}
	st, err := statAt(p)
	if err != nil {
		return err
	}
	if err := w.attributes(p, hdr, &st); err != nil {
		return err
	}
	if len(hdr.PAXRecords) > 0 {
		if st, err = statAt(p); err != nil {
			return err
		}
	}
	w.count(&st)
	return nil
}

func (w *writer) directory(p at, hdr *tar.Header) error {
	err := unix.Mkdirat(p.dir, p.name, 0o700)
	if errors.Is(err, unix.EEXIST) {
		err = w.existing(p)
	}
	if err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	atime, mtime := times(hdr)
	if err := w.tree.record(p.path, dirState{atime: atime, mtime: mtime}); err != nil {
		return err
	}
	st, err := statAt(p)
	if err != nil {
		return err
	}
	return w.attributes(p, hdr, &st)
}

// existing sees to it that a directory is where something already is. One that replaces a file or a whiteout hides
// what the layers below have there, as it would if the entries were applied one after the other.
func (w *writer) existing(p at) error {
	var st unix.Stat_t
	if err := unix.Fstatat(p.dir, p.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return nil
	}
	if err := w.remove(p); err != nil {
		return err
	}
	if err := unix.Mkdirat(p.dir, p.name, 0o700); err != nil {
		return err
	}
	return setXattr(p.dir, p.name, opaqueXattr, []byte("y"))
}

// root gives the layer's own directory its attributes.
func (w *writer) root(hdr *tar.Header) error {
	if hdr.Typeflag != tar.TypeDir {
		return refuse("it is the root and not a directory")
	}
	w.result.RootImplied = false
	atime, mtime := times(hdr)
	if err := w.tree.record("", dirState{atime: atime, mtime: mtime}); err != nil {
		return err
	}
	p := at{w.tree.root, ".", ""}
	st, err := statAt(p)
	if err != nil {
		return err
	}
	return w.attributes(p, hdr, &st)
}

// hardlink links to what came before it in this layer. A target that is not here is one of a layer below.
func (w *writer) hardlink(p at, hdr *tar.Header) error {
	target, err := cleanName(hdr.Linkname)
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", hdr.Linkname, err)
	}
	if target == "" {
		return refuse("hard link to the root directory")
	}
	parent, base := splitPath(target)
	dir, canon, err := w.tree.openDir(parent, false)
	switch {
	case err == nil && joinPath(canon, base) == p.path:
		return nil
	case err == nil:
		err = w.place(p, func() error { return unix.Linkat(dir, base, p.dir, p.name, 0) })
	}
	if errors.Is(err, unix.ENOENT) {
		w.links = append(w.links, Link{Name: p.path, Target: target})
		if len(w.links) > maxPendingLinks {
			return refuse("the layer has more than %d hard links to files that it does not hold", maxPendingLinks)
		}
		return nil
	}
	if err != nil {
		return refuse("hard link to %q: %v", hdr.Linkname, err)
	}
	return nil
}

// Links into the layers below and directories without an entry are rare, and Adopt looks each up in all layers.
const (
	maxPendingLinks = 100_000
	maxImplied      = 100_000
)

// whiteout hides target in the layers below. What this layer itself has there stays, as image-spec wants it.
func (w *writer) whiteout(target string) error {
	parent, base := splitPath(target)
	dir, canon, err := w.tree.openDir(parent, true)
	if err != nil {
		return err
	}
	p := at{dir, base, joinPath(canon, base)}
	err = unix.Mknodat(p.dir, p.name, unix.S_IFCHR, 0)
	if err == nil {
		w.result.Inodes++
		return nil
	}
	if !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make whiteout: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(p.dir, p.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	if state := w.tree.dirs[p.path]; state.implied {
		// Nothing below is left to take attributes from.
		state.implied = false
		if err := w.tree.record(p.path, state); err != nil {
			return err
		}
	}
	return setXattr(p.dir, p.name, opaqueXattr, []byte("y"))
}

// opaque hides all that the layers below have in the directory.
func (w *writer) opaque(target string) error {
	dir, _, err := w.tree.openDir(target, true)
	if err != nil {
		return err
	}
	return setXattr(dir, ".", opaqueXattr, []byte("y"))
}

func (w *writer) count(st *unix.Stat_t) {
	w.result.Inodes++
	w.result.Size += st.Blocks * 512
}

func statAt(p at) (st unix.Stat_t, err error) {
	if err := unix.Fstatat(p.dir, p.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return st, fmt.Errorf("stat: %w", err)
	}
	return st, nil
}

// finish sets the times of directories, which every entry in them has changed, and closes the account.
func (w *writer) finish(ctx context.Context, dir *os.File) error {
	if _, known := w.tree.dirs[""]; !known {
		w.tree.dirs[""] = dirState{}
	}
	for path, state := range w.tree.dirs {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := w.finishDir(path, state); err != nil {
			return fmt.Errorf("directory %q: %w", path, err)
		}
	}
	w.pending()
	if len(w.result.Implied) > maxImplied {
		return refuse("the layer has more than %d directories without an entry", maxImplied)
	}
	// A name that sorts before another is never beneath it.
	slices.Sort(w.result.Implied)
	if !w.tree.removed {
		return nil
	}
	usage, err := measure(ctx, int(dir.Fd()))
	w.result.Size, w.result.Inodes = usage.size, usage.inodes
	return err
}

// pending keeps those links whose name no later entry took, for Adopt.
func (w *writer) pending() {
	for _, link := range w.links {
		parent, base := splitPath(link.Name)
		dir, _, err := w.tree.openDir(parent, false)
		if err == nil && unix.Faccessat(dir, base, unix.F_OK, unix.AT_SYMLINK_NOFOLLOW) != nil {
			w.result.Links = append(w.result.Links, link)
		}
	}
}

func (w *writer) finishDir(path string, state dirState) error {
	fd := w.tree.root
	if path != "" {
		var err error
		fd, err = openBeneath(w.tree.root, path, unix.O_PATH|unix.O_DIRECTORY)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			return nil // a later entry replaced it, or a directory that it was in
		}
		if err != nil {
			return err
		}
		defer unix.Close(fd)
	}
	if err := utimesFD(fd, state.atime, state.mtime); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(fd, "", &st, unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	w.count(&st)
	if state.implied {
		w.result.Implied = append(w.result.Implied, path)
	}
	return nil
}
