package idle

import (
	"os"
	"slices"
	"strconv"
)

// monitorSlack is how late the monitor may wake up, in nanoseconds.
const monitorSlack = 1000000

// SlowMonitor lets the thread that watches over Go's scheduler wake up later than it asks for. While a process has something to do
// that thread sleeps for 20 µs again and again, and what it does between is next to nothing: in processes that wait
// for the kernel most of the time, as ours do, it took a sixth of their CPU time. What is late by up to a millisecond is that
// the scheduler notices a thread that is stuck in a system call. To be called first in main. It is a hint: errors are ignored.
func SlowMonitor() {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	var ids []int
	for _, t := range threads {
		if id, err := strconv.Atoi(t.Name()); err == nil && id != os.Getpid() {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return
	}
	// The runtime makes this thread before any other (runtime.main). A file of this name is not in task/ID (proc_pid_timerslack_ns(5)).
	_ = os.WriteFile("/proc/"+strconv.Itoa(slices.Min(ids))+"/timerslack_ns", strconv.AppendInt(nil, monitorSlack, 10), 0)
}
