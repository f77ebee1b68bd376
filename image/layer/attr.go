package layer

import (
	"archive/tar"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// paxXattr is the prefix of extended attributes in PAX records.
const paxXattr = "SCHILY.xattr."

// attributes gives an entry its owner, mode, extended attributes and times, in this order: a change of owner clears set-id
// bits and capabilities. What it has already, by st, is not set again.
func (w *writer) attributes(p at, hdr *tar.Header, st *unix.Stat_t) error {
	if st.Uid != uint32(hdr.Uid) || st.Gid != uint32(hdr.Gid) {
		if err := unix.Fchownat(p.dir, p.name, hdr.Uid, hdr.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("set owner: %w", err)
		}
	}
	if mode := modeOf(hdr); hdr.Typeflag != tar.TypeSymlink && st.Mode&0o7777 != mode {
		if err := unix.Fchmodat(p.dir, p.name, mode, 0); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	if err := w.xattrs(p, hdr); err != nil {
		return err
	}
	atime, mtime := times(hdr)
	if err := unix.UtimesNanoAt(p.dir, p.name, []unix.Timespec{atime, mtime}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}

// fileAttributes is as attributes, for a regular file that is open: with no name to look up.
func (w *writer) fileAttributes(p at, fd int, hdr *tar.Header, st *unix.Stat_t) error {
	if st.Uid != uint32(hdr.Uid) || st.Gid != uint32(hdr.Gid) {
		if err := unix.Fchown(fd, hdr.Uid, hdr.Gid); err != nil {
			return fmt.Errorf("set owner: %w", err)
		}
	}
	if mode := modeOf(hdr); st.Mode&0o7777 != mode {
		if err := unix.Fchmod(fd, mode); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	if err := w.xattrs(p, hdr); err != nil {
		return err
	}
	atime, mtime := times(hdr)
	if err := utimesFD(fd, atime, mtime); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}

func modeOf(hdr *tar.Header) uint32 { return uint32(hdr.Mode) & 0o7777 }

// xattrs sets those extended attributes that a layer may bring.
func (w *writer) xattrs(p at, hdr *tar.Header) error {
	for record, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(record, paxXattr)
		if !ok || dropXattr(name) {
			continue
		}
		if err := storeXattr(p.dir, p.name, name, []byte(value)); err != nil {
			return err
		}
	}
	return nil
}

// dropXattr says which attributes a layer may not bring: those by which overlayfs is steered, and labels of security
// modules, which mean something only on the host that gave them.
func dropXattr(name string) bool {
	for _, prefix := range []string{"trusted.overlay.", "user.overlay.", "security.SMACK64"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return name == "security.selinux" || name == "security.apparmor"
}

// storeXattr sets an attribute of a layer. One that the filesystem, or Linux for this type of file, does not have is left out,
// but not a capability: without it the program would not work.
func storeXattr(dir int, file, name string, value []byte) error {
	err := setXattr(dir, file, name, value)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOTSUP) && name != "security.capability":
		return nil
	case errors.Is(err, unix.EPERM) && strings.HasPrefix(name, "user."):
		return nil
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ERANGE) || errors.Is(err, unix.EINVAL):
		return refuse("its attribute %.100q of %d bytes cannot be stored: %v", name, len(value), errors.Unwrap(err))
	}
	return err
}

// times are those of the header; the time of access is that of the change unless given.
func times(hdr *tar.Header) (atime, mtime unix.Timespec) {
	mtime = unix.Timespec{Sec: hdr.ModTime.Unix(), Nsec: int64(hdr.ModTime.Nanosecond())}
	if hdr.ModTime.IsZero() {
		mtime = unix.Timespec{}
	}
	if hdr.AccessTime.IsZero() {
		return mtime, mtime
	}
	return unix.Timespec{Sec: hdr.AccessTime.Unix(), Nsec: int64(hdr.AccessTime.Nanosecond())}, mtime
}
