package shimd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"weak"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/api"
	"github.com/criserver/criserver/shim/native/cgroup"
)

// Update sets the resources of a container or of a pod's cgroup. See shim.proto.
func (s *Server) Update(ctx context.Context, r *api.UpdateRequest) (*api.UpdateResponse, error) {
	var resources specs.LinuxResources
	if err := json.Unmarshal(r.Resources, &resources); err != nil {
		return nil, fmt.Errorf("resources: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if r.CgroupsPath != "" {
		g, err := cgroup.New(r.CgroupsPath, nil)
		if err != nil {
			return nil, err
		}
		return &api.UpdateResponse{}, g.Set(&resources)
	}
	c, err := s.find(ctx, r.Id)
	if err != nil {
		return nil, err
	}
	if c.cgroup == nil {
		return nil, fmt.Errorf("container %s has no cgroup of its own: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	if err := c.cgroup.Set(&resources); err != nil {
		return nil, err
	}
	if r.OomScoreAdj != nil {
		kept, err := setOOMScoreAdj(c.cgroup, int(*r.OomScoreAdj))
		if err != nil {
			return nil, fmt.Errorf("container %s: process.oomScoreAdj: %w", c.id, err)
		}
		if len(kept) > 0 {
			s.note.Warn("the kernel lets nobody lower oom_score_adj of these processes without CAP_SYS_RESOURCE",
				"container", c.id, "value", *r.OomScoreAdj, "processes", kept)
		}
	}
	c.specMu.Lock()
	c.spec = weak.Pointer[specs.Spec]{} // config.json is about to change, too
	c.specMu.Unlock()
	return &api.UpdateResponse{}, nil
}

// adjustRounds bounds how often the processes of a cgroup are listed: one that is forked meanwhile has its parent's score.
const adjustRounds = 16

// setOOMScoreAdj gives all processes of a cgroup a score. kept are those that the kernel did not let us change.
func setOOMScoreAdj(g *cgroup.Cgroup, value int) (kept []int, err error) {
	done := map[int]bool{}
	for range adjustRounds {
		pids, err := g.Pids()
		if err != nil {
			return nil, err
		}
		pids = slices.DeleteFunc(pids, func(pid int) bool { return done[pid] })
		if len(pids) == 0 {
			break
		}
		left, err := adjust(g, pids, value)
		if err != nil {
			return nil, err
		}
		kept = append(kept, left...)
		for _, pid := range pids {
			done[pid] = true
		}
	}
	return kept, nil
}

// adjust writes the score of some processes. An open file of /proc/PID stays that process's, so a pid is used only
// while it is seen in the cgroup after its file was opened.
func adjust(g *cgroup.Cgroup, pids []int, value int) (kept []int, err error) {
	const batch = 256 // descriptors at once
	for part := range slices.Chunk(pids, batch) {
		left, err := adjustSome(g, part, value)
		if err != nil {
			return nil, err
		}
		kept = append(kept, left...)
	}
	return kept, nil
}

func adjustSome(g *cgroup.Cgroup, pids []int, value int) (kept []int, err error) {
	files := map[int]*os.File{}
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	for _, pid := range pids {
		f, err := os.OpenFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", os.O_WRONLY, 0)
		switch {
		case err == nil:
			files[pid] = f
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH):
			return nil, err
		}
	}
	still, err := g.Pids()
	if err != nil {
		return nil, err
	}
	for pid, f := range files {
		if _, in := slices.BinarySearch(still, pid); !in {
			continue
		}
		_, err := f.WriteString(strconv.Itoa(value))
		switch {
		case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
			kept = append(kept, pid)
		case err != nil && !errors.Is(err, unix.ESRCH):
			return nil, err
		}
	}
	return kept, nil
}
