package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Kill sends SIGKILL to every process in the cgroup and below it, in every hierarchy, until none is left; a process that
// was frozen is thawed to die. It returns when the cgroup is empty (zombies do not count), or when ctx ends, with the
// processes that are left. An absent cgroup is empty. It refuses a cgroup in which this process itself is.
func (c *Cgroup) Kill(ctx context.Context) error {
	if err := c.refuseOwn(); err != nil {
		return fmt.Errorf("kill cgroup /%s: %w", c.rel, err)
	}
	pause := 100 * time.Microsecond
	for round := 0; ; round++ {
		if err := c.killUnified(); err != nil {
			return fmt.Errorf("kill cgroup /%s: %w", c.rel, err)
		}
		left, err := c.killV1(round)
		if err != nil {
			return fmt.Errorf("kill cgroup /%s: %w", c.rel, err)
		}
		if len(left) == 0 && !c.populated() {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("kill cgroup /%s: processes %v are left: %w", c.rel, left, ctx.Err())
		case <-time.After(pause):
		}
		pause = min(2*pause, 10*time.Millisecond)
	}
}

// refuseOwn guards against a cgroups path that somebody took from the engine's own place in the tree.
func (c *Cgroup) refuseOwn() error {
	own, err := c.holds("self")
	if err == nil && own {
		err = fmt.Errorf("this process is itself in it: %w", errdefs.ErrFailedPrecondition)
	}
	return err
}

// Contains says whether a process is in the cgroup or below it, in any hierarchy. A zombie is until it is reaped.
func (c *Cgroup) Contains(pid int) bool {
	in, err := c.holds(strconv.Itoa(pid))
	return err == nil && in
}

// holds is Contains for the process of a directory in /proc.
func (c *Cgroup) holds(process string) (bool, error) {
	data, err := os.ReadFile("/proc/" + process + "/cgroup")
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(data)) {
		_, path, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ":/")
		if ok && c.covers(path) {
			return true, nil
		}
	}
	return false, nil
}

// covers says whether a path in a hierarchy, without its leading slash, is the cgroup's or one below it.
func (c *Cgroup) covers(path string) bool { return path == c.rel || strings.HasPrefix(path, c.rel+"/") }

// killUnified kills what is in the unified hierarchy, in one call and without a race (cgroup.kill, Linux 5.14).
func (c *Cgroup) killUnified() error {
	if c.layout.unified == nil {
		return nil
	}
	err := c.layout.unified.write(c.rel+"/cgroup.kill", "1")
	if gone(err) {
		return nil
	}
	return err
}

// populated says whether a live process is in the unified hierarchy's cgroup or below it.
func (c *Cgroup) populated() bool {
	if c.layout.unified == nil {
		return false
	}
	events, err := c.layout.unified.read(c.rel + "/cgroup.events")
	return err == nil && strings.Contains(events, "populated 1")
}

// freezeAfter is the number of rounds after which the v1 freezer is used, because whoever is in the cgroup forks faster
// than it is killed.
const freezeAfter = 3

// killV1 kills what is in the v1 hierarchies, one by one, and returns what it found. On hybrid that is normally what
// killUnified has killed already and is still on its way out, so the first round only looks.
func (c *Cgroup) killV1(round int) ([]int, error) {
	if c.layout.pure() {
		return pids(c.layout.all(), c.rel)
	}
	found, err := pids(c.layout.v1, c.rel)
	if err != nil || len(found) == 0 {
		return nil, err
	}
	freezer := c.layout.v1With("freezer")
	if round >= freezeAfter && freezer != nil {
		if err := setFreezer(freezer, c.rel, "FROZEN"); err != nil {
			return found, err
		}
	}
	if round > 0 || c.layout.unified == nil {
		if found, err = c.signal(found); err != nil {
			return found, err
		}
	}
	if freezer == nil {
		return found, nil
	}
	// A process in a frozen cgroup dies only once thawed, whoever froze it.
	return found, thaw(freezer, c.rel)
}

// signal kills the processes of the list. Between the reading of a pid and the opening of its pidfd the pid may have
// been given to a stranger, so only what is in the cgroup still, after it was opened, is killed.
func (c *Cgroup) signal(found []int) ([]int, error) {
	const batch = 256 // descriptors at once
	for part := range slices.Chunk(found, batch) {
		descriptors := map[int]int{}
		for _, pid := range part {
			if fd, err := unix.PidfdOpen(pid, 0); err == nil {
				descriptors[pid] = fd
			}
		}
		now, err := pids(c.layout.v1, c.rel)
		for pid, fd := range descriptors {
			if _, in := slices.BinarySearch(now, pid); in && err == nil {
				_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) // ESRCH: it has ended
			}
			unix.Close(fd)
		}
		if err != nil {
			return found, err
		}
	}
	return found, nil
}

func setFreezer(h *hierarchy, rel, state string) error {
	err := h.write(rel+"/freezer.state", state)
	if gone(err) {
		return nil
	}
	return err
}

// thaw thaws a cgroup and those below it. It reads before it writes: a write takes the freezer's mutex of the machine.
func thaw(h *hierarchy, rel string) error {
	return walk(h, rel, func(rel string) error {
		state, err := h.read(rel + "/freezer.state")
		if err == nil && state != "THAWED" {
			err = setFreezer(h, rel, "THAWED")
		}
		return err
	})
}

// walk calls do for a cgroup and then for all below it; what vanishes meanwhile is passed over.
func walk(h *hierarchy, rel string, do func(rel string) error) error {
	if err := do(rel); err != nil {
		if gone(err) {
			return nil
		}
		return err
	}
	children, err := h.children(rel)
	if err != nil && !gone(err) {
		return err
	}
	for _, child := range children {
		if err := walk(h, child, do); err != nil {
			return err
		}
	}
	return nil
}

// pids lists the processes of a cgroup and those below it in some hierarchies, ascending and each once. Processes that
// this process's PID namespace does not show (the kernel prints 0 for them) are left out.
func pids(hierarchies []*hierarchy, rel string) ([]int, error) {
	var all []int
	for _, h := range hierarchies {
		err := walk(h, rel, func(rel string) error {
			content, err := h.read(rel + "/cgroup.procs")
			if errors.Is(err, unix.EOPNOTSUPP) { // a threaded cgroup: its processes are in the domain above it
				return nil
			}
			if err != nil {
				return err
			}
			for line := range strings.FieldsSeq(content) {
				pid, err := strconv.Atoi(line)
				if err != nil {
					return fmt.Errorf("%s/cgroup.procs: %q is not a pid", h.path(rel), line)
				}
				if pid > 0 {
					all = append(all, pid)
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// gone says that a cgroup was removed: before a file of it was opened (ENOENT) or after (ENODEV).
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV)
}
