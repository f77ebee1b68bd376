package shimd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/api"
	"github.com/criserver/criserver/shim/keeper"
	"github.com/criserver/criserver/shim/native"
	"github.com/criserver/criserver/shim/native/cgroup"
)

// namespaceOf maps the names on the wire, which are also those of /proc/PID/ns, to those of the OCI spec.
var namespaceOf = map[string]specs.LinuxNamespaceType{
	"ipc": specs.IPCNamespace,
	"uts": specs.UTSNamespace,
	"pid": specs.PIDNamespace,

	userSpace: specs.UserNamespace,
}

// shmName is, beside the namespaces, what a pod can share: a tmpfs for /dev/shm.
const shmName = "shm"

// procName is what a pod with a pid namespace has besides on kernels that need it (native.Pod.Proc). Containers that join
// the pid namespace get it unasked.
const procName = "proc"

const podPrefix = "p/"

// pod is the namespaces that a pod's containers share. It belongs to the StartPod that makes it until ready is closed.
type pod struct {
	id string
	birth
	spaces map[string]*os.File // "ipc", "uts", "pid", "user", "net", "shm", "proc"
	holder int                 // pid, 0 without one
	pidfd  *os.File            // of the holder
	cgroup string

	stops chan struct{} // held by the call at work, which owns gone, and after ready the fields above
	gone  bool
}

// StartPod makes the namespaces that a pod's containers share. See shim.proto.
func (s *Server) StartPod(ctx context.Context, r *api.StartPodRequest) (*api.StartPodResponse, error) {
	if !plainName(r.PodId) {
		return nil, fmt.Errorf("pod_id %q: letters, digits, '.', '_' and '-' are wanted, at most 128: %w", r.PodId, errdefs.ErrInvalidArgument)
	}
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), startLimit)
	defer cancel()
	p, mine := s.reservePod(r.PodId)
	if !mine {
		return s.startedPod(ctx, work, p, r)
	}
	err := p.run(func() error {
		if err := s.startPod(work, p, r); err != nil {
			return fmt.Errorf("pod %s: %w", p.id, err)
		}
		return nil
	}, func() {
		if err := s.endPod(work, p); err != nil {
			s.note.Error("a pod that failed to start leaves something behind", "pod", p.id, "error", err)
		}
		s.forgetPod(p)
	})
	if err != nil {
		return nil, err
	}
	return p.answer(), nil
}

