package cgroup

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// Signal sends a signal to every process in the cgroup and below. A pid is used only while it is seen in the cgroup after its pidfd
// was opened. What is started meanwhile may be missed; Kill misses nothing.
func (c *Cgroup) Signal(number unix.Signal) error {
	found, err := c.Pids()
	if err != nil {
		return err
	}
	descriptors := map[int]int{}
	defer func() {
		for _, fd := range descriptors {
			_ = unix.Close(fd)
		}
	}()
	for _, pid := range found {
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			descriptors[pid] = fd
		}
	}
	still, err := c.Pids()
	if err != nil {
		return err
	}
	var errs []error
	for pid, fd := range descriptors {
		if !slices.Contains(still, pid) {
			continue
		}
		if err := unix.PidfdSendSignal(fd, number, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("signal %d to process %d: %w", number, pid, err))
		}
	}
	return errors.Join(errs...)
}
