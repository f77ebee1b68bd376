// Package cgstat reads what the kernel counts for a cgroup, on v1, on the hybrid layout and on v2.
//
// It is made for many cgroups in a row: the mount table is read once, a cgroup's directory is opened once a reading, and
// files are parsed without allocation. Values are those of the cgroup with all below it.
package cgstat

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Detail says how much is read.
type Detail int

const (
	// Basic is CPU, Memory and the pressures: what is asked for every few seconds.
	Basic Detail = iota
	// Full is all of a Sample.
	Full
)

// Sample is one reading. What the kernel or the cgroup lacks is nil, or has a zero value.
type Sample struct {
	// At is when the CPU usage was read.
	At     time.Time
	CPU    CPU
	Memory *Memory

	// The pressures are nil where the kernel has none (no PSI, or no unified hierarchy).
	CPUPressure, MemoryPressure, IOPressure *Pressure

	// What follows is filled by a Full reading.
	Pids    *Pids
	Devices []Device // in the order of their numbers
	HugeTLB []HugeTLB
	// OOMKills is how many processes the kernel killed for want of memory.
	OOMKills uint64
}

// CPU is time in nanoseconds.
type CPU struct {
	Usage, User, System uint64
	// Periods are those in which the quota applied, Throttled those in which it was used up, and ThrottledTime how long tasks waited.
	Periods, Throttled, ThrottledTime uint64
}

// Memory is in bytes. A Limit of 0 is none.
type Memory struct {
	Usage, Limit             uint64
	Anon, File, Mapped       uint64
	ActiveFile, InactiveFile uint64
	Swap, SwapLimit          uint64
	// HasSwap says that swap is accounted for at all, SwapLimited that SwapLimit, which may be 0, is a limit.
	HasSwap, SwapLimited    bool
	PageFaults, MajorFaults uint64
	// OwnPageFaults and OwnMajorFaults leave out the cgroups below. V2 does not tell them apart: they are then the same.
	OwnPageFaults, OwnMajorFaults uint64
	// What follows is filled by a Full reading. Failures counts how often the limit was hit.
	Peak, Kernel, Failures uint64
}

// WorkingSet is what cannot be taken back easily: usage without the file pages that were not used lately.
func (m *Memory) WorkingSet() uint64 {
	if m.InactiveFile >= m.Usage {
		return 0
	}
	return m.Usage - m.InactiveFile
}

// Available is what is left of the limit; false without a limit.
func (m *Memory) Available() (uint64, bool) {
	if m.Limit == 0 {
		return 0, false
	}
	return m.Limit - min(m.Limit, m.WorkingSet()), true
}

// SwapAllowed is how much may be swapped out; false without a limit.
func (m *Memory) SwapAllowed() (uint64, bool) { return m.SwapLimit, m.SwapLimited }

// Pids are tasks, so threads count. A limit of 0 is none.
type Pids struct{ Current, Limit uint64 }

// Pressure says how long tasks were held up for want of something (Documentation/accounting/psi.rst).
type Pressure struct{ Some, Full Stall }

// Stall is the share of time in percent, averaged over 10, 60 and 300 s, and the sum of all time in nanoseconds.
type Stall struct {
	Avg10, Avg60, Avg300 float64
	Total                uint64
}

// Device is what went to and from a block device.
type Device struct {
	Major, Minor                         uint32
	ReadBytes, WriteBytes, Reads, Writes uint64
	DiscardBytes, Discards               uint64
}

// HugeTLB is the use of pages of one size ("2MB"). Peak is 0 where the kernel does not keep it (v2).
type HugeTLB struct {
	PageSize              string
	Usage, Peak, Failures uint64
}

// Host is what cgroups this machine has. It is immutable and may be used concurrently.
type Host struct {
	// v1 are the hierarchies of controllers; several controllers may share one.
	v1      map[string]*tree
	unified *tree
	pages   []string // sizes of huge pages
}

// tree is a mounted hierarchy; root is an O_PATH descriptor held for the life of the process.
type tree struct {
	path string
	root int
}

// Machine is the host that this process runs on. The mount table is read by the first call only.
var Machine = sync.OnceValues(func() (*Host, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("read the mount table to find cgroup hierarchies: %w", err)
	}
	return open(mounts)
})

// wanted are the v1 controllers that are read.
var wanted = []string{"cpu", "cpuacct", "memory", "pids", "blkio", "hugetlb"}

// open finds the hierarchies; of one that is mounted more than once the first mount is used.
func open(mounts []*mountinfo.Info) (*Host, error) {
	h := &Host{v1: map[string]*tree{}, pages: pageSizes("/sys/kernel/mm/hugepages")}
	for _, m := range mounts {
		t := &tree{path: m.Mountpoint, root: -1}
		switch {
		case m.FSType == "cgroup2" && h.unified == nil:
			h.unified = t
		case m.FSType == "cgroup":
			used := false
			for option := range strings.SplitSeq(m.VFSOptions, ",") {
				if slices.Contains(wanted, option) && h.v1[option] == nil {
					h.v1[option], used = t, true
				}
			}
			if !used {
				continue
			}
		default:
			continue
		}
		var err error
		if t.root, err = unix.Open(t.path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
			return nil, fmt.Errorf("open cgroup hierarchy %s: %w", t.path, err)
		}
	}
	if h.unified == nil && h.v1["cpuacct"] == nil {
		return nil, fmt.Errorf("no cgroup hierarchy counts CPU time (mount cgroup2 on /sys/fs/cgroup): %w", errdefs.ErrFailedPrecondition)
	}
	return h, nil
}

