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
	b := make([]byte, 1024) // the program's mappings are the first ones
	n, _ := unix.Read(fd, b)
	_ = unix.Close(fd)
	if n <= 0 {
		return
	}
	var mapped [][2]uintptr
	for line := range strings.SplitSeq(string(b[:n]), "\n") {
		fields := strings.Fields(line)
		if len(fields) < 6 || fields[1][1] != '-' || fields[5][0] != '/' { // a program that was replaced is followed by "(deleted)"
			continue
		}
		from, to, _ := strings.Cut(fields[0], "-")
		start, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if err1 == nil && err2 == nil && end > start {
			mapped = append(mapped, [2]uintptr{uintptr(start), uintptr(end)})
		}
	}
	// At last, and nothing after it: what runs now comes back, and brings its neighbours (the kernel maps 64 KiB around a fault).
	for _, m := range mapped {
		_, _, _ = unix.RawSyscall(unix.SYS_MADVISE, m[0], m[1]-m[0], unix.MADV_DONTNEED)
	}
}
