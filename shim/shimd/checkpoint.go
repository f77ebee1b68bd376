package shimd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/internal/fsx"
	"github.com/criserver/criserver/internal/procstat"
	"github.com/criserver/criserver/shim/api"
	"github.com/criserver/criserver/shim/criu"
)

// Checkpoint has criu write the state of a container's processes into a directory. See shim.proto.
func (s *Server) Checkpoint(ctx context.Context, r *api.CheckpointRequest) (*api.CheckpointResponse, error) {
	for field, path := range map[string]string{"images": r.Images, "criu": r.Criu, "work": r.Work} {
		if !filepath.IsAbs(path) {
			return nil, fmt.Errorf("%s %q is not an absolute path: %w", field, path, errdefs.ErrInvalidArgument)
		}
	}
	c, pidfd, err := s.runningPidfd(ctx, r.Id)
	if err != nil {
		return nil, err
	}
	defer pidfd.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	end, err := s.beginDump(c, cancel)
	if err != nil {
		return nil, err
	}
	defer end()
	if err := s.dump(ctx, c, pidfd, r); err != nil {
		return nil, fmt.Errorf("container %s: %w", c.id, err)
	}
	return &api.CheckpointResponse{}, nil
}

func (s *Server) dump(ctx context.Context, c *container, pidfd *os.File, r *api.CheckpointRequest) error {
	spec, err := c.loadSpec()
	if err != nil {
		return err
	}
	if err := dumpable(c, spec); err != nil {
		return err
	}
	freezer, err := c.cgroup.FreezerDir()
	if err != nil {
		return err
	}
	d := criu.Dump{PID: c.record.PID, Images: r.Images, Work: r.Work, Freezer: freezer}
	if err := s.describe(c, spec, &d); err != nil {
		return err
	}
	if hasEnded(int(pidfd.Fd()), 0) { // what was read of /proc may be another's
		return fmt.Errorf("its process has ended: %w", errdefs.ErrFailedPrecondition)
	}
	if err := fsx.ReplaceJSON(filepath.Join(r.Images, criu.DescriptorsFile), d.Descriptors); err != nil {
		return err
	}
	if r.Shm != "" && slices.Contains(c.record.Namespaces, shmName) {
		if err := packShm(d.PID, r.Shm); err != nil {
			return err
		}
	}
	return runCriu(ctx, r.Criu, d.Args(), filepath.Join(r.Work, criu.LogDump))
}

// dumpable refuses what criu, or the restore, cannot do.
func dumpable(c *container, spec *specs.Spec) error {
	refuse := func(why string) error {
		return fmt.Errorf("it cannot be checkpointed: %s: %w", why, errdefs.ErrFailedPrecondition)
	}
	if c.record.Terminal {
		return refuse("it has a terminal, whose other end is outside of it")
	}
	if c.binary != nil {
		return refuse("it is one of another runtime than native, whose checkpoints are its own")
	}
	if hooksOfStart(spec) {
		return refuse("it has OCI hooks, whose work on the restored container nobody would do")
	}
	own := false
	for _, n := range spec.Linux.Namespaces {
		switch n.Type {
		case specs.UserNamespace:
			return refuse("it is in a user namespace")
		case specs.PIDNamespace:
			own = n.Path == ""
		}
	}
	for _, n := range c.record.Namespaces {
		own = own && n != "pid"
	}
	if !own || c.record.PIDTarget {
		return refuse("its pid namespace is not its own, and pids that others could have taken would not come back")
	}
	return nil
}

// hooksOfStart says whether there are hooks that a restored container would not get.
func hooksOfStart(spec *specs.Spec) bool {
	h := spec.Hooks
	//lint:ignore SA1019 deprecated, but not gone from specs
	return h != nil && len(h.Prestart)+len(h.CreateRuntime)+len(h.CreateContainer)+len(h.StartContainer)+len(h.Poststart) > 0
}

// describe finds what the container has from outside, by looking at its processes, which are frozen.
func (s *Server) describe(c *container, spec *specs.Spec, d *criu.Dump) error {
	pids, err := c.cgroup.Pids()
	if err != nil {
		return err
	}
	if err := allDescend(pids, d.PID); err != nil {
		return err
	}
	proc := "/proc/" + strconv.Itoa(d.PID)
	table, err := readMounts(proc + "/mountinfo")
	if err != nil {
		return err
	}
	d.Descriptors = criu.Descriptors{Version: criu.Version}
	shm := false
	for _, n := range c.record.Namespaces {
		switch n {
		case shmName:
			shm = true
		default:
			d.Joined = append(d.Joined, n)
		}
	}
	d.Mounts = criu.Mounts(table, spec, shm)
	seen := map[int]bool{}
	for _, m := range table {
		seen[m.ID] = true
	}
	if d.Files, err = c.openFiles(pids, seen); err != nil {
		return err
	}
	for _, n := range spec.Linux.Namespaces {
		if n.Type == specs.NetworkNamespace {
			var st unix.Stat_t
			if err := unix.Stat(proc+"/ns/net", &st); err != nil {
				return &os.PathError{Op: "stat", Path: proc + "/ns/net", Err: err}
			}
			d.Netns, d.Network = st.Ino, true
		}
	}
	return nil
}