// Mode is "v2", "v1", or "hybrid" for v1 beside the unified hierarchy.
func (h *Host) Mode() string {
	switch {
	case len(h.v1) == 0:
		return "v2"
	case h.unified == nil:
		return "v1"
	}
	return "hybrid"
}

// Read reads the cgroup of linux.cgroupsPath of an OCI spec, in the form of cgroupfs or of systemd. fs.ErrNotExist when it
// is not there, or went away meanwhile.
func (h *Host) Read(cgroupsPath string, detail Detail) (*Sample, error) {
	rel, err := Relative(cgroupsPath)
	if err != nil {
		return nil, err
	}
	s := &Sample{}
	r := newReader()
	defer r.done()
	if len(h.v1) == 0 {
		err = h.readV2(r, rel, detail, s)
	} else {
		err = h.readV1(r, rel, detail, s)
	}
	if err != nil {
		return nil, fmt.Errorf("read cgroup %s: %w", cgroupsPath, err)
	}
	return s, nil
}

// reader reads files of a cgroup into one buffer, which is valid until the next file.
type reader struct {
	buffer []byte
	dir    int
}

var readers = sync.Pool{New: func() any { return &reader{buffer: make([]byte, 16<<10), dir: -1} }}

func newReader() *reader { return readers.Get().(*reader) }

func (r *reader) done() {
	r.leave()
	readers.Put(r)
}

// enter opens a cgroup in a hierarchy; files are then read from it.
func (r *reader) enter(t *tree, rel string) error {
	r.leave()
	if t == nil {
		return fs.ErrNotExist
	}
	fd, err := unix.Openat2(t.root, rel, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return &os.PathError{Op: "open", Path: t.path + "/" + rel, Err: err}
	}
	r.dir = fd
	return nil
}

func (r *reader) leave() {
	if r.dir >= 0 {
		unix.Close(r.dir)
		r.dir = -1
	}
}

// wholeBelow is how short a read must be to be the last one: the kernel ends one early only where the next record does not fit
// into its page (fs/seq_file.c), and no record of these files is that long. Asking for the end would cost a call for each file.
const wholeBelow = 2048

// file is the content of a file; nil when there is none, which is no error: a controller may not be enabled, and a
// cgroup may go at any time.
func (r *reader) file(name string) ([]byte, error) {
	fd, err := unix.Openat(r.dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, absent(name, err)
	}
	defer unix.Close(fd)
	n := 0
	for {
		if n == len(r.buffer) {
			r.buffer = append(r.buffer, make([]byte, len(r.buffer))...)
		}
		m, err := unix.Read(fd, r.buffer[n:])
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return nil, absent(name, err)
		}
		n += m
		if m < wholeBelow && n < len(r.buffer) {
			return r.buffer[:n], nil
		}
	}
}

// absent hides errors that say that there is nothing to read. EOPNOTSUPP is that of a pressure file without PSI.
func absent(name string, err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return &os.PathError{Op: "read", Path: name, Err: err}
}

// number is the one number of a file, 0 for "max" and for a file that is not there.
func (r *reader) number(name string) (uint64, bool, error) {
	data, err := r.file(name)
	if err != nil || data == nil {
		return 0, false, err
	}
	n, err := parseNumber(data)
	if err != nil {
		return 0, false, fmt.Errorf("%s: %w", name, err)
	}
	return n, true, nil
}

func (r *reader) pressure(name string) (*Pressure, error) {
	data, err := r.file(name)
	if err != nil || data == nil {
		return nil, err
	}
	p, err := parsePressure(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return p, nil
}

func (r *reader) pressures(s *Sample) (err error) {
	if s.CPUPressure, err = r.pressure("cpu.pressure"); err != nil || s.CPUPressure == nil {
		return err // without the one there is none
	}
	if s.MemoryPressure, err = r.pressure("memory.pressure"); err != nil {
		return err
	}
	s.IOPressure, err = r.pressure("io.pressure")
	return err
}

// Add adds another cgroup's counters and amounts, with At that of the later reading. Limits, peaks and pressures are left
// out: of those there is no sum.
func (s *Sample) Add(o *Sample) {
	if o.At.After(s.At) {
		s.At = o.At
	}
	s.CPU.Usage += o.CPU.Usage
	s.CPU.User += o.CPU.User
	s.CPU.System += o.CPU.System
	s.CPU.Periods += o.CPU.Periods
	s.CPU.Throttled += o.CPU.Throttled
	s.CPU.ThrottledTime += o.CPU.ThrottledTime
	s.OOMKills += o.OOMKills
	if o.Memory == nil {
		return
	}
	if s.Memory == nil {
		s.Memory = &Memory{}
	}
	s.Memory.add(o.Memory)
}

func (m *Memory) add(o *Memory) {
	m.HasSwap = m.HasSwap || o.HasSwap
	for _, pair := range []struct {
		to   *uint64
		more uint64
	}{
		{&m.Usage, o.Usage}, {&m.Anon, o.Anon}, {&m.File, o.File}, {&m.Mapped, o.Mapped}, {&m.ActiveFile, o.ActiveFile},
		{&m.InactiveFile, o.InactiveFile}, {&m.Swap, o.Swap}, {&m.PageFaults, o.PageFaults}, {&m.MajorFaults, o.MajorFaults},
		{&m.OwnPageFaults, o.OwnPageFaults}, {&m.OwnMajorFaults, o.OwnMajorFaults}, {&m.Kernel, o.Kernel}, {&m.Failures, o.Failures},
	} {
		*pair.to += pair.more
	}
}
