package native

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native/stage"
)

// sealed puts bytes into a file in memory that nobody can change, at whose beginning the reader is.
func sealed(b []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("state", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd for a hook's standard input: %w", err)
	}
	f := os.NewFile(uintptr(fd), "state")
	if _, err := f.WriteAt(b, 0); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// tailSize is how much of a hook's output an error shows, in bytes.
const tailSize = 2048

// tail keeps the end of what is printed to a pipe.
type tail struct {
	ours, theirs *os.File
	kept         []byte // the reader's until done
	done         chan struct{}
}

func newTail() (*tail, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	w.Fd() // makes the program's end a blocking one
	return &tail{ours: r, theirs: w, done: make(chan struct{})}, nil
}

// begin reads, once the program has its end.
func (t *tail) begin() {
	_ = t.theirs.Close()
	go func() {
		defer close(t.done)
		b := make([]byte, 4096)
		for {
			n, err := t.ours.Read(b)
			t.kept = append(t.kept, b[:n]...)
			if over := len(t.kept) - tailSize; over > 0 {
				t.kept = append(t.kept[:0], t.kept[over:]...)
			}
			if err != nil {
				return
			}
		}
	}()
}

// end answers with what was printed, to be put behind an error, after waiting at most d for others to let go of the pipe.
func (t *tail) end(d time.Duration) string {
	_ = t.ours.SetReadDeadline(time.Now().Add(d))
	<-t.done
	text := strings.TrimSpace(strings.ToValidUTF8(string(t.kept), "?"))
	if text == "" {
		return ""
	}
	return ": it said: " + text
}

func (t *tail) close() {
	_ = t.theirs.Close()
	_ = t.ours.Close()
}

// await waits for the end of a program that runs, kills it with its process group when the context ends, and reaps it. The error
// says how it failed.
func (p *Process) await(ctx context.Context) error {
	ended := make(chan error, 1)
	go func() { ended <- reapStatus(p.Pidfd) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	// It leads its session, and is not reaped yet or we would have seen it: so the number is its own.
	_ = unix.Kill(-p.Pid, unix.SIGKILL)
	_ = unix.PidfdSendSignal(int(p.Pidfd.Fd()), unix.SIGKILL, nil, 0)
	select {
	case <-ended:
	case <-time.After(time.Second): // frozen, or traced: it is reaped when it ends
	}
	return ctx.Err()
}

// reapStatus waits for the end of a child, closes its pidfd and says how it failed.
func reapStatus(pidfd *os.File) error {
	defer pidfd.Close()
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_PIDFD, int(pidfd.Fd()), &info, unix.WEXITED, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait for its end: %w", err)
		}
		break
	}
	const exited = 1 // CLD_EXITED
	status := stage.Status(&info)
	switch {
	case info.Code != exited:
		return fmt.Errorf("it was killed by signal %d: %w", status, errdefs.ErrFailedPrecondition)
	case status != 0:
		return fmt.Errorf("exit code %d: %w", status, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// innermostPid is the number that a process has in its own pid namespace.
func innermostPid(pid int) (int, error) {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0, fmt.Errorf("the pid that the container sees: %w", err)
	}
	for line := range strings.Lines(string(status)) {
		if numbers, ok := strings.CutPrefix(line, "NSpid:"); ok {
			fields := strings.Fields(numbers)
			if len(fields) > 0 {
				return strconv.Atoi(fields[len(fields)-1])
			}
		}
	}
	return pid, nil
}
