// Package stage holds the program that runs plans (stage.c) and starts it.
package stage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/internal/fsx"
	"github.com/criserver/criserver/shim/native/plan"
)

// The descriptors of a stage. What the plan joins or uses besides comes after them.
const (
	Plan   = 3 // closed by the stage once it is mapped
	Report = 4 // eight bytes a message, see Message
	Start  = 5 // the read end of a pipe
	Extra  = 6 // the first of Options.Extra

	highestExtra = 255
)

// Stage is the program, in a sealed memfd: a container that opens /proc/PID/exe finds nothing that it could write.
// It is safe for concurrent use.
type Stage struct {
	program *os.File
	path    string
}

// Open seals the program.
func Open() (*Stage, error) {
	fd, err := unix.MemfdCreate("stage", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // MFD_EXEC is of Linux 6.3
		fd, err = unix.MemfdCreate("stage", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fmt.Errorf("memfd for the stage: %w", err)
	}
	writable := os.NewFile(uintptr(fd), "stage")
	defer writable.Close()
	if _, err := writable.Write(program); err != nil {
		return nil, fmt.Errorf("memfd for the stage: %w", err)
	}
	if _, err := unix.FcntlInt(writable.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE); err != nil {
		return nil, fmt.Errorf("seal the stage: %w", err)
	}
	// A descriptor open for writing would make execve fail with ETXTBSY.
	readable, err := os.Open("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return nil, err
	}
	defer readable.Close()
	// The number must be out of the way: those from 0 on are given away before execve opens the path.
	high, err := unix.FcntlInt(readable.Fd(), unix.F_DUPFD_CLOEXEC, highestExtra+1)
	if err != nil {
		return nil, fmt.Errorf("a descriptor for the stage: %w", err)
	}
	return &Stage{program: os.NewFile(uintptr(high), "stage"), path: "/proc/self/fd/" + strconv.Itoa(high)}, nil
}

// Close lets go of the program. Stages that run are not affected.
func (s *Stage) Close() error { return s.program.Close() }

// Options say how a stage is started.
type Options struct {
	Stdio      [3]*os.File // not nil
	Extra      []*os.File  // descriptors Extra, Extra+1 ... of the plan
	Cloneflags uintptr     // namespaces to start in; CLONE_NEWUSER is not for here
	Unstopped  bool        // the plan does not read Start, and the process has standard input in its place
	CgroupFD   int         // start in this cgroup v2 directory (CLONE_INTO_CGROUP); below 0: in the caller's
}

// Run is a stage that was started. Its methods are for one goroutine at a time.
type Run struct {
	Pid    int
	Pidfd  *os.File
	plan   *plan.Plan
	report *os.File
	start  *os.File // nil with Options.Unstopped
}

// Start starts a stage with a plan. The plan must not be changed after.
func (s *Stage) Start(p *plan.Plan, o Options) (*Run, error) {
	if len(o.Extra) > highestExtra-Extra {
		return nil, fmt.Errorf("%d descriptors for a stage are too many", len(o.Extra))
	}
	code, err := p.Encode()
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("plan", unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // MFD_NOEXEC_SEAL is of Linux 6.3
		fd, err = unix.MemfdCreate("plan", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("memfd for the plan: %w", err)
	}
	defer unix.Close(fd)
	if n, err := unix.Pwrite(fd, code, 0); err != nil || n != len(code) {
		return nil, fmt.Errorf("write the plan: %d of %d bytes: %w", n, len(code), err)
	}
	run := &Run{plan: p}
	var report, start *os.File
	if run.report, report, err = fsx.Pipe(0); err != nil {
		return nil, err
	}
	defer report.Close()
	if start = o.Stdio[0]; !o.Unstopped {
		if start, run.start, err = fsx.Pipe(1); err != nil {
			run.Close()
			return nil, err
		}
		defer start.Close()
	}
	if err := run.exec(s.path, o, fd, report, start); err != nil {
		run.Close()
		return nil, err
	}
	return run, nil
}

func (r *Run) exec(path string, o Options, code int, report, start *os.File) error {
	files := []uintptr{o.Stdio[0].Fd(), o.Stdio[1].Fd(), o.Stdio[2].Fd(), uintptr(code), report.Fd(), start.Fd()}
	for _, f := range o.Extra {
		files = append(files, f.Fd())
	}
	pidfd := -1
	sys := &syscall.SysProcAttr{Cloneflags: o.Cloneflags, PidFD: &pidfd}
	if o.CgroupFD >= 0 {
		sys.UseCgroupFD, sys.CgroupFD = true, o.CgroupFD
	}
	pid, _, err := syscall.StartProcess(path, []string{"criserver-stage"}, &syscall.ProcAttr{Files: files, Env: []string{}, Sys: sys})
	if err != nil {
		return fmt.Errorf("start the stage: %w", err)
	}
	r.Pid, r.Pidfd = pid, os.NewFile(uintptr(pidfd), "pidfd")
	return nil
}

// Message reads one message that the plan wrote to Report. io.EOF means that the stage became another program, or ended;
// a *plan.Error is the call that failed.
func (r *Run) Message() (uint32, error) {
	var b [8]byte
	if _, err := io.ReadFull(r.report, b[:]); err != nil {
		return 0, err
	}
	value := binary.LittleEndian.Uint32(b[:])
	if errno := binary.LittleEndian.Uint32(b[4:]); errno != 0 {
		return 0, r.plan.Error(int(value), unix.Errno(errno))
	}
	return value, nil
}

// Go writes the byte that a plan waits for.
func (r *Run) Go() error {
	_, err := r.start.Write([]byte{1})
	return err
}

// Close closes the pipes, not Pidfd. A stage that waits to be let go ends.
func (r *Run) Close() {
	_ = r.report.Close()
	if r.start != nil {
		_ = r.start.Close()
	}
}

// Status is the exit code, or the signal, of what waitid(2) found: si_status follows si_pid and si_uid in the union at byte 16.
func Status(info *unix.Siginfo) int32 {
	return *(*int32)(unsafe.Add(unsafe.Pointer(info), 24))
}

// End kills a child of ours, reaps it and closes its pidfd. It does not wait for long: a container that traces a process keeps it
// from being reaped for as long as it likes.
func End(pidfd *os.File) {
	_ = unix.PidfdSendSignal(int(pidfd.Fd()), unix.SIGKILL, nil, 0)
	fds := []unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}
	_, _ = unix.Poll(fds, 100)
	if reaped(pidfd) {
		_ = pidfd.Close()
		return
	}
	go EndLater(pidfd)
}

// EndLater reaps a child of ours as soon as it has ended and nobody traces it, and closes its pidfd.
func EndLater(pidfd *os.File) {
	for pause := time.Millisecond; !reaped(pidfd); pause = min(2*pause, time.Second) {
		time.Sleep(pause)
	}
	_ = pidfd.Close()
}

// reaped is false while the child has not ended, or its tracer has not let go of it.
func reaped(pidfd *os.File) bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PIDFD, int(pidfd.Fd()), &info, unix.WEXITED|unix.WNOHANG, nil)
	return err == nil && info.Signo != 0 || errors.Is(err, unix.ECHILD)
}

// Reap waits for the end of a child of ours.
func Reap(pidfd *os.File) {
	for unix.Waitid(unix.P_PIDFD, int(pidfd.Fd()), nil, unix.WEXITED, nil) == unix.EINTR {
	}
}

// Len is the number of operations of the plan.
func (r *Run) Len() int { return r.plan.Len() }

// Explain describes the failure of one call of the plan.
func (r *Run) Explain(index int, errno unix.Errno) *plan.Error { return r.plan.Error(index, errno) }
