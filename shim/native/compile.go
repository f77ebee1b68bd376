// Package native is the OCI runtime: it compiles an OCI runtime spec into a plan, a list of raw system calls, and has a
// freestanding program, the stage, run it. All knowledge of containers is here, in Go; the stage knows only how to make
// calls. See docs/adr/0001-plan-and-stage.md.
package native

import (
	"fmt"
	"io"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native/plan"
	"github.com/criserver/criserver/shim/native/seccomp"
	"github.com/criserver/criserver/shim/native/stage"
)

var errEOF = io.EOF

// input is all that a plan depends on. Compiling it is pure: the same input gives the same plan.
type input struct {
	spec        *specs.Spec
	process     *specs.Process
	host        Host
	rootfs      *Mount
	joined      map[specs.LinuxNamespaceType]int // namespace -> descriptor of the stage
	shm         int                              // the descriptor of the pod's shared memory; 0: none
	proc        int                              // the descriptor of the pod's proc; 0: none
	target      int                              // exec: the descriptor of the container's pidfd
	program     string                           // what is executed, when it is not the first argument
	gate        bool                             // the first two of stage.Extra are a Gate
	keepKeyring bool                             // leave the session keyring as it is
	hostMounts  bool                             // a spec without a mount namespace is taken
	rootAt      string                           // where hooks look for the root filesystem; "": there are none that do
	userns      int                              // the descriptor of the container's user namespace; 0: none
	idmaps      map[string]int                   // mappings of mounts (mappingKey) -> the descriptor of a user namespace with them
	tasks       []string                         // files of v1 cgroups to join
	rdt         string                           // such a file of an RDT class; "": none
	unified     string                           // directory of the v2 cgroup, which the stage is born in
	filter      *seccomp.Program
	// isDirectory says what kind of thing a bind's source is, which decides what is made for a missing target.
	isDirectory func(path string) (bool, error)
}

// built is a compiled plan and what its runner must know.
type built struct {
	plan       *plan.Plan
	cloneflags uintptr   // namespaces that the stage is born in
	terminal   bool      // first message: the descriptor of the pty's master, which the runner takes before it says go
	stops      bool      // next message: all is made but the root not entered, for hooks; it waits for a byte
	forks      bool      // next message: the pid of the process, a sibling of the stage
	roots      []podRoot // of a pod: a message and a byte for each
	argv       []string
	gate       int // the first operation after the process waits for its start
	warnings   []string
}

// compiler builds one plan.
type compiler struct {
	*plan.Plan
	in       *input
	root     plan.Reg // the root filesystem's mount
	gate     int
	mask     plan.Reg                  // an empty read-only tmpfs, when directories are to be masked
	fresh    []fresh                   // those that were attached last
	later    []func()                  // what makes a mount read-only once nothing needs to be made in it
	mapped   map[string]bool           // layers that are covered by what shows their owners mapped
	shared   map[*specs.Mount]plan.Reg // copies of what is mounted with shared propagation
	warnings []string
}

// How many operations plans have that are usual.
const (
	createOperations = 384
	hierarchyOps     = 12 // for each v1 hierarchy besides
	execOperations   = 128
)

func compileCreate(in *input) (*built, error) {
	c := &compiler{Plan: plan.New(createOperations + hierarchyOps*len(in.tasks)), in: in}
	b := &built{plan: c.Plan, terminal: in.process.Terminal, argv: in.process.Args}
	c.cgroups()
	c.keyring()
	c.host()
	var err error
	if b.cloneflags, err = c.namespaces(); err != nil {
		return nil, err
	}
	b.forks = c.joins(specs.PIDNamespace)
	steps := []func() error{c.rootfs, c.mounts, c.devices, c.paths, c.sysctls}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, err
		}
	}
	if b.terminal {
		c.terminal("dev/pts/ptmx", c.root)
		c.console()
	}
	b.stops = c.stopForHooks()
	c.pivot()
	if err := c.run(b.terminal, b.forks, true); err != nil {
		return nil, err
	}
	b.gate, b.warnings = c.gate, c.warnings
	return b, nil
}

