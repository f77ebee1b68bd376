package native

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native/cgroup"
	"github.com/criserver/criserver/shim/native/stage"
)

// PodConfig says which namespaces a pod's containers share.
type PodConfig struct {
	IPC, UTS, PID bool
	Hostname      string // of the uts namespace
	Netns         string // path of the network namespace that sysctls are set in; "": the host's
	Sysctls       map[string]string
	ShmSize       int64          // bytes of shared memory; 0: none
	MountLabel    string         // SELinux label of the shared memory; "": none
	Cgroup        *cgroup.Cgroup // of the holder

	// User has the pod's namespaces but the pid namespace owned by a user namespace of the pod's: UserNamespace when it is given,
	// else one that is made and is then among Pod.Namespaces.
	User          *UserMappings
	UserNamespace *os.File
	Network       bool // make a network namespace too, with User only

	owner  *UserMappings                         // of what is made in the host's user namespace
	joined map[specs.LinuxNamespaceType]*os.File // made before, for sysctls
}

// Pod is a pod's namespaces, which live as long as these descriptors are open or a process is in them. The caller closes them.
type Pod struct {
	Namespaces map[specs.LinuxNamespaceType]*os.File
	// Shm is the shared memory for Config.Shm: a mount that is attached nowhere, or where the kernel cannot copy such a
	// mount a mount namespace with it as the root. Nil without.
	Shm *os.File
	// Proc is a mount namespace with the proc of the pod's pid namespace as the root; nil where the kernel can do without, unless the
	// pod has a user namespace.
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
	if c.User != nil {
		return r.newUserPod(ctx, c)
	}
	if r.madeByThread(c) {
		return podByThread(c)
	}
	in := &input{host: r.host, joined: map[specs.LinuxNamespaceType]int{}}
	var extra []*os.File
	for _, n := range ownedNamespaces {
		if f := c.joined[n.kind]; f != nil {
			in.joined[n.kind] = stage.Extra + len(extra)
			extra = append(extra, f)
		}
	}
	if c.Cgroup != nil {
		in.tasks, in.unified = c.Cgroup.TasksFiles(), c.Cgroup.UnifiedDir()
	}
	b, err := compilePod(in, c)
	if err != nil {
		return nil, err
	}
	p, err := r.launch(ctx, b, launch{extra: extra, cgroup: c.Cgroup, waits: true})
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

// newUserPod makes the namespaces that a user namespace owns, and then what is left for the host's privileges: a pid namespace,
// shared memory, and sysctls, some of which the kernel lets only the host's root set.
func (r *Runtime) newUserPod(ctx context.Context, c PodConfig) (*Pod, error) {
	s := spacesConfig{user: c.UserNamespace, mappings: *c.User, hostname: c.Hostname, kinds: map[specs.LinuxNamespaceType]bool{
		specs.NetworkNamespace: c.Network, specs.IPCNamespace: c.IPC, specs.UTSNamespace: c.UTS,
	}}
	for at, mappings := range map[string][]specs.LinuxIDMapping{"uids": c.User.UIDs, "gids": c.User.GIDs} {
		if _, ok := MapID(0, mappings); !ok {
			return nil, fmt.Errorf("user namespace: %s: 0 is not mapped: %w", at, errdefs.ErrInvalidArgument)
		}
		if err := validateMappings("user namespace: "+at, mappings); err != nil {
			return nil, err
		}
	}
	pod := &Pod{Namespaces: map[specs.LinuxNamespaceType]*os.File{}}
	var err error
	if c.UserNamespace == nil || c.Network || c.IPC || c.UTS {
		if pod.Namespaces, err = r.newSpaces(ctx, s); err != nil {
			return nil, err
		}
	}
	rest := PodConfig{PID: c.PID, ShmSize: c.ShmSize, MountLabel: c.MountLabel, Netns: c.Netns, Sysctls: c.Sysctls, Cgroup: c.Cgroup, owner: c.User, joined: pod.Namespaces}
	if !rest.PID && rest.ShmSize == 0 && len(rest.Sysctls) == 0 {
		return pod, nil
	}
	made, err := r.NewPod(ctx, rest)
	if err != nil {
		pod.close()
		return nil, err
	}
	for kind, f := range made.Namespaces {
		pod.Namespaces[kind] = f
	}
	pod.Shm, pod.Proc, pod.Holder = made.Shm, made.Proc, made.Holder
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
		fd, err := detachedTmpfs(c.shmOptions())
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

// shmOptions are those of the shared memory, which belongs to the root of the pod's user namespace.
func (c *PodConfig) shmOptions() []string {
	options := tmpfsOptions(fmt.Sprint(c.ShmSize))
	if u := c.owner; u != nil {
		uid, _ := MapID(0, u.UIDs)
		gid, _ := MapID(0, u.GIDs)
		options = append(options, fmt.Sprintf("uid=%d", uid), fmt.Sprintf("gid=%d", gid))
	}
	if c.MountLabel != "" {
		options = append(options, "context="+c.MountLabel)
	}
	return options
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