func readMounts(path string) ([]*mountinfo.Info, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return mountinfo.GetMountsFromReader(f, nil)
}

// allDescend refuses processes that are not the container's own: those of an exec are the shim's children, and criu would
// leave them out.
func allDescend(pids []int, root int) error {
	parents := map[int]int{}
	for _, pid := range pids {
		stat, err := procstat.Read(pid)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return err
		}
		if len(stat) > 1 && stat.Field(procstat.State) != "Z" {
			parents[pid], _ = strconv.Atoi(stat.Field(procstat.Parent))
		}
	}
	for pid := range parents {
		at := pid
		for range len(parents) {
			if at == root {
				break
			}
			at = parents[at]
		}
		if at != root {
			return fmt.Errorf("process %d was put into it by an exec and would be lost: checkpoint when it has ended: %w", pid, errdefs.ErrUnavailable)
		}
	}
	return nil
}

// openFiles finds the open files of processes that are the shim's FIFOs or the host's /dev/null: their mounts, which seen
// lacks, are not the container's.
func (c *container) openFiles(pids []int, seen map[int]bool) ([]criu.File, error) {
	streams, err := c.streamInodes()
	if err != nil {
		return nil, err
	}
	found := map[string]bool{}
	var files []criu.File
	for _, pid := range pids {
		dir := "/proc/" + strconv.Itoa(pid)
		entries, err := os.ReadDir(dir + "/fd")
		if err != nil {
			continue // a zombie, or gone
		}
		for _, e := range entries {
			var st unix.Stat_t
			if unix.Stat(dir+"/fd/"+e.Name(), &st) != nil {
				continue
			}
			stream := streams[inode{st.Dev, st.Ino}]
			if stream == "" && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3) {
				stream = criu.Null
			}
			if stream == "" {
				continue
			}
			mount := mountOf(dir + "/fdinfo/" + e.Name())
			if key := criu.FileKey(mount, st.Ino); mount >= 0 && !seen[mount] && !found[key] {
				found[key] = true
				files = append(files, criu.File{Key: key, Stream: stream})
			}
		}
	}
	return files, nil
}

type inode struct{ dev, ino uint64 }

func (c *container) streamInodes() (map[inode]string, error) {
	streams := map[inode]string{}
	for _, name := range []string{criu.Stdin, criu.Stdout, criu.Stderr} {
		var st unix.Stat_t
		err := unix.Lstat(filepath.Join(c.dir, name), &st)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "stat", Path: filepath.Join(c.dir, name), Err: err}
		}
		streams[inode{st.Dev, st.Ino}] = name
	}
	return streams, nil
}

// mountOf is the mount of an open file, or -1.
func mountOf(fdinfo string) int {
	text, err := os.ReadFile(fdinfo)
	if err != nil {
		return -1
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			if n, err := strconv.Atoi(strings.TrimSpace(value)); err == nil {
				return n
			}
		}
	}
	return -1
}

// runCriu runs criu to its end. It does not outlive this process: what it has stopped goes on when it dies.
func runCriu(ctx context.Context, program string, args []string, log string) error {
	goruntime.LockOSThread() // the death of the parent is, to the kernel, that of the thread that forked
	defer goruntime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Dir = "/"
	err := cmd.Run()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("criu was ended: %w", ctx.Err())
	}
	return criuError(err.Error(), log)
}

// maxLog is how much of criu's log is read for its errors.
const maxLog = 16 << 20

// criuError says in criu's words why it failed.
func criuError(how, log string) error {
	said := ""
	if f, err := os.OpenFile(log, os.O_RDONLY|unix.O_NOFOLLOW, 0); err == nil {
		defer f.Close()
		text := make([]byte, maxLog)
		n, _ := f.Read(text)
		said = criu.Explain(string(text[:n]))
	}
	if said == "" {
		said = "it says no more (log: " + log + ")"
	}
	return fmt.Errorf("criu: %s: %s: %w", how, said, errdefs.ErrFailedPrecondition)
}
