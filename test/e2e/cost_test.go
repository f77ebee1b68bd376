package e2e

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// costLimits are the most system calls, by kind, that our processes and those of the container until its program runs may
// make for one operation: a bit more than they did when this was written. They do not depend on the machine's speed. Who
// makes something cheaper lowers them (the test's log has the table); who exceeds one has put work on the hot path.
//
// Rounds of the scheduler, the poller and the garbage collector are not counted, as they depend on time.
var costLimits = map[string]costs{
	"pod up":   {exec: 2, process: 1, sync: 0, mount: 112, file: 61, open: 76, transfer: 180, other: 420},
	"exec":     {exec: 2, process: 2, sync: 0, mount: 1, file: 0, open: 14, transfer: 48, other: 190},
	"pod down": {exec: 0, process: 0, sync: 0, mount: 2, file: 68, open: 38, transfer: 145, other: 155},
}

// costs are system calls by kind.
type costs struct {
	exec     int // programs executed: the stage for a container or exec, the workload
	process  int // processes made, threads not
	sync     int // fsync and its like
	mount    int // mounts made, moved, changed, and taken away
	file     int // names made, removed and renamed
	open     int
	transfer int // reads and writes
	other    int
}

// costKinds says of what kind a system call is. What is not here is of the kind other; "" is not counted.
var costKinds = map[string]string{}

func init() {
	for kind, names := range map[string]string{
		"exec":    "execve execveat",
		"process": "clone clone3 fork vfork",
		"sync":    "fsync fdatasync sync syncfs sync_file_range msync",
		"mount": "mount umount2 fsopen fsconfig fsmount fspick move_mount open_tree mount_setattr pivot_root " +
			"unshare setns",
		"file": "mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 mknod mknodat symlink symlinkat link linkat " +
			"chmod fchmod fchmodat fchmodat2 chown fchown fchownat lchown",
		"open":     "open openat openat2",
		"transfer": "read pread64 readv write pwrite64 writev sendto sendmsg recvfrom recvmsg getdents64 readlinkat copy_file_range",
		"": "futex epoll_pwait epoll_wait epoll_pwait2 nanosleep clock_nanosleep sched_yield madvise tgkill getpid rt_sigreturn " +
			"rt_sigprocmask restart_syscall mmap munmap mprotect brk sigaltstack gettid sched_getaffinity timer_settime exit",
	} {
		for name := range strings.FieldsSeq(names) {
			costKinds[name] = kind
		}
	}
}

func (c *costs) kind(name string) *int {
	switch name {
	case "exec":
		return &c.exec
	case "process":
		return &c.process
	case "sync":
		return &c.sync
	case "mount":
		return &c.mount
	case "file":
		return &c.file
	case "open":
		return &c.open
	case "transfer":
		return &c.transfer
	}
	return &c.other
}

// TestCost counts system calls by strace, because times depend on the machine.
func TestCost(t *testing.T) {
	nativeOnly(t)
	if testing.Short() {
		t.Skip("it needs strace, which the virtual machine lacks; counts are those of the machine's own kernel")
	}
	const rounds = 5
	n := sharedNode(t)
	static := &runtimev1.ImageSpec{Image: image("criserver/bench:latest")} // whose program makes the same few calls everywhere
	if _, err := n.d.Images.PullImage(t.Context(), &runtimev1.PullImageRequest{Image: static}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := n.d.Images.RemoveImage(context.Background(), &runtimev1.RemoveImageRequest{Image: static}); err != nil {
			t.Error(err)
		}
	})
	one := func() *container { // warms up, too
		p := n.runPod(t)
		return p.run(t, func(c *runtimev1.ContainerConfig) { c.Image = static }, command("/bin/sleep", "3600"))
	}
	first := one()
	for range rounds {
		first.output(t, "/bin/true")
	}
	tr := startTrace(t, n)
	var all []*container
	tr.window("pod up", func() {
		for range rounds {
			all = append(all, one())
		}
	})
	tr.window("exec", func() {
		for range rounds {
			first.output(t, "/bin/true")
		}
	})
	tr.window("pod down", func() {
		for _, c := range all {
			c.stop(t, 0)
			c.remove(t)
			if err := c.p.down(); err != nil {
				t.Error(err)
			}
		}
	})
	found := tr.count()
	tr.stop()
	for operation, counted := range found {
		counted.judge(t, operation, rounds, costLimits[operation])
	}
}

// trace is a running strace of our three processes.
type trace struct {
	t       *testing.T
	cmd     *exec.Cmd
	path    string
	ours    map[int]string // our processes' threads
	windows []window
}

// window is a time in which an operation was made.
type window struct {
	name       string
	start, end time.Time
}

