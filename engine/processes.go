package engine

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/internal/cgstat"
	"github.com/criserver/criserver/internal/procstat"
)

// ProcessUsage is what the processes of a container have open.
type ProcessUsage struct {
	Processes, Threads   uint64
	Descriptors, Sockets uint64
	// MaxOpenFiles is the soft limit of the container's first process, -1 for none.
	MaxOpenFiles int64
	// ThreadsMax is how many threads the machine can have.
	ThreadsMax uint64
}

// readProcesses looks at each process of a cgroup in /proc. One that ends meanwhile is left out.
func readProcesses(host *cgstat.Host, cgroupsPath string, init int) (*ProcessUsage, error) {
	pids, err := host.Processes(cgroupsPath)
	if err != nil {
		return nil, err
	}
	u := &ProcessUsage{ThreadsMax: threadsMax()}
	for _, pid := range pids {
		dir := "/proc/" + strconv.Itoa(pid)
		threads, ok := threadsOf(dir)
		if !ok {
			continue
		}
		u.Processes++
		u.Threads += threads
		descriptors, sockets := descriptorsOf(dir + "/fd")
		u.Descriptors += descriptors
		u.Sockets += sockets
	}
	var limit unix.Rlimit
	if init > 0 && unix.Prlimit(init, unix.RLIMIT_NOFILE, nil, &limit) == nil {
		u.MaxOpenFiles = -1
		if limit.Cur < 1<<63 {
			u.MaxOpenFiles = int64(limit.Cur)
		}
	}
	return u, nil
}

// threadsOf reads num_threads.
func threadsOf(dir string) (uint64, bool) {
	data, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(procstat.Parse(data).Field(procstat.Threads), 10, 64)
	return n, err == nil
}

func descriptorsOf(dir string) (descriptors, sockets uint64) {
	d, err := os.Open(dir)
	if err != nil {
		return 0, 0
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	var target [len("socket:")]byte
	for _, name := range names {
		n, err := unix.Readlinkat(int(d.Fd()), name, target[:])
		if err == nil && string(target[:n]) == "socket:" {
			sockets++
		}
	}
	return uint64(len(names)), sockets
}

func threadsMax() uint64 {
	data, err := os.ReadFile("/proc/sys/kernel/threads-max")
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
	return n
}
