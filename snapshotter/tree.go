package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/containerd/containerd/v2/core/snapshots"
)

// A container may nest its directories as deep as it likes, beyond any path and any number of descriptors. What walks
// a writable layer therefore neither recurses without bound nor opens a descriptor a level.

const (
	// longPath is where a walk opens a new directory to go on from, in bytes.
	longPath = 3000
	// deepRemove is at how many levels a removal moves a subtree up instead of going down.
	deepRemove = 64

	beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV
)

// anchor is an open directory that pending paths are relative to.
type anchor struct {
	fd      int
	pending int
}

func (a *anchor) release() {
	if a.pending--; a.pending == 0 {
		unix.Close(a.fd)
	}
}

type pendingDir struct {
	from *anchor
	path string
}

type inode struct{ dev, ino uint64 }

// measurer adds up what a tree takes on disk: blocks, and inodes, hard links once.
type measurer struct {
	usage snapshots.Usage
	seen  map[inode]bool
	todo  []pendingDir
}

// measure walks a tree that may be in use. What vanishes meanwhile is not counted.
func measure(ctx context.Context, dir string) (snapshots.Usage, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return snapshots.Usage{}, fmt.Errorf("measure %s: %w", dir, err)
	}
	m := &measurer{seen: map[inode]bool{}, todo: []pendingDir{{&anchor{fd: fd, pending: 1}, "."}}}
	for len(m.todo) > 0 {
		next := m.todo[len(m.todo)-1]
		m.todo = m.todo[:len(m.todo)-1]
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			err = m.dir(next)
		}
		next.from.release()
	}
	if err != nil {
		return snapshots.Usage{}, fmt.Errorf("measure %s: %w", dir, err)
	}
	return m.usage, nil
}

// dir counts a directory and what is in it, and puts off its subdirectories.
func (m *measurer) dir(p pendingDir) error {
	fd, err := openDir(p.from.fd, p.path)
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), p.path)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	m.count(&st)
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	from, prefix := p.from, p.path+"/"
	if len(prefix) > longPath {
		own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return err
		}
		from, prefix = &anchor{fd: own, pending: 1}, "./"
		defer from.release()
	}
	for _, name := range names {
		err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if gone(err) {
			continue
		}
		if err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			from.pending++
			m.todo = append(m.todo, pendingDir{from, prefix + name})
			continue
		}
		m.count(&st)
	}
	return nil
}

func (m *measurer) count(st *unix.Stat_t) {
	if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
		key := inode{st.Dev, st.Ino}
		if m.seen[key] {
			return
		}
		m.seen[key] = true
	}
	m.usage.Inodes++
	m.usage.Size += st.Blocks * 512
}

// gone says that a name no longer means what it meant when it was listed.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

func openDir(at int, path string) (int, error) {
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: beneath}
	for {
		fd, err := unix.Openat2(at, path, &how)
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

// remover empties the trash.
type remover struct {
	ctx   context.Context
	trash int
	moved uint64
}

// removeTree removes name, a file or a tree, from the directory trash. Subtrees that lie deep are moved up into trash,
// under names that begin with ".deep-" and the name, and removed from there; removeTree called again goes on with them. What
// is gone already is no error.
func removeTree(ctx context.Context, trash, name string) error {
	fd, err := unix.Open(trash, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("remove %s/%s: %w", trash, name, err)
	}
	defer unix.Close(fd)
	r := &remover{ctx: ctx, trash: fd}
	err = r.remove(fd, name, name, 0)
	// Those that were moved up may move up more.
	for done := uint64(0); err == nil && done < r.moved; done++ {
		err = r.remove(fd, deepName(name, done), name, 0)
	}
	if err != nil {
		return fmt.Errorf("remove %s/%s: %w", trash, name, err)
	}
	return nil
}

const deepPrefix = ".deep-"

func deepName(top string, n uint64) string { return deepPrefix + top + "-" + strconv.FormatUint(n, 10) }

// remove removes name in dir, at depth levels below the trash.
func (r *remover) remove(dir int, name, top string, depth int) error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	err := unix.Unlinkat(dir, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) {
		return err
	}
	err = unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if depth >= deepRemove {
		return r.moveUp(dir, name, top)
	}
	fd, err := openDir(dir, name)
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, child := range names {
		if err := r.remove(fd, child, top, depth+1); err != nil {
			return err
		}
	}
	err = unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// moveUp moves a subtree to the trash itself. A name that is taken was left by a removal that was cut off; its turn comes
// as well.
func (r *remover) moveUp(dir int, name, top string) error {
	for {
		err := unix.Renameat2(dir, name, r.trash, deepName(top, r.moved), unix.RENAME_NOREPLACE)
		r.moved++
		if !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
}
