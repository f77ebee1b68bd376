package plan

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Names are the names of a flag word's bits, or of its values where Enum is set.
type Names struct {
	Enum  bool
	names []name
}

type name struct {
	value uint64
	text  string
}

func (n *Names) text(v uint64) string {
	if n == nil {
		return strconv.FormatUint(v, 10)
	}
	if n.Enum {
		for _, x := range n.names {
			if x.value == v {
				return x.text
			}
		}
		return strconv.FormatInt(int64(v), 10)
	}
	var out []string
	for _, x := range n.names {
		if v&x.value == x.value && x.value != 0 {
			out = append(out, x.text)
			v &^= x.value
		}
	}
	if v != 0 || len(out) == 0 {
		out = append(out, "0x"+strconv.FormatUint(v, 16))
	}
	if len(out) == 1 && out[0] == "0x0" {
		return "0"
	}
	return strings.Join(out, "|")
}

// The names that plans use.
var (
	openNames = &Names{names: []name{
		{unix.O_PATH, "O_PATH"}, {unix.O_DIRECTORY, "O_DIRECTORY"}, {unix.O_NOFOLLOW, "O_NOFOLLOW"}, {unix.O_CLOEXEC, "O_CLOEXEC"},
		{unix.O_NOCTTY, "O_NOCTTY"}, {unix.O_CREAT, "O_CREAT"}, {unix.O_RDWR, "O_RDWR"}, {unix.O_WRONLY, "O_WRONLY"},
	}}
	cloneNames = &Names{names: []name{
		{unix.CLONE_PARENT, "CLONE_PARENT"}, {unix.CLONE_NEWNS, "CLONE_NEWNS"}, {unix.CLONE_NEWUTS, "CLONE_NEWUTS"},
		{unix.CLONE_NEWIPC, "CLONE_NEWIPC"}, {unix.CLONE_NEWPID, "CLONE_NEWPID"}, {unix.CLONE_NEWNET, "CLONE_NEWNET"},
		{unix.CLONE_NEWUSER, "CLONE_NEWUSER"}, {unix.CLONE_NEWCGROUP, "CLONE_NEWCGROUP"}, {unix.CLONE_FILES, "CLONE_FILES"},
		{unix.CLONE_NEWTIME, "CLONE_NEWTIME"},
	}}
	mountNames = &Names{names: []name{
		{unix.MS_REC, "MS_REC"}, {unix.MS_PRIVATE, "MS_PRIVATE"}, {unix.MS_SLAVE, "MS_SLAVE"}, {unix.MS_SHARED, "MS_SHARED"},
		{unix.MS_UNBINDABLE, "MS_UNBINDABLE"}, {unix.MS_RDONLY, "MS_RDONLY"}, {unix.MS_BIND, "MS_BIND"},
	}}
	attrNames = &Names{names: []name{
		{unix.MOUNT_ATTR_RDONLY, "MOUNT_ATTR_RDONLY"}, {unix.MOUNT_ATTR_NOSUID, "MOUNT_ATTR_NOSUID"}, {unix.MOUNT_ATTR_NODEV, "MOUNT_ATTR_NODEV"},
		{unix.MOUNT_ATTR_NOEXEC, "MOUNT_ATTR_NOEXEC"}, {unix.MOUNT_ATTR_NOATIME, "MOUNT_ATTR_NOATIME"}, {unix.MOUNT_ATTR_STRICTATIME, "MOUNT_ATTR_STRICTATIME"},
		{unix.MOUNT_ATTR_NODIRATIME, "MOUNT_ATTR_NODIRATIME"}, {unix.MOUNT_ATTR_NOSYMFOLLOW, "MOUNT_ATTR_NOSYMFOLLOW"},
		{unix.MOUNT_ATTR_IDMAP, "MOUNT_ATTR_IDMAP"},
	}}
	openTreeNames = &Names{names: []name{
		{unix.OPEN_TREE_CLONE, "OPEN_TREE_CLONE"}, {unix.OPEN_TREE_CLOEXEC, "OPEN_TREE_CLOEXEC"}, {unix.AT_RECURSIVE, "AT_RECURSIVE"}, {unix.AT_EMPTY_PATH, "AT_EMPTY_PATH"},
	}}
	atNames = &Names{names: []name{
		{unix.AT_EMPTY_PATH, "AT_EMPTY_PATH"}, {unix.AT_RECURSIVE, "AT_RECURSIVE"}, {unix.AT_SYMLINK_NOFOLLOW, "AT_SYMLINK_NOFOLLOW"},
	}}
	moveNames = &Names{names: []name{
		{unix.MOVE_MOUNT_F_EMPTY_PATH, "MOVE_MOUNT_F_EMPTY_PATH"}, {unix.MOVE_MOUNT_T_EMPTY_PATH, "MOVE_MOUNT_T_EMPTY_PATH"},
	}}
	umountNames   = &Names{names: []name{{unix.MNT_DETACH, "MNT_DETACH"}}}
	modeNames     = &Names{Enum: false, names: []name{{unix.S_IFCHR, "S_IFCHR"}, {unix.S_IFREG, "S_IFREG"}, {unix.S_IFIFO, "S_IFIFO"}, {unix.S_IFDIR, "S_IFDIR"}}}
	closeNames    = &Names{names: []name{{unix.CLOSE_RANGE_CLOEXEC, "CLOSE_RANGE_CLOEXEC"}}}
	fsconfigNames = &Names{Enum: true, names: []name{
		{unix.FSCONFIG_SET_FLAG, "FSCONFIG_SET_FLAG"}, {unix.FSCONFIG_SET_STRING, "FSCONFIG_SET_STRING"}, {unix.FSCONFIG_SET_FD, "FSCONFIG_SET_FD"}, {unix.FSCONFIG_CMD_CREATE, "FSCONFIG_CMD_CREATE"},
	}}
	prctlNames = &Names{Enum: true, names: []name{
		{unix.PR_CAPBSET_DROP, "PR_CAPBSET_DROP"}, {unix.PR_SET_KEEPCAPS, "PR_SET_KEEPCAPS"}, {unix.PR_SET_NO_NEW_PRIVS, "PR_SET_NO_NEW_PRIVS"},
		{unix.PR_CAP_AMBIENT, "PR_CAP_AMBIENT"}, {unix.PR_SET_DUMPABLE, "PR_SET_DUMPABLE"}, {unix.PR_SET_NAME, "PR_SET_NAME"},
	}}
	ioctlNames = &Names{Enum: true, names: []name{
		{unix.TIOCSPTLCK, "TIOCSPTLCK"}, {unix.TIOCGPTPEER, "TIOCGPTPEER"}, {unix.TIOCSCTTY, "TIOCSCTTY"}, {unix.TIOCSWINSZ, "TIOCSWINSZ"},
	}}
	resolveNames = &Names{names: []name{
		{unix.RESOLVE_IN_ROOT, "RESOLVE_IN_ROOT"}, {unix.RESOLVE_BENEATH, "RESOLVE_BENEATH"}, {unix.RESOLVE_NO_MAGICLINKS, "RESOLVE_NO_MAGICLINKS"},
		{unix.RESOLVE_NO_SYMLINKS, "RESOLVE_NO_SYMLINKS"}, {unix.RESOLVE_NO_XDEV, "RESOLVE_NO_XDEV"},
	}}
	maxNames = &Names{Enum: true, names: []name{{0xffffffff, "~0"}}}
)