func startTrace(t *testing.T, n *node) *trace {
	t.Helper()
	program, err := exec.LookPath("strace")
	if err != nil {
		t.Fatalf("%v (Debian: apt-get install strace)", err)
	}
	tr := &trace{t: t, path: filepath.Join(t.TempDir(), "trace"), ours: map[int]string{}}
	args := []string{"-f", "-ttt", "-s", "48", "-o", tr.path}
	for name, pid := range map[string]int{"daemon": n.d.PID(), "shim": n.d.ShimPID(), "keeper": n.d.KeeperPID()} {
		args = append(args, "-p", strconv.Itoa(pid))
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			tid, _ := strconv.Atoi(task.Name())
			tr.ours[tid] = name
		}
	}
	tr.cmd = exec.Command(program, args...)
	var said bytes.Buffer
	tr.cmd.Stderr = &said
	if err := tr.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tr.stop)
	eventually(t, 10*time.Second, func() error {
		for tid := range tr.ours {
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
			if err == nil && bytes.Contains(status, []byte("TracerPid:\t0\n")) {
				return fmt.Errorf("%s %d is not traced yet", tr.ours[tid], tid)
			}
		}
		return nil
	})
	return tr
}

// window does an operation, and gives what is done behind the answer some time.
func (tr *trace) window(name string, do func()) {
	w := window{name: name, start: time.Now()}
	do()
	time.Sleep(300 * time.Millisecond)
	w.end = time.Now()
	tr.windows = append(tr.windows, w)
}

// stop lets go of the traced processes; it may be called again.
func (tr *trace) stop() {
	if tr.cmd.ProcessState == nil {
		_ = tr.cmd.Process.Signal(syscall.SIGINT)
		_ = tr.cmd.Wait() // by that signal
	}
}

// counted are system calls by process and name.
type counted map[string]map[string]int

// traced is a line of strace: thread, time, and call. Resumed calls were counted when they began.
var traced = regexp.MustCompile(`^(\d+) +(\d+\.\d+) (\w+)\((.*)`)

// count counts by operation.
func (tr *trace) count() map[string]counted {
	text, err := os.ReadFile(tr.path) // written line by line; who is who can be asked as long as they live
	if err != nil {
		tr.t.Fatal(err)
	}
	all := map[string]counted{}
	for _, w := range tr.windows {
		all[w.name] = counted{}
	}
	for line := range strings.Lines(string(text)) {
		m := traced.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil {
			continue
		}
		tid, _ := strconv.Atoi(m[1])
		at, _ := strconv.ParseFloat(m[2], 64)
		name := m[3]
		kind, known := costKinds[name]
		if known && kind == "" || kind == "process" && strings.Contains(m[4], "CLONE_THREAD") {
			continue
		}
		process := tr.process(tid)
		for _, w := range tr.windows {
			if at >= float64(w.start.UnixNano())/1e9 && at <= float64(w.end.UnixNano())/1e9 {
				if all[w.name][process] == nil {
					all[w.name][process] = map[string]int{}
				}
				all[w.name][process][name]++
			}
		}
	}
	return all
}

// process is whose a thread is; new threads of ours are found by the process that they belong to. One that ended meanwhile is
// taken for the stage's, which changes no sum.
func (tr *trace) process(tid int) string {
	name, known := tr.ours[tid]
	if !known {
		name = "stage and workload"
		if status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid)); err == nil {
			var group int
			if _, rest, found := strings.Cut(string(status), "\nTgid:"); found {
				_, _ = fmt.Sscan(rest, &group)
			}
			if of := tr.ours[group]; of != "" {
				name = of
			}
		}
		tr.ours[tid] = name
	}
	return name
}

// judge compares the mean of an operation with its limits.
func (c counted) judge(t *testing.T, operation string, rounds int, limit costs) {
	var sum costs
	for _, calls := range c {
		for name, n := range calls {
			*sum.kind(costKinds[name]) += n
		}
	}
	total := 0
	for _, kind := range []string{"exec", "process", "sync", "mount", "file", "open", "transfer", "other"} {
		got := (*sum.kind(kind) + rounds - 1) / rounds
		*sum.kind(kind) = got
		total += got
		if most := *limit.kind(kind); got > most {
			t.Errorf("%s makes %d calls of the kind %s, the limit is %d. These are:%s", operation, got, kind, most, c.named(kind, rounds))
		}
	}
	t.Logf("%q: {exec: %d, process: %d, sync: %d, mount: %d, file: %d, open: %d, transfer: %d, other: %d}, // %d in all",
		operation, sum.exec, sum.process, sum.sync, sum.mount, sum.file, sum.open, sum.transfer, sum.other, total)
}

// named lists the calls of a kind by process, the most frequent first.
func (c counted) named(kind string, rounds int) string {
	var b strings.Builder
	for _, process := range slices.Sorted(maps.Keys(c)) {
		names := slices.DeleteFunc(slices.Collect(maps.Keys(c[process])), func(name string) bool {
			of := costKinds[name]
			return of != kind && !(of == "" && kind == "other")
		})
		slices.SortFunc(names, func(x, y string) int { return c[process][y] - c[process][x] })
		for i, name := range names {
			if i == 0 {
				fmt.Fprintf(&b, "\n  %s:", process)
			}
			fmt.Fprintf(&b, " %s %.1f", name, float64(c[process][name])/float64(rounds))
		}
	}
	return b.String()
}