func compileExec(in *input) (*built, error) {
	c := &compiler{Plan: plan.New(execOperations), in: in}
	b := &built{plan: c.Plan, terminal: in.process.Terminal, argv: in.process.Args, forks: c.namespaceOf(specs.PIDNamespace) != nil}
	if err := c.affinity("initial", initialCPUs(in.process)); err != nil {
		return nil, err
	}
	c.cgroups()
	if in.process.ExecCPUAffinity != nil {
		if err := c.affinity("final", in.process.ExecCPUAffinity.Final); err != nil {
			return nil, err
		}
	}
	c.keyring()
	c.host()
	c.At("linux.namespaces")
	flags := unix.CLONE_NEWNS // a user namespace comes later (keepUser, enterUser)
	for _, n := range namespaceFlags {
		if c.namespaceOf(n.kind) != nil {
			flags |= n.flag
		}
	}
	c.Setns(in.target, flags)
	if b.terminal {
		c.terminal("/dev/pts/ptmx", plan.Cwd)
	}
	if err := c.run(b.terminal, b.forks, false); err != nil {
		return nil, err
	}
	b.warnings = c.warnings
	return b, nil
}

// cgroups joins the v1 hierarchies. A task that moves only itself does not wait for the kernel's other CPUs (Linux 5.5).
func (c *compiler) cgroups() {
	c.At("linux.cgroupsPath")
	for _, tasks := range c.in.tasks {
		c.writeFile(tasks, "0")
	}
	if c.in.rdt != "" {
		c.At("linux.intelRdt")
		c.writeFile(c.in.rdt, "0")
	}
}

// keyring gives the process a session keyring of its own. It would otherwise hold the keys of whoever started the shim.
func (c *compiler) keyring() {
	if c.in.keepKeyring {
		return
	}
	c.At("session keyring")
	if label := c.in.process.SelinuxLabel; label != "" { // forgotten with execve
		c.writeFile("/proc/self/attr/keycreate", label)
	}
	c.SimpleOr([]plan.Option{plan.Accept(unix.ENOSYS)}, unix.SYS_KEYCTL, "keyctl", unix.KEYCTL_JOIN_SESSION_KEYRING, 0)
}

// host does what is written to the host's /proc, before anything of the container's could lie over it.
func (c *compiler) host() {
	p := c.in.process
	if p.OOMScoreAdj != nil {
		c.At("process.oomScoreAdj")
		adjust := *p.OOMScoreAdj
		if least := c.in.host.LeastOOMScoreAdj; adjust < least {
			c.warn("process.oomScoreAdj: %d needs CAP_SYS_RESOURCE, set to %d", adjust, least)
			adjust = least
		}
		c.writeFile("/proc/self/oom_score_adj", strconv.Itoa(adjust))
	}
	if p.SelinuxLabel != "" {
		c.At("process.selinuxLabel")
		c.writeFile("/proc/self/attr/exec", p.SelinuxLabel)
	}
	if p.ApparmorProfile != "" {
		c.At("process.apparmorProfile")
		c.writeFile("/proc/self/attr/apparmor/exec", "exec "+p.ApparmorProfile)
	}
}

func (c *compiler) writeFile(path, content string) {
	fd := c.Reg()
	c.Openat(fd, plan.Cwd, path, unix.O_WRONLY)
	c.WriteString(fd, content)
	c.Close(fd)
}

func (c *compiler) warn(format string, args ...any) {
	c.warnings = append(c.warnings, fmt.Sprintf(format, args...))
}

var namespaceFlags = []struct {
	kind specs.LinuxNamespaceType
	flag int
}{
	{specs.NetworkNamespace, unix.CLONE_NEWNET},
	{specs.IPCNamespace, unix.CLONE_NEWIPC},
	{specs.UTSNamespace, unix.CLONE_NEWUTS},
	{specs.PIDNamespace, unix.CLONE_NEWPID},
	{specs.CgroupNamespace, unix.CLONE_NEWCGROUP},
	{specs.TimeNamespace, unix.CLONE_NEWTIME},
}

func (c *compiler) namespaceOf(kind specs.LinuxNamespaceType) *specs.LinuxNamespace {
	for i := range c.in.spec.Linux.Namespaces {
		if n := &c.in.spec.Linux.Namespaces[i]; n.Type == kind {
			return n
		}
	}
	return nil
}

// joins says whether an existing namespace is entered.
func (c *compiler) joins(kind specs.LinuxNamespaceType) bool {
	n := c.namespaceOf(kind)
	_, held := c.in.joined[kind]
	return n != nil && (held || n.Path != "")
}

