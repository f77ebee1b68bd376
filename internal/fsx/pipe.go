package fsx

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Pipe makes a pipe of which one end is ours, in Go's poller, and the other a process's, which blocks. os.Pipe puts both into
// the poller, and taking one out again costs three more calls.
func Pipe(ours int) (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	if err := unix.SetNonblock(fds[ours], true); err != nil {
		return nil, nil, errors.Join(err, unix.Close(fds[0]), unix.Close(fds[1]))
	}
	return os.NewFile(uintptr(fds[0]), "|0"), os.NewFile(uintptr(fds[1]), "|1"), nil
}
