// Package trim unmaps what a program does not need to keep mapped. It imports little, for the keeper's sake.
package trim

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Text unmaps the pages of the program's file, which are clean: those that are used again come back from the page cache.
func Text() {
	fd, err := unix.Open("/proc/self/maps", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	b := make([]byte, 1024) // the program's mappings are the first ones
	n, _ := unix.Read(fd, b)
	if n <= 0 {
		return
	}
	for line := range strings.SplitSeq(string(b[:n]), "\n") {
		fields := strings.Fields(line)
		if len(fields) != 6 || fields[1][1] != '-' || fields[5][0] != '/' {
			continue
		}
		from, to, _ := strings.Cut(fields[0], "-")
		start, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if err1 == nil && err2 == nil && end > start {
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, uintptr(start), uintptr(end-start), unix.MADV_DONTNEED)
		}
	}
}
