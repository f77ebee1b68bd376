package layer

import (
	"context"
	"os"

	"golang.org/x/sys/unix"
)

// usage is what a tree takes on disk.
type usage struct{ size, inodes int64 }

type inode struct{ dev, ino uint64 }

// measure walks a layer directory and counts disk blocks, hard links once.
func measure(ctx context.Context, root int) (usage, error) {
	var u usage
	seen := map[inode]bool{}
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		return u, err
	}
	u.add(&st)
	return u, u.walk(ctx, root, ".", seen)
}

func (u *usage) add(st *unix.Stat_t) {
	u.size += st.Blocks * 512
	u.inodes++
}

func (u *usage) walk(ctx context.Context, dir int, name string, seen map[inode]bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	names, fd, err := readDir(dir, name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, child := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(fd, child, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		key := inode{st.Dev, st.Ino}
		isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
		if !isDir && st.Nlink > 1 {
			if seen[key] {
				continue
			}
			seen[key] = true
		}
		u.add(&st)
		if isDir {
			if err := u.walk(ctx, fd, child, seen); err != nil {
				return err
			}
		}
	}
	return nil
}

// Measure walks a layer directory and answers what it takes on disk in bytes, and the number of its inodes, hard links once.
func Measure(ctx context.Context, dir *os.File) (size, inodes int64, err error) {
	u, err := measure(ctx, int(dir.Fd()))
	return u.size, u.inodes, err
}