// namespaces joins those that exist and answers with those in which the stage is to be born. A pid namespace that is
// joined is entered only by the process that run forks at last; a cgroup namespace is made after the cgroups were joined.
func (c *compiler) namespaces() (uintptr, error) {
	made := uintptr(0)
	if ns := c.namespaceOf(specs.MountNamespace); ns != nil && ns.Path == "" {
		made = unix.CLONE_NEWNS
	}
	for _, n := range namespaceFlags {
		ns := c.namespaceOf(n.kind)
		if ns == nil {
			continue
		}
		c.At("linux.namespaces %s", n.kind)
		fd, held := c.in.joined[n.kind]
		switch {
		case held:
			c.Setns(fd, n.flag)
		case ns.Path != "":
			r := c.Reg()
			c.Openat(r, plan.Cwd, ns.Path, 0)
			c.Setns(r, n.flag)
			c.Close(r)
		case n.kind == specs.CgroupNamespace && c.inUser():
			// made in the user namespace (enterUser)
		case n.kind == specs.CgroupNamespace:
			c.Unshare(n.flag)
		case n.kind == specs.TimeNamespace:
			c.newTime()
		default:
			made |= uintptr(n.flag)
		}
	}
	c.joinMounts()
	c.hostname("hostname", unix.SYS_SETHOSTNAME, "sethostname", c.in.spec.Hostname)
	c.hostname("domainname", unix.SYS_SETDOMAINNAME, "setdomainname", c.in.spec.Domainname)
	return made, nil
}

func (c *compiler) hostname(place string, nr uintptr, call, name string) {
	if name == "" || c.joins(specs.UTSNamespace) { // a namespace that is joined has its name
		return
	}
	c.At(place)
	c.Simple(nr, call, name, len(name))
}

// terminal makes a pty in the devpts at path, reports the master and waits until it was taken. The slave becomes 0, 1 and 2.
func (c *compiler) terminal(path string, dir any) {
	c.At("process.terminal")
	master, slave := c.Reg(), c.Reg()
	c.Openat2(master, dir, path, unix.O_RDWR|unix.O_NOCTTY, unix.RESOLVE_NO_SYMLINKS)
	c.Ioctl(0, master, unix.TIOCSPTLCK, words32(0))
	c.Ioctl(slave, master, unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY)
	if size := c.in.process.ConsoleSize; size != nil {
		c.Ioctl(0, master, unix.TIOCSWINSZ, winsize(size))
	}
	for fd := range 3 {
		c.Dup3(slave, fd)
	}
	c.SimpleOr([]plan.Option{plan.Accept(unix.EPERM, unix.EINVAL)}, unix.SYS_FCHOWN, "fchown", slave, int(c.hostUID(c.in.process.User.UID)), -1)
	c.WriteReg(stage.Report, master)
	done := c.Label()
	c.Await(stage.Start, plan.IfZero(done))
	alive := c.Label()
	c.Getpid(0, plan.Then(alive))
	c.Mark(done)
	c.Exit(1)
	c.Mark(alive)
}

func words32(v uint32) plan.Struct {
	return plan.Struct{Data: []byte{byte(v), byte(v >> 8), byte(v >> 16), byte(v >> 24)}, Text: fmt.Sprintf("{%d}", v)}
}

func winsize(b *specs.Box) plan.Struct {
	return plan.Struct{Data: []byte{byte(b.Height), byte(b.Height >> 8), byte(b.Width), byte(b.Width >> 8), 0, 0, 0, 0},
		Text: fmt.Sprintf("{%d, %d}", b.Height, b.Width)}
}

// pivot makes the root filesystem the root and lets go of the host's.
func (c *compiler) pivot() {
	c.At("root")
	for _, f := range c.later {
		f()
	}
	if r := c.in.spec.Root; r != nil && r.Readonly {
		c.MountSetattr(c.root, 0, unix.MOUNT_ATTR_RDONLY, 0, 0)
	}
	if c.namespaceOf(specs.MountNamespace) == nil {
		c.changeDirectoryRoot()
		return
	}
	old := c.Reg()
	c.Openat(old, plan.Cwd, "/", unix.O_PATH|unix.O_DIRECTORY)
	c.Fchdir(c.root)
	c.PivotRoot()
	c.Fchdir(old)
	c.Mount("", ".", "", unix.MS_SLAVE|unix.MS_REC, "") // so that the host sees nothing of the umount
	c.Umount(".")
	c.Chdir("/")
	if propagation := propagationOptions[c.in.spec.Linux.RootfsPropagation]; propagation != 0 {
		c.At("linux.rootfsPropagation")
		c.Mount("", "/", "", propagation, "")
	}
}