// startedPod answers a StartPod that is repeated, and makes anew what was lost with shim and keeper.
func (s *Server) startedPod(ctx, work context.Context, p *pod, r *api.StartPodRequest) (*api.StartPodResponse, error) {
	if err := p.wait(ctx); err != nil {
		return nil, err
	}
	if p.failure != nil {
		return nil, p.failure
	}
	select {
	case p.stops <- struct{}{}:
		defer func() { <-p.stops }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if p.gone {
		return nil, fmt.Errorf("pod %q was stopped meanwhile: %w", p.id, errdefs.ErrFailedPrecondition)
	}
	if err := s.startPod(work, p, r); err != nil {
		return nil, fmt.Errorf("pod %s: %w", p.id, err)
	}
	return p.answer(), nil
}

func (s *Server) reservePod(id string) (p *pod, mine bool) {
	return reserve(&s.mu, s.pods, id, func() *pod { return newPod(id) })
}

func newPod(id string) *pod { return &pod{id: id, birth: newBirth(), stops: make(chan struct{}, 1)} }

func (s *Server) forgetPod(p *pod) { forget(&s.mu, s.pods, p.id, p) }

// startPod makes what is asked for and is not there. The caller is alone with the pod.
func (s *Server) startPod(ctx context.Context, p *pod, r *api.StartPodRequest) error {
	if err := makePodCgroup(ctx, r); err != nil {
		return err
	}
	c := missing(p, r)
	found, err := p.missingUser(&c, r)
	if err != nil {
		return err
	}
	if !c.IPC && !c.UTS && !c.PID && !c.Network && !makesUser(c) && c.ShmSize == 0 && len(c.Sysctls) == 0 {
		if found {
			return s.link.put(p.entry())
		}
		return nil
	}
	if c.PID && r.CgroupsPath != "" {
		g, err := cgroup.New(r.CgroupsPath, nil)
		if err != nil {
			return err
		}
		p.cgroup = r.CgroupsPath
		if err := g.Create(ctx); err != nil {
			return err
		}
		c.Cgroup = g
	}
	made, err := s.runtime.newPod(ctx, c)
	if err != nil {
		return err
	}
	if p.spaces == nil {
		p.spaces = map[string]*os.File{}
	}
	for name, kind := range namespaceOf {
		if f := made.Namespaces[kind]; f != nil {
			p.spaces[name] = f
		}
	}
	if f := made.Namespaces[specs.NetworkNamespace]; f != nil {
		p.spaces[netSpace] = f
	}
	if made.Shm != nil {
		p.spaces[shmName] = made.Shm
	}
	if made.Proc != nil {
		p.spaces[procName] = made.Proc
	}
	if h := made.Holder; h != nil {
		p.holder, p.pidfd = h.Pid, h.Pidfd
		if c.Cgroup != nil {
			if err := c.Cgroup.Adopt(ctx, h.Pid); err != nil {
				return err
			}
		}
		if err := s.watchHolder(p); err != nil {
			return err
		}
	}
	return s.link.put(p.entry())
}

// makePodCgroup makes the cgroup of the pod as a whole, if one is asked for. Whoever asked has it removed, by Delete.
func makePodCgroup(ctx context.Context, r *api.StartPodRequest) error {
	if r.PodCgroup == "" {
		return nil
	}
	var resources specs.LinuxResources
	if err := json.Unmarshal(r.PodResources, &resources); err != nil {
		return fmt.Errorf("pod_resources: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	g, err := cgroup.New(r.PodCgroup, &resources)
	if err != nil {
		return err
	}
	return g.Create(ctx)
}

// missing is what a pod lacks of what is asked for. Sysctls go with the namespace that they are of.
func missing(p *pod, r *api.StartPodRequest) native.PodConfig {
	c := native.PodConfig{
		IPC: r.Ipc && p.spaces["ipc"] == nil, UTS: r.Uts && p.spaces["uts"] == nil, PID: r.Pid && p.spaces["pid"] == nil,
		Hostname: r.Hostname, Netns: r.Netns, Sysctls: map[string]string{},
	}
	if p.spaces[shmName] == nil {
		c.ShmSize, c.MountLabel = r.ShmSize, r.MountLabel
	}
	for name, value := range r.Sysctls {
		var there bool
		switch {
		case p.spaces == nil:
		case strings.HasPrefix(name, "net.") || strings.HasPrefix(name, "net/"):
			there = !r.Network || r.Netns != "" || p.spaces[netSpace] != nil // the namespace outlived us
		case name == "kernel.domainname" || name == "kernel/domainname":
			there = !c.UTS
		default:
			there = !c.IPC
		}
		if !there {
			c.Sysctls[name] = value
		}
	}
	return c
}

// watchHolder reaps the holder when it ends; its pid namespace ends with it.
func (s *Server) watchHolder(p *pod) error {
	_, err := s.exit(int(p.pidfd.Fd()))
	return err
}

func (p *pod) entry() keeper.Entry {
	e := keeper.Entry{Key: podPrefix + p.id, PID: p.holder, Extra: p.cgroup}
	for name, f := range p.spaces {
		e.Names, e.FDs = append(e.Names, name), append(e.FDs, int(f.Fd()))
	}
	if p.pidfd != nil {
		e.Names, e.FDs = append(e.Names, "pidfd"), append(e.FDs, int(p.pidfd.Fd()))
	}
	return e
}

// StopPod ends the holder and lets go of the namespaces.
func (s *Server) StopPod(ctx context.Context, r *api.StopPodRequest) (*api.StopPodResponse, error) {
	s.mu.Lock()
	p := s.pods[r.PodId]
	s.mu.Unlock()
	if p == nil {
		return &api.StopPodResponse{}, nil
	}
	if err := p.wait(ctx); err != nil {
		return nil, err
	}
	if p.failure != nil {
		return &api.StopPodResponse{}, nil
	}
	select {
	case p.stops <- struct{}{}:
		defer func() { <-p.stops }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), deleteLimit)
	defer cancel()
	if p.gone {
		return &api.StopPodResponse{}, nil
	}
	if err := s.endPod(work, p); err != nil {
		return nil, fmt.Errorf("stop pod %s: %w", p.id, err)
	}
	p.gone = true
	s.forgetPod(p)
	return &api.StopPodResponse{}, nil
}

// endPod lets go of everything that belongs to a pod. It may be repeated. The caller is alone with the pod.
func (s *Server) endPod(ctx context.Context, p *pod) error {
	var errs []error
	if p.pidfd != nil {
		_ = unix.PidfdSendSignal(int(p.pidfd.Fd()), unix.SIGKILL, nil, 0)
		for !hasEnded(int(p.pidfd.Fd()), 10*time.Millisecond) {
			if ctx.Err() != nil {
				return fmt.Errorf("the holder, process %d, was killed and does not end: %w", p.holder, ctx.Err())
			}
		}
	}
	if p.cgroup != "" {
		errs = append(errs, removeCgroup(ctx, p.cgroup))
	}
	errs = append(errs, s.link.drop(podPrefix+p.id))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	closePod(p)
	return nil
}

func closePod(p *pod) {
	for _, f := range p.spaces {
		_ = f.Close()
	}
	if p.pidfd != nil {
		_ = p.pidfd.Close()
	}
	p.spaces, p.pidfd = nil, nil
}

// shares is what a container gets of its pod, or of another container. Who asked for it closes it.
type shares struct {
	namespaces map[specs.LinuxNamespaceType]*os.File
	shm, proc  *os.File // nil without
}

func (j *shares) close() {
	for _, f := range j.namespaces {
		_ = f.Close()
	}
	for _, f := range []*os.File{j.shm, j.proc} {
		if f != nil {
			_ = f.Close()
		}
	}
}

func (j *shares) add(name string, f *os.File) {
	switch name {
	case shmName:
		j.shm = f
		return
	case procName:
		j.proc = f
		return
	}
	kind := namespaceOf[name]
	if old := j.namespaces[kind]; old != nil {
		_ = old.Close()
	}
	j.namespaces[kind] = f
}

// shared opens what a container joins. It is to be closed after an error too.
func (s *Server) shared(ctx context.Context, r *api.StartRequest) (*shares, error) {
	j := &shares{namespaces: map[specs.LinuxNamespaceType]*os.File{}}
	if len(r.PodNamespaces) > 0 {
		if err := s.joinPod(ctx, r, j); err != nil {
			return j, err
		}
	}
	if r.PidTarget == "" {
		return j, nil
	}
	c, pidfd, err := s.runningPidfd(ctx, r.PidTarget)
	if err != nil {
		return j, fmt.Errorf("pid_target: %w", err)
	}
	defer pidfd.Close()
	f, err := os.Open("/proc/" + strconv.Itoa(c.record.PID) + "/ns/pid")
	if err != nil || hasEnded(int(pidfd.Fd()), 0) { // the number may be another's by now
		if f != nil {
			_ = f.Close()
		}
		return j, fmt.Errorf("pid_target: container %s does not run any more: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	j.add("pid", f)
	return j, nil
}

func (s *Server) joinPod(ctx context.Context, r *api.StartRequest, j *shares) error {
	s.mu.Lock()
	p := s.pods[r.PodId]
	s.mu.Unlock()
	if p == nil {
		return fmt.Errorf("pod %q is not known to the shim, whose %s are to be joined: %w", r.PodId, strings.Join(r.PodNamespaces, ", "), errdefs.ErrNotFound)
	}
	if err := p.wait(ctx); err != nil {
		return err
	}
	select {
	case p.stops <- struct{}{}: // not while it is stopped
		defer func() { <-p.stops }()
	case <-ctx.Done():
		return ctx.Err()
	}
	names := r.PodNamespaces
	if slices.Contains(names, "pid") && p.spaces[procName] != nil {
		names = append(slices.Clone(names), procName)
	}
	for _, name := range names {
		f := p.spaces[name]
		if f == nil {
			return fmt.Errorf("pod %q has no %s of its own: %w", r.PodId, name, errdefs.ErrFailedPrecondition)
		}
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return err
		}
		j.add(name, os.NewFile(uintptr(fd), name))
	}
	return nil
}
