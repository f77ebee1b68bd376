package native

import (
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native/plan"
	"github.com/criserver/criserver/shim/native/stage"
)

// run ends every plan that runs a program. Privileges and descriptors go before a pid namespace is entered that others
// are in already (forks), so that a stage that can be seen there holds nothing that they do not have. With waits it
// reports once more and waits for a byte.
func (c *compiler) run(terminal, forks, waits bool) error {
	if err := c.limits(); err != nil {
		return err
	}
	if err := c.scheduling(); err != nil {
		return err
	}
	c.At("process.cwd")
	c.keepUser()
	c.CloseRange(c.firstOurs(), 0) // a working directory must not lead out by a descriptor of ours
	c.workingDirectory(waits)
	c.enterUser(waits)
	c.CloseRange(3, unix.CLOSE_RANGE_CLOEXEC) // before a filter that may not allow it
	if err := c.credentials(); err != nil {
		return err
	}
	c.At("process")
	if forks {
		c.fork()
	}
	c.Simple(unix.SYS_SETSID, "setsid")
	if terminal {
		c.Simple(unix.SYS_IOCTL, "ioctl", 0, unix.TIOCSCTTY, 0)
	}
	if waits {
		c.waitForStart()
	}
	if c.in.process.NoNewPrivileges {
		c.At("process.noNewPrivileges")
		c.Prctl(unix.PR_SET_NO_NEW_PRIVS, [4]int{1})
		c.seccomp()
	}
	c.At("process.args")
	c.execve()
	return nil
}

// rlimits by the names of the OCI spec; the numbers are those of getrlimit(2).
var rlimits = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_DATA": unix.RLIMIT_DATA,
	"RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK,
	"RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE,
	"RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS, "RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO,
	"RLIMIT_RTTIME": unix.RLIMIT_RTTIME, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
}

func (c *compiler) limits() error {
	for _, l := range c.in.process.Rlimits {
		c.At("process.rlimits %s", l.Type)
		number, ok := rlimits[l.Type]
		if !ok {
			return fmt.Errorf("process.rlimits: %q is not a limit", l.Type)
		}
		c.Prlimit(number, l.Type, l.Soft, l.Hard)
	}
	c.At("process.user.umask")
	umask := 0o022
	if m := c.in.process.User.Umask; m != nil {
		umask = int(*m)
	}
	c.Simple(unix.SYS_UMASK, "umask", plan.Octal(umask))
	return nil
}

// workingDirectory enters process.cwd as root; for a container, not for an exec, it is made when it is missing.
func (c *compiler) workingDirectory(create bool) {
	clean := strings.TrimPrefix(path.Clean("/"+c.in.process.Cwd), "/")
	c.Chdir("/")
	if clean == "" {
		return
	}
	r := c.Reg()
	if create {
		missing, done := c.Label(), c.Label()
		c.Openat2(r, plan.Cwd, clean, unix.O_PATH|unix.O_DIRECTORY, inRoot, plan.Else(missing, unix.ENOENT), plan.Then(done))
		c.Mark(missing)
		c.makePath(r, plan.Cwd, clean, true)
		c.Mark(done)
	} else {
		c.Openat2(r, plan.Cwd, clean, unix.O_PATH|unix.O_DIRECTORY, inRoot)
	}
	c.Fchdir(r)
	c.Close(r)
}

// credentials become the process's: bounding set, groups, user, capabilities. A filter that is not protected by
// no_new_privs needs CAP_SYS_ADMIN, so it goes in between.
func (c *compiler) credentials() error {
	p := c.in.process
	caps, err := c.capabilities()
	if err != nil {
		return err
	}
	c.At("process.capabilities.bounding")
	for n := 0; n <= c.in.host.LastCapability; n++ {
		if c.privileges()&(1<<n) != 0 && caps.bounding&(1<<n) == 0 {
			c.Prctl(unix.PR_CAPBSET_DROP, [4]int{n})
		}
	}
	c.At("process.user")
	if p.User.UID != 0 {
		c.Prctl(unix.PR_SET_KEEPCAPS, [4]int{1})
	}
	c.Setgroups(p.User.AdditionalGids)
	gid, uid := int(p.User.GID), int(p.User.UID)
	c.Simple(unix.SYS_SETRESGID, "setresgid", gid, gid, gid)
	c.Simple(unix.SYS_SETRESUID, "setresuid", uid, uid, uid)
	if !p.NoNewPrivileges && c.in.filter != nil {
		if uid != 0 {
			c.Capset(c.privileges(), c.privileges(), 0)
		}
		c.seccomp()
	}
	c.At("process.capabilities")
	c.Capset(caps.effective, caps.permitted, caps.inheritable)
	for n := 0; n <= c.in.host.LastCapability; n++ {
		if caps.ambient&(1<<n) != 0 {
			c.Prctl(unix.PR_CAP_AMBIENT, [4]int{unix.PR_CAP_AMBIENT_RAISE, n})
		}
	}
	return nil
}

func (c *compiler) seccomp() {
	if c.in.filter == nil {
		return
	}
	c.At("linux.seccomp")
	c.Seccomp(c.in.filter.Filter, c.in.filter.Flags)
}

// fork makes the process that enters the pid namespace, a child of the stage's parent, and reports its pid. It is clone(2)
// because filters answer clone3 with ENOSYS.
func (c *compiler) fork() {
	child := c.Label()
	pid := c.Reg()
	c.SimpleOr([]plan.Option{plan.IfZero(child)}, unix.SYS_CLONE, "clone", unix.CLONE_PARENT, 0, 0, 0, 0)
	c.SetResult(pid)
	c.WriteReg(stage.Report, pid)
	c.Exit(0)
	c.Mark(child)
	c.Free(pid)
}

// wait reports that all is made and waits for the byte that lets the process go. The end of the pipe ends the stage.
func (c *compiler) wait() {
	end, alive := c.Label(), c.Label()
	c.Simple(unix.SYS_WRITE, "write", stage.Report, plan.Struct{Data: make([]byte, 8), Text: "{0}"}, 8)
	c.Await(stage.Start, plan.IfZero(end), plan.Then(alive))
	c.Mark(end)
	c.Exit(1)
	c.Mark(alive)
}

// defaultPath is searched when the environment has no PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// execve becomes the program, searched for in the PATH that it will have.
func (c *compiler) execve() {
	p := c.in.process
	candidates := []string{p.Args[0]}
	if c.in.program != "" {
		candidates[0] = c.in.program
	} else if !strings.Contains(p.Args[0], "/") {
		search := defaultPath
		for _, e := range p.Env {
			if value, ok := strings.CutPrefix(e, "PATH="); ok {
				search = value
			}
		}
		candidates = candidates[:0]
		for _, directory := range strings.Split(search, ":") {
			if directory == "" {
				directory = "."
			}
			candidates = append(candidates, directory+"/"+p.Args[0])
		}
	}
	for i, candidate := range candidates {
		var options []plan.Option
		if i < len(candidates)-1 {
			options = append(options, plan.Accept(unix.ENOENT, unix.ENOTDIR, unix.EACCES))
		}
		c.Execve(candidate, p.Args, p.Env, options...)
	}
}
