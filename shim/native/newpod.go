package native

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native/cgroup"
)

// PodConfig says which namespaces a pod's containers share.
type PodConfig struct {
	IPC, UTS, PID bool
	Hostname      string // of the uts namespace
	Netns         string // path of the network namespace that sysctls are set in; "": the host's
	Sysctls       map[string]string
	ShmSize       int64          // bytes of shared memory; 0: none
	Cgroup        *cgroup.Cgroup // of the holder
}

// Pod is a pod's namespaces, which live as long as these descriptors are open or a process is in them. The caller closes them.
type Pod struct {
	Namespaces map[specs.LinuxNamespaceType]*os.File
	// Shm is the shared memory for Config.Shm: a mount that is attached nowhere, or where the kernel cannot copy such a
	// mount a mount namespace with it as the root. Nil without.
	Shm *os.File
	// Proc is a mount namespace with the proc of the pod's pid namespace as the root; nil where the kernel can do without.
	Proc *os.File
	// Holder is the init process of the pid namespace, nil without one. It runs, and the caller reaps it.
	Holder *Process
}

var podNamespaces = []struct {
	kind specs.LinuxNamespaceType
	flag uintptr
	file string
}{
	{specs.IPCNamespace, unix.CLONE_NEWIPC, "ipc"},
	{specs.UTSNamespace, unix.CLONE_NEWUTS, "uts"},
	{specs.PIDNamespace, unix.CLONE_NEWPID, "pid"},
}

// NewPod makes the namespaces of a pod. When it fails nothing is left.
func (r *Runtime) NewPod(ctx context.Context, c PodConfig) (*Pod, error) {
	in := &input{host: r.host}
	if c.Cgroup != nil {
		in.tasks, in.unified = c.Cgroup.TasksFiles(), c.Cgroup.UnifiedDir()
	}
	b, err := compilePod(in, c)
	if err != nil {
		return nil, err
	}
	p, err := r.launch(ctx, b, launch{cgroup: c.Cgroup, waits: true})
	if err != nil {
		return nil, err
	}
	pod := &Pod{Namespaces: map[specs.LinuxNamespaceType]*os.File{}}
	if err := r.collect(pod, p, b, c); err != nil {
		p.discard()
		pod.close()
		return nil, fmt.Errorf("namespaces of the pod: %w", err)
	}
	if !c.PID {
		p.discard()
		return pod, nil
	}
	if err := p.run.Go(); err != nil {
		p.discard()
		pod.close()
		return nil, err
	}
	p.run.Close()
	pod.Holder = p
	return pod, nil
}

// collect takes everything from the stage that the pod's containers will share.
func (r *Runtime) collect(pod *Pod, p *Process, b *built, c PodConfig) error {
	namespaces := filepath.Join("/proc", fmt.Sprint(p.Pid), "ns")
	for _, root := range b.roots {
		f, err := os.Open(filepath.Join(namespaces, "mnt"))
		if err != nil {
			return err
		}
		if root.name == procRoot {
			pod.Proc = f
		} else {
			pod.Shm = f
		}
		if err := p.run.Go(); err != nil {
			return err
		}
		if _, err := p.run.Message(); err != nil {
			return p.explain(err)
		}
	}
	if c.ShmSize > 0 && pod.Shm == nil {
		fd, err := detachedTmpfs(fmt.Sprint(c.ShmSize))
		if err != nil {
			return err
		}
		pod.Shm = os.NewFile(uintptr(fd), "shm")
	}
	for _, n := range podNamespaces {
		if b.cloneflags&n.flag == 0 {
			continue
		}
		f, err := os.Open(filepath.Join(namespaces, n.file))
		if err != nil {
			return err
		}
		pod.Namespaces[n.kind] = f
	}
	return nil
}

func (p *Pod) close() {
	if p.Proc != nil {
		_ = p.Proc.Close()
	}
	if p.Shm != nil {
		_ = p.Shm.Close()
	}
	for _, f := range p.Namespaces {
		_ = f.Close()
	}
}
