package cgstat

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Processes lists the processes of a cgroup and of those below it, in no order. fs.ErrNotExist when it is not there.
func (h *Host) Processes(cgroupsPath string) ([]int, error) {
	rel, err := Relative(cgroupsPath)
	if err != nil {
		return nil, err
	}
	t := h.unified
	if len(h.v1) > 0 {
		t = h.v1["cpuacct"]
	}
	r := newReader()
	defer r.done()
	all, err := r.processes(t, rel, nil)
	if err != nil {
		return nil, fmt.Errorf("list the processes of cgroup %s: %w", cgroupsPath, err)
	}
	return all, nil
}

func (r *reader) processes(t *tree, rel string, all []int) ([]int, error) {
	if err := r.enter(t, rel); err != nil {
		return all, err
	}
	// A directory of cgroupfs has 2 links and one for each child.
	var st unix.Stat_t
	if err := unix.Fstat(r.dir, &st); err != nil {
		return all, &os.PathError{Op: "stat", Path: rel, Err: err}
	}
	data, err := r.file("cgroup.procs") // none for a threaded cgroup, whose processes are listed above it
	if err != nil {
		return all, err
	}
	for line := range bytes.Lines(data) {
		if pid, ok := digits(bytes.TrimSpace(line)); ok {
			all = append(all, int(pid))
		}
	}
	if st.Nlink <= 2 {
		return all, nil
	}
	children, err := os.ReadDir(t.path + "/" + rel)
	if err != nil {
		return all, err
	}
	for _, c := range children {
		if !c.IsDir() {
			continue
		}
		below, err := r.processes(t, rel+"/"+c.Name(), all)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return all, err
		}
		all = below
	}
	return all, nil
}
