package native

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native/plan"
	"github.com/criserver/criserver/shim/native/stage"
)

// compilePod plans the process whose namespaces a pod's containers share. It waits for a byte; without a pid namespace it is
// killed there, as soon as its namespaces are held. The holder of a pid namespace lives on: the kernel reaps what
// becomes its child, since it ignores SIGCHLD. Whoever is in that namespace can see it, so it has nothing worth having:
// no capabilities, no descriptors, an empty root, and no user's id.
func compilePod(in *input, pod PodConfig) (*built, error) {
	c := &compiler{Plan: plan.New(execOperations), in: in}
	b := &built{plan: c.Plan, argv: []string{"holder"}}
	c.cgroups()
	owned := map[specs.LinuxNamespaceType]bool{specs.IPCNamespace: pod.IPC, specs.UTSNamespace: pod.UTS, specs.PIDNamespace: pod.PID}
	for _, n := range podNamespaces {
		if owned[n.kind] {
			b.cloneflags |= n.flag
		}
	}
	for _, n := range ownedNamespaces {
		if fd, ok := in.joined[n.kind]; ok {
			owned[n.kind] = true
			c.At("namespace %s", n.kind)
			c.Setns(fd, n.flag)
		}
	}
	if pod.Netns != "" {
		owned[specs.NetworkNamespace] = true
		c.At("netns")
		fd := c.Reg()
		c.Openat(fd, plan.Cwd, pod.Netns, 0)
		c.Setns(fd, unix.CLONE_NEWNET)
		c.Close(fd)
	}
	if pod.UTS && pod.Hostname != "" {
		c.At("hostname")
		c.Simple(unix.SYS_SETHOSTNAME, "sethostname", pod.Hostname, len(pod.Hostname))
	}
	if err := writeSysctls(c, pod.Sysctls, pod.owner, func(kind specs.LinuxNamespaceType) bool { return owned[kind] }); err != nil {
		return nil, err
	}
	b.roots = podRoots(in.host, pod)
	for i, root := range append(b.roots, emptyRoot) {
		if i == len(b.roots) && !pod.PID {
			break
		}
		c.At("pod's %s", root.name)
		if i == 0 {
			b.cloneflags |= unix.CLONE_NEWNS
			c.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, "")
		} else {
			c.Unshare(unix.CLONE_NEWNS)
		}
		if err := c.changeRoot(root); err != nil {
			return nil, err
		}
		if i < len(b.roots) {
			c.wait()
		}
	}
	if pod.PID {
		c.holder()
	}
	c.wait()
	c.At("pod")
	c.CloseRange(0, 0)
	forever := c.Label()
	c.Mark(forever)
	c.SimpleOr([]plan.Option{plan.Else(forever, unix.EINTR), plan.Then(forever)}, unix.SYS_PPOLL, "ppoll", 0, 0, 0, 0, 0) // pause, on every architecture
	return b, nil
}

// podRoot is a filesystem that is the root of a mount namespace, for containers to copy the mount from.
type podRoot struct {
	name       string
	fstype     string
	options    []string
	attributes uint64
}

// emptyRoot is what the holder is left with.
var emptyRoot = podRoot{"root", "tmpfs", []string{"size=4k"}, unix.MOUNT_ATTR_RDONLY | hidden}

const (
	shmRoot  = "shared memory"
	procRoot = "proc"
)

// podRoots are the mounts of a pod that this kernel can copy only out of a mount namespace. The shim takes each namespace
// from the stage, which then leaves it: no process stays in there, so nobody can get at what is not masked of proc.
func podRoots(h Host, pod PodConfig) []podRoot {
	var roots []podRoot
	if pod.ShmSize > 0 && !h.CloneDetached {
		roots = append(roots, podRoot{shmRoot, "tmpfs", pod.shmOptions(), hidden})
	}
	// Programs that enter the user namespace first cannot make a proc of a pid namespace that it does not own.
	if pod.PID && (!h.ProcPidns || pod.owner != nil) {
		roots = append(roots, podRoot{procRoot, "proc", nil, hidden})
	}
	return roots
}

// changeRoot leaves the mount namespace with this filesystem and no other.
func (c *compiler) changeRoot(r podRoot) error {
	fs, root := c.Reg(), c.Reg()
	c.Fsopen(fs, r.fstype)
	if err := c.configure(fs, r.options); err != nil {
		return err
	}
	c.Fsmount(root, fs, r.attributes)
	c.Close(fs)
	c.place(root, "/")
	c.Fchdir(root)
	c.PivotRoot()
	c.Umount(".")
	c.Chdir("/")
	c.Close(root)
	return nil
}

// holder takes everything away that a process in the pod's pid namespace could want of it.
func (c *compiler) holder() {
	c.At("pod's holder")
	c.SetName("criserver-hold")
	c.Unshare(unix.CLONE_NEWCGROUP)
	c.CloseRange(stage.Extra, 0)
	ignore := plan.Struct{Data: append([]byte{1}, make([]byte, 31)...), Text: "{SIG_IGN}"}
	c.Simple(unix.SYS_RT_SIGACTION, "rt_sigaction", int(unix.SIGCHLD), ignore, 0, 8)
	c.Setgroups(nil)
	for n := 0; n <= c.in.host.LastCapability; n++ {
		if c.in.host.Capabilities&(1<<n) != 0 {
			c.Prctl(unix.PR_CAPBSET_DROP, [4]int{n})
		}
	}
	const nobody = 65534
	c.Simple(unix.SYS_SETRESGID, "setresgid", nobody, nobody, nobody)
	c.Simple(unix.SYS_SETRESUID, "setresuid", nobody, nobody, nobody)
	c.Prctl(unix.PR_SET_NO_NEW_PRIVS, [4]int{1})
	c.Prctl(unix.PR_SET_DUMPABLE, [4]int{0})
}
