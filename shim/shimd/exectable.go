package shimd

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native/cgroup"
)

// execsFile, in the state directory, tells a later shim which processes this one has executed in containers. It is mapped, so
// that an entry costs a store and no system call: an exec has no time for a round trip to the keeper.
const execsFile = "execs"

// A slot is the pid (0: free), the length of the cgroup's path, when the process ran (CLOCK_BOOTTIME, ns), and that path.
const (
	execSlot     = 512
	execSlots    = 8192
	execPathAt   = 16
	maxExecPath  = execSlot - execPathAt
	execTolerant = time.Minute // between the start of a process and its entry: a stage may be held up in a frozen cgroup
)

// execTable is that file. It is safe for concurrent use.
type execTable struct {
	memory []byte

	mu   sync.Mutex
	free []int // slots that were used and are free again
	next int   // the first that was never used
}

// openExecTable maps the file, which is made when there is none.
func openExecTable(state string) (*execTable, error) {
	path := filepath.Join(state, execsFile)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(execSlots * execSlot); err != nil {
		return nil, err
	}
	memory, err := unix.Mmap(int(f.Fd()), 0, execSlots*execSlot, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	return &execTable{memory: memory}, nil
}

func (t *execTable) close() { _ = unix.Munmap(t.memory) }

func (t *execTable) slot(i int) []byte { return t.memory[i*execSlot:][:execSlot] }

func slotPID(slot []byte) *uint32 { return (*uint32)(unsafe.Pointer(&slot[0])) }

// enter notes a process that runs; leave takes the number back.
func (t *execTable) enter(pid int, cgroupPath string) (int, error) {
	if len(cgroupPath) > maxExecPath {
		return 0, fmt.Errorf("cgroup %s: a path of at most %d bytes is wanted: %w", cgroupPath, maxExecPath, errdefs.ErrInvalidArgument)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	i := t.next
	switch n := len(t.free); {
	case n > 0:
		i, t.free = t.free[n-1], t.free[:n-1]
	case i == execSlots:
		return 0, fmt.Errorf("%d commands run in containers at once, more are not kept track of: %w", execSlots, errdefs.ErrResourceExhausted)
	default:
		t.next++
	}
	slot := t.slot(i)
	binary.NativeEndian.PutUint32(slot[4:], uint32(len(cgroupPath)))
	binary.NativeEndian.PutUint64(slot[8:], uint64(bootTime()))
	copy(slot[execPathAt:], cgroupPath)
	atomic.StoreUint32(slotPID(slot), uint32(pid)) // last: it makes the entry valid
	return i, nil
}

func (t *execTable) leave(i int) {
	atomic.StoreUint32(slotPID(t.slot(i)), 0)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.free = append(t.free, i)
}

// endLeft kills what an earlier shim has left in the table, whose callers are gone, and empties it. It is called before the
// first enter.
func (t *execTable) endLeft() {
	for i := range execSlots {
		slot := t.slot(i)
		pid := int(atomic.LoadUint32(slotPID(slot)))
		if pid == 0 {
			if i%(os.Getpagesize()/execSlot) == 0 && binary.NativeEndian.Uint64(slot[8:]) == 0 {
				return // slots are used from the first on: this page never was
			}
			continue
		}
		length := min(binary.NativeEndian.Uint32(slot[4:]), maxExecPath)
		endExec(pid, time.Duration(binary.NativeEndian.Uint64(slot[8:])), string(slot[execPathAt:][:length]))
		atomic.StoreUint32(slotPID(slot), 0)
	}
}

// endExec kills a process and what it has started, if it is that which was entered at this time, and not one that got its number later.
func endExec(pid int, entered time.Duration, cgroupPath string) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	since := entered - time.Duration(startOf(pid))*tick
	if since < -tick || since > execTolerant || hasEnded(fd, 0) {
		return
	}
	var g *cgroup.Cgroup
	if cgroupPath != "" {
		if g, err = cgroup.New(cgroupPath, nil); err != nil || !g.Contains(pid) {
			return
		}
	}
	killTree(g, pid, fd)
}

// tick is the unit of times in /proc/PID/stat; it is the same on all architectures (USER_HZ).
const tick = 10 * time.Millisecond

// bootTime is the time of CLOCK_BOOTTIME.
func bootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
