package plan

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// Option changes what happens after a call.
type Option func(*Call)

// Accept goes on at the next operation when the call fails with one of these.
func Accept(errnos ...unix.Errno) Option {
	return func(c *Call) { c.Accept = errnos }
}

// Else jumps when the call fails with one of these.
func Else(l Label, errnos ...unix.Errno) Option {
	return func(c *Call) { c.Otherwise, c.Accept = l, errnos }
}

// IfZero jumps when the result is 0.
func IfZero(l Label) Option {
	return func(c *Call) { c.Zero = l }
}

// Then jumps when the call succeeded.
func Then(l Label) Option {
	return func(c *Call) { c.Next = l }
}

func (p *Plan) do(nr uintptr, name string, result Reg, options []Option, args ...any) {
	// The call is filled in where it stays: options take its address, so that one on the stack would be made on the heap.
	p.ops = append(p.ops, operation{Call: Call{Nr: nr, Name: name, N: len(args), Result: result}, place: p.place})
	o := &p.ops[len(p.ops)-1]
	copy(o.Args[:], args)
	for _, option := range options {
		option(&o.Call)
	}
	p.settle(o)
}

func words(values ...uint64) []byte {
	var b []byte
	for _, v := range values {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

// Openat opens path into result. O_CLOEXEC is added.
func (p *Plan) Openat(result Reg, dir any, path string, flags int, options ...Option) {
	p.do(unix.SYS_OPENAT, "openat", result, options, dir, path, Flags{uint64(flags | unix.O_CLOEXEC), openNames}, Octal(0))
}

// Openat2 opens path into result with the RESOLVE_ flags of openat2(2), Linux 5.6. O_CLOEXEC is added.
func (p *Plan) Openat2(result Reg, dir any, path string, flags, resolve int, options ...Option) {
	p.do(unix.SYS_OPENAT2, "openat2", result, options, dir, path, OpenHow{flags | unix.O_CLOEXEC, resolve}, 24)
}

// Close closes the descriptor in a register and frees the register.
func (p *Plan) Close(r Reg) {
	p.do(unix.SYS_CLOSE, "close", 0, nil, r)
	p.Free(r)
}

// CloseRange closes, or with CLOSE_RANGE_CLOEXEC marks, all descriptors from first on.
func (p *Plan) CloseRange(first int, flags int) {
	p.do(unix.SYS_CLOSE_RANGE, "close_range", 0, nil, first, Flags{0xffffffff, maxNames}, Flags{uint64(flags), closeNames})
}

// OpenTree opens a mount (Linux 5.2), with OPEN_TREE_CLONE a copy of it. OPEN_TREE_CLOEXEC is added.
func (p *Plan) OpenTree(result Reg, dir any, path string, flags int, options ...Option) {
	p.do(unix.SYS_OPEN_TREE, "open_tree", result, options, dir, path, Flags{uint64(flags | unix.OPEN_TREE_CLOEXEC), openTreeNames})
}

// MoveMount attaches the mount in from at the place in to; both are descriptors.
func (p *Plan) MoveMount(from, to Reg, options ...Option) {
	p.do(unix.SYS_MOVE_MOUNT, "move_mount", 0, options, from, "", to, "", Flags{unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH, moveNames})
}

// MoveMountTo attaches the mount in from at a name in a directory. A symbolic link there is not followed.
func (p *Plan) MoveMountTo(from, dir Reg, name string, options ...Option) {
	p.do(unix.SYS_MOVE_MOUNT, "move_mount", 0, options, from, "", dir, name, Flags{unix.MOVE_MOUNT_F_EMPTY_PATH, moveNames})
}

// MountSetattr sets and clears attributes of a mount, and its propagation (0: as it is).
func (p *Plan) MountSetattr(mount Reg, flags int, set, clear, propagation uint64, options ...Option) {
	p.do(unix.SYS_MOUNT_SETATTR, "mount_setattr", 0, options, mount, "", Flags{uint64(flags | unix.AT_EMPTY_PATH), atNames}, MountAttr{Set: set, Clear: clear, Propagation: propagation}, 32)
}

// MountIdmap has a detached mount show owners as a user namespace, given by descriptor, maps them.
func (p *Plan) MountIdmap(mount Reg, flags, userns int, options ...Option) {
	p.do(unix.SYS_MOUNT_SETATTR, "mount_setattr", 0, options, mount, "", Flags{uint64(flags | unix.AT_EMPTY_PATH), atNames},
		MountAttr{Set: unix.MOUNT_ATTR_IDMAP, UserNS: uint64(userns)}, 32)
}

// Fsopen opens a filesystem context.
func (p *Plan) Fsopen(result Reg, fstype string, options ...Option) {
	p.do(unix.SYS_FSOPEN, "fsopen", result, options, fstype, unix.FSOPEN_CLOEXEC)
}

// FsconfigFlag sets an option that takes no value.
func (p *Plan) FsconfigFlag(fs Reg, key string) {
	p.do(unix.SYS_FSCONFIG, "fsconfig", 0, nil, fs, Flags{unix.FSCONFIG_SET_FLAG, fsconfigNames}, key, 0, 0)
}

// FsconfigString sets an option to a string of at most 255 bytes.
func (p *Plan) FsconfigString(fs Reg, key, value string, options ...Option) {
	p.do(unix.SYS_FSCONFIG, "fsconfig", 0, options, fs, Flags{unix.FSCONFIG_SET_STRING, fsconfigNames}, key, value, 0)
}

// FsconfigFd sets an option to a descriptor.
func (p *Plan) FsconfigFd(fs Reg, key string, fd any) {
	p.do(unix.SYS_FSCONFIG, "fsconfig", 0, nil, fs, Flags{unix.FSCONFIG_SET_FD, fsconfigNames}, key, 0, fd)
}

// FsconfigCreate makes the superblock.
func (p *Plan) FsconfigCreate(fs Reg, options ...Option) {
	p.do(unix.SYS_FSCONFIG, "fsconfig", 0, options, fs, Flags{unix.FSCONFIG_CMD_CREATE, fsconfigNames}, 0, 0, 0)
}

// Fsmount makes a detached mount of the superblock.
func (p *Plan) Fsmount(result, fs Reg, attributes uint64, options ...Option) {
	p.do(unix.SYS_FSMOUNT, "fsmount", result, options, fs, unix.FSMOUNT_CLOEXEC, Flags{attributes, attrNames})
}

// Mount is mount(2).
func (p *Plan) Mount(source, target, fstype string, flags uint64, data string, options ...Option) {
	p.do(unix.SYS_MOUNT, "mount", 0, options, source, target, fstype, Flags{flags, mountNames}, data)
}

// Umount detaches the mount at target.
func (p *Plan) Umount(target string) {
	p.do(unix.SYS_UMOUNT2, "umount2", 0, nil, target, Flags{unix.MNT_DETACH, umountNames})
}

// PivotRoot is pivot_root(".", "."): the new root is the working directory, the old one comes to lie on top of it.
func (p *Plan) PivotRoot() {
	p.do(unix.SYS_PIVOT_ROOT, "pivot_root", 0, nil, ".", ".")
}

// Mkdirat makes a directory.
func (p *Plan) Mkdirat(dir any, path string, mode int, options ...Option) {
	p.do(unix.SYS_MKDIRAT, "mkdirat", 0, options, dir, path, Octal(mode))
}

// Mknodat makes a file of the type in mode.
func (p *Plan) Mknodat(dir any, path string, mode uint32, device uint64, options ...Option) {
	p.do(unix.SYS_MKNODAT, "mknodat", 0, options, dir, path, Mode(mode), Device(device))
}

// Symlinkat makes a symbolic link.
func (p *Plan) Symlinkat(target string, dir any, path string, options ...Option) {
	p.do(unix.SYS_SYMLINKAT, "symlinkat", 0, options, target, dir, path)
}

// Fchownat changes the owner, of a symbolic link itself.
func (p *Plan) Fchownat(dir any, path string, uid, gid uint32, options ...Option) {
	p.do(unix.SYS_FCHOWNAT, "fchownat", 0, options, dir, path, int(uid), int(gid), Flags{unix.AT_SYMLINK_NOFOLLOW | unix.AT_EMPTY_PATH, atNames})
}

// Chdir changes the working directory to a path.
func (p *Plan) Chdir(path string, options ...Option) {
	p.do(unix.SYS_CHDIR, "chdir", 0, options, path)
}

// Fchdir changes the working directory to a descriptor.
func (p *Plan) Fchdir(dir Reg, options ...Option) {
	p.do(unix.SYS_FCHDIR, "fchdir", 0, options, dir)
}

// Setns joins namespaces: of the type of fd, or with a pidfd all those in flags.
func (p *Plan) Setns(fd any, flags int) {
	p.do(unix.SYS_SETNS, "setns", 0, nil, fd, Flags{uint64(flags), cloneNames})
}

// Unshare makes namespaces.
func (p *Plan) Unshare(flags int) {
	p.do(unix.SYS_UNSHARE, "unshare", 0, nil, Flags{uint64(flags), cloneNames})
}

// Clone makes a process by clone3: 0 in the child, its pid in the parent. With CLONE_PARENT it is a child of the stage's parent.
func (p *Plan) Clone(result Reg, flags int, options ...Option) {
	signal := uint64(unix.SIGCHLD)
	if flags&unix.CLONE_PARENT != 0 {
		signal = 0 // the kernel wants it unset: it is inherited
	}
	text := "{" + cloneNames.text(uint64(flags)) + "}"
	p.do(unix.SYS_CLONE3, "clone3", result, options, Struct{words(uint64(flags), 0, 0, 0, signal, 0, 0, 0), text}, 64)
}

// Wait waits for a child.
func (p *Plan) Wait(pid Reg) {
	p.do(unix.SYS_WAIT4, "wait4", 0, nil, pid, 0, 0, 0)
}

// WriteString writes a string.
func (p *Plan) WriteString(fd any, s string, options ...Option) {
	p.do(unix.SYS_WRITE, "write", 0, options, fd, s, len(s))
}

// WriteReg writes the eight bytes of a register.
func (p *Plan) WriteReg(fd int, r Reg) {
	p.do(unix.SYS_WRITE, "write", 0, nil, fd, Address(r), 8)
}

// Await reads one byte; the result is 0 at the end of the file.
func (p *Plan) Await(fd int, options ...Option) {
	scratch := p.Reg()
	p.do(unix.SYS_READ, "read", 0, options, fd, Address(scratch), 1)
	p.Free(scratch)
}

// Getpid puts the process's own pid, never 0, into result; as an operation that cannot fail it carries jumps.
func (p *Plan) Getpid(result Reg, options ...Option) {
	p.do(unix.SYS_GETPID, "getpid", result, options)
}

// Prctl is prctl(2).
func (p *Plan) Prctl(option int, args [4]int, options ...Option) {
	p.do(unix.SYS_PRCTL, "prctl", 0, options, Flags{uint64(option), prctlNames}, args[0], args[1], args[2], args[3])
}

// SetName sets the name that ps shows until execve.
func (p *Plan) SetName(s string) {
	p.do(unix.SYS_PRCTL, "prctl", 0, nil, Flags{unix.PR_SET_NAME, prctlNames}, s)
}

// Ioctl is ioctl(2) with a number, string of bytes or structure as its argument.
func (p *Plan) Ioctl(result Reg, fd Reg, request int, arg any) {
	p.do(unix.SYS_IOCTL, "ioctl", result, nil, fd, Flags{uint64(request), ioctlNames}, arg)
}

// Dup3 makes to, a number, a copy of the descriptor in a register.
func (p *Plan) Dup3(from Reg, to int) {
	p.do(unix.SYS_DUP3, "dup3", 0, nil, from, to, 0)
}

// Simple appends a call whose arguments are plain.
func (p *Plan) Simple(nr uintptr, name string, args ...any) {
	p.do(nr, name, 0, nil, args...)
}

// SimpleOr is Simple with options.
func (p *Plan) SimpleOr(options []Option, nr uintptr, name string, args ...any) {
	p.do(nr, name, 0, options, args...)
}

// Prlimit sets a limit of the calling process.
func (p *Plan) Prlimit(resource int, title string, soft, hard uint64) {
	p.do(unix.SYS_PRLIMIT64, "prlimit64", 0, nil, 0, Flags{uint64(resource), &Names{Enum: true, names: []name{{uint64(resource), title}}}},
		Struct{words(soft, hard), fmt.Sprintf("{%d, %d}", soft, hard)}, 0)
}

// Setgroups sets the supplementary groups.
func (p *Plan) Setgroups(groups []uint32) {
	var b []byte
	for _, g := range groups {
		b = binary.LittleEndian.AppendUint32(b, g)
	}
	p.do(unix.SYS_SETGROUPS, "setgroups", 0, nil, len(groups), Struct{b, fmt.Sprint(groups)})
}

// Capset sets the three sets of the calling process.
func (p *Plan) Capset(effective, permitted, inheritable uint64) {
	head := binary.LittleEndian.AppendUint64(nil, unix.LINUX_CAPABILITY_VERSION_3) // version, pid 0
	var b []byte
	for shift := 0; shift <= 32; shift += 32 {
		for _, set := range []uint64{effective, permitted, inheritable} {
			b = binary.LittleEndian.AppendUint32(b, uint32(set>>shift))
		}
	}
	p.do(unix.SYS_CAPSET, "capset", 0, nil, Struct{head, "v3"}, Struct{b, fmt.Sprintf("{%#x, %#x, %#x}", effective, permitted, inheritable)})
}

// Seccomp installs a filter.
func (p *Plan) Seccomp(filter []unix.SockFilter, flags uint32) {
	var code []byte
	for _, f := range filter {
		code = binary.LittleEndian.AppendUint16(code, f.Code)
		code = append(code, f.Jt, f.Jf)
		code = binary.LittleEndian.AppendUint32(code, f.K)
	}
	p.do(unix.SYS_SECCOMP, "seccomp", 0, nil, unix.SECCOMP_SET_MODE_FILTER, int(flags),
		Pointer{Head: words(uint64(len(filter))), To: code, Text: fmt.Sprintf("[%d instructions]", len(filter))})
}

// Execve becomes another program.
func (p *Plan) Execve(path string, argv, env []string, options ...Option) {
	p.do(unix.SYS_EXECVE, "execve", 0, options, path, argv, env)
}

// Exit ends the process.
func (p *Plan) Exit(code int) {
	p.do(unix.SYS_EXIT_GROUP, "exit_group", 0, nil, code)
}
