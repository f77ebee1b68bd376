package keeper

import (
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ExitFile is the name of an exit record in a container's directory.
const ExitFile = "exit.json"

// childInfo is siginfo_t as waitid(2) fills it on 64-bit Linux (include/uapi/asm-generic/siginfo.h, _sigchld).
type childInfo struct {
	signo, errno, code, _ int32
	pid                   int32
	uid                   uint32
	status                int32
	_                     [100]byte
}

// Status is how a process ended.
type Status struct {
	PID  int
	Code int // exit status, or 128+n for signal n
}

// Wait calls waitid(2). With WNOHANG and nobody ended the answer has PID 0.
func Wait(idType, id, options int) (Status, error) {
	var info childInfo
	for {
		err := unix.Waitid(idType, id, (*unix.Siginfo)(unsafe.Pointer(&info)), options, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return Status{}, err
		}
		break
	}
	const exited = 1 // CLD_EXITED; the others of WEXITED are CLD_KILLED and CLD_DUMPED
	s := Status{PID: int(info.pid), Code: int(info.status)}
	if info.pid != 0 && info.code != exited {
		s.Code += 128
	}
	return s, nil
}

// FormatExit encodes an exit record. At is in nanoseconds since the epoch; reason is plain text without quotes.
func FormatExit(code int, at int64, oomKilled bool, reason string) []byte {
	b := make([]byte, 0, 96)
	b = append(b, `{"code":`...)
	b = strconv.AppendInt(b, int64(code), 10)
	b = append(b, `,"exitedAt":`...)
	b = strconv.AppendInt(b, at, 10)
	b = append(b, `,"oomKilled":`...)
	b = strconv.AppendBool(b, oomKilled)
	b = append(b, `,"reason":`...)
	b = strconv.AppendQuote(b, reason)
	return append(b, "}\n"...)
}

// WriteExit writes dir/exit.json by way of a temporary file. EEXIST means that there is a record, which stays as it is.
// Linux 3.15 for RENAME_NOREPLACE.
func WriteExit(dir string, record []byte) error {
	d, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(d)
	temporary := ".tmp-exit-" + strconv.Itoa(unix.Getpid())
	fd, err := unix.Openat(d, temporary, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	n, err := unix.Write(fd, record)
	if err == nil && n < len(record) {
		err = unix.ENOSPC
	}
	_ = unix.Close(fd)
	if err == nil {
		err = unix.Renameat2(d, temporary, d, ExitFile, unix.RENAME_NOREPLACE)
	}
	if err != nil {
		_ = unix.Unlinkat(d, temporary, 0)
	}
	return err
}
