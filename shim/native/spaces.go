package native

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native/plan"
	"github.com/criserver/criserver/shim/native/stage"
)

// UserMappings are those of a user namespace: what an id inside is outside.
type UserMappings struct{ UIDs, GIDs []specs.LinuxIDMapping }

// ownedNamespaces are those that a user namespace is to own, and so are made by a process in it. A pid namespace is not among
// them: only its first process could mount its proc, and by then the host's privileges are gone.
var ownedNamespaces = []struct {
	kind specs.LinuxNamespaceType
	flag int
	file string
}{
	{specs.NetworkNamespace, unix.CLONE_NEWNET, "net"},
	{specs.IPCNamespace, unix.CLONE_NEWIPC, "ipc"},
	{specs.UTSNamespace, unix.CLONE_NEWUTS, "uts"},
}

// spacesConfig says which namespaces to make.
type spacesConfig struct {
	user     *os.File // that is to own them; nil: one is made with the mappings
	mappings UserMappings
	kinds    map[specs.LinuxNamespaceType]bool // of ownedNamespaces
	hostname string
}

// compileSpaces plans the process that makes a user namespace, or joins one, and makes those that it owns. It reports twice and
// waits each time: for its mappings, and for the namespaces to be opened.
func compileSpaces(host Host, s spacesConfig) *built {
	c := &compiler{Plan: plan.New(execOperations), in: &input{host: host}}
	c.At("user namespace")
	if s.user != nil {
		c.Setns(stage.Extra, unix.CLONE_NEWUSER)
	} else {
		c.Unshare(unix.CLONE_NEWUSER)
	}
	c.wait()
	c.Setgroups(nil)
	c.Simple(unix.SYS_SETRESGID, "setresgid", 0, 0, 0) // what the namespaces have of their own, such as mqueue's root, is its root's
	c.Simple(unix.SYS_SETRESUID, "setresuid", 0, 0, 0)
	flags := 0
	for _, n := range ownedNamespaces {
		if s.kinds[n.kind] {
			flags |= n.flag
		}
	}
	if flags != 0 {
		c.At("namespaces of the user namespace")
		c.Unshare(flags)
	}
	if s.kinds[specs.UTSNamespace] && s.hostname != "" {
		c.At("hostname")
		c.Simple(unix.SYS_SETHOSTNAME, "sethostname", s.hostname, len(s.hostname))
	}
	c.wait()
	return &built{plan: c.Plan, argv: []string{"namespaces"}}
}

// newSpaces makes namespaces that live as long as the descriptors. The caller closes them. With no s.user the user namespace is
// among them.
func (r *Runtime) newSpaces(ctx context.Context, s spacesConfig) (map[specs.LinuxNamespaceType]*os.File, error) {
	l := launch{waits: true}
	if s.user != nil {
		l.extra = []*os.File{s.user}
	}
	p, err := r.launch(ctx, compileSpaces(r.host, s), l)
	if err != nil {
		return nil, fmt.Errorf("make a user namespace: %w", err)
	}
	defer p.discard()
	stop := context.AfterFunc(ctx, p.cancel)
	defer stop()
	spaces, err := p.openSpaces(s)
	if err != nil {
		closeSpaces(spaces)
		return nil, fmt.Errorf("make a user namespace: %w", err)
	}
	return spaces, nil
}

func (p *Process) openSpaces(s spacesConfig) (map[specs.LinuxNamespaceType]*os.File, error) {
	spaces := map[specs.LinuxNamespaceType]*os.File{}
	proc := "/proc/" + strconv.Itoa(p.Pid)
	open := func(kind specs.LinuxNamespaceType, file string) error {
		f, err := os.Open(proc + "/ns/" + file)
		if err == nil {
			spaces[kind] = f
		}
		return err
	}
	if s.user == nil {
		for file, mappings := range map[string][]specs.LinuxIDMapping{"uid_map": s.mappings.UIDs, "gid_map": s.mappings.GIDs} {
			if err := writeMap(proc+"/"+file, mappings); err != nil {
				return spaces, err
			}
		}
		if err := open(specs.UserNamespace, "user"); err != nil {
			return spaces, err
		}
	}
	if err := p.run.Go(); err != nil {
		return spaces, err
	}
	if _, err := p.run.Message(); err != nil {
		return spaces, p.explain(err)
	}
	for _, n := range ownedNamespaces {
		if s.kinds[n.kind] {
			if err := open(n.kind, n.file); err != nil {
				return spaces, err
			}
		}
	}
	return spaces, nil
}

// writeMap sets the mappings of a user namespace, which the kernel takes in one write only.
func writeMap(file string, mappings []specs.LinuxIDMapping) error {
	var b strings.Builder
	for _, m := range mappings {
		fmt.Fprintf(&b, "%d %d %d\n", m.ContainerID, m.HostID, m.Size)
	}
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(b.String())
	err = errors.Join(err, f.Close())
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("the kernel refuses the mappings %q (are the host's ids there?): %w: %w", b.String(), err, errdefs.ErrInvalidArgument)
	}
	return err
}

func closeSpaces(spaces map[specs.LinuxNamespaceType]*os.File) {
	for _, f := range spaces {
		_ = f.Close()
	}
}

// mapMounts makes the user namespaces by which mounts are mapped, one for all that have the same mappings. Those of the container's
// own are its own's.
func (r *Runtime) mapMounts(ctx context.Context, spec *specs.Spec, add func(mappingKey string, made *os.File)) error {
	known := map[string]bool{mappingKey(spec.Linux.UIDMappings, spec.Linux.GIDMappings): true}
	for i, m := range spec.Mounts {
		key := mappingKey(m.UIDMappings, m.GIDMappings)
		if len(m.UIDMappings) == 0 || known[key] {
			continue
		}
		known[key] = true
		spaces, err := r.newSpaces(ctx, spacesConfig{mappings: UserMappings{m.UIDMappings, m.GIDMappings}})
		if err != nil {
			return fmt.Errorf("mounts[%d] %s: %w", i, m.Destination, err)
		}
		add(key, spaces[specs.UserNamespace])
	}
	return nil
}

// complete makes the namespaces that a container with a user namespace needs and that nobody gave it, and the user namespaces of
// mounts. They are the caller's to close.
func (r *Runtime) complete(ctx context.Context, c *Config) (own []*os.File, err error) {
	defer func() {
		if err != nil {
			for _, f := range own {
				_ = f.Close()
			}
		}
	}()
	c.idmaps = map[string]*os.File{}
	if err := r.mapMounts(ctx, c.Spec, func(key string, f *os.File) { c.idmaps[key], own = f, append(own, f) }); err != nil {
		return own, err
	}
	s := spacesConfig{mappings: UserMappings{c.Spec.Linux.UIDMappings, c.Spec.Linux.GIDMappings}, kinds: map[specs.LinuxNamespaceType]bool{}, hostname: c.Spec.Hostname}
	var asked bool
	for _, n := range c.Spec.Linux.Namespaces {
		switch held := c.Namespaces[n.Type]; {
		case n.Type == specs.UserNamespace && held != nil:
			asked, s.user = true, held
		case n.Type == specs.UserNamespace && n.Path != "":
			f, err := os.Open(n.Path)
			if err != nil {
				return own, fmt.Errorf("linux.namespaces user: %w", err)
			}
			own, asked, s.user = append(own, f), true, f
		case n.Type == specs.UserNamespace:
			asked = true
		case held == nil && n.Path == "":
			s.kinds[n.Type] = true
		}
	}
	if !asked {
		return own, nil
	}
	namespaces := map[specs.LinuxNamespaceType]*os.File{specs.UserNamespace: s.user}
	for kind, f := range c.Namespaces {
		namespaces[kind] = f
	}
	c.Namespaces = namespaces
	if s.user != nil && !s.kinds[specs.NetworkNamespace] && !s.kinds[specs.IPCNamespace] && !s.kinds[specs.UTSNamespace] {
		return own, nil
	}
	made, err := r.newSpaces(ctx, s)
	if err != nil {
		return own, err
	}
	for kind, f := range made {
		namespaces[kind], own = f, append(own, f)
	}
	return own, nil
}

// MapsOwners tells whether containers can have user namespaces with layers in a directory: whether user namespaces can be made,
// and the directory's filesystem shows owners mapped. Nil: they can.
func (r *Runtime) MapsOwners(ctx context.Context, directory string) error {
	mapping := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 1 << 16, Size: 1 << 16}}
	spaces, err := r.newSpaces(ctx, spacesConfig{mappings: UserMappings{mapping, mapping}})
	if err != nil {
		return err
	}
	defer closeSpaces(spaces)
	tree, err := unix.OpenTree(unix.AT_FDCWD, directory, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return &os.PathError{Op: "open_tree", Path: directory, Err: err}
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(spaces[specs.UserNamespace].Fd())}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("the filesystem of %s does not map owners (mount_setattr, MOUNT_ATTR_IDMAP): %w", directory, err)
	}
	return nil
}

// OwnerOf opens the user namespace that owns the namespace at a path (ioctl_ns(2)). It is an error when that is the host's.
func OwnerOf(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fd, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		return nil, fmt.Errorf("the owner of namespace %s: %w", path, err)
	}
	owner := os.NewFile(uintptr(fd), "user")
	var theirs, ours unix.Stat_t
	err = errors.Join(unix.Fstat(fd, &theirs), unix.Stat("/proc/self/ns/user", &ours))
	if err == nil && theirs.Ino == ours.Ino {
		err = fmt.Errorf("namespace %s is owned by the host's user namespace: %w", path, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		_ = owner.Close()
		return nil, err
	}
	return owner, nil
}

// usesUser says whether a container has a user namespace or mounts with mapped owners.
func usesUser(spec *specs.Spec) bool {
	if spec == nil || spec.Linux == nil {
		return false
	}
	for _, n := range spec.Linux.Namespaces {
		if n.Type == specs.UserNamespace {
			return true
		}
	}
	for _, m := range spec.Mounts {
		if len(m.UIDMappings)+len(m.GIDMappings) > 0 {
			return true
		}
	}
	return false
}

// giveUser gives the stage what complete made, or, when only the plan is wanted, the numbers that it would have.
func (r *Runtime) giveUser(c Config, in *input, give func(*os.File) int) {
	for _, n := range c.Spec.Linux.Namespaces {
		switch _, held := in.joined[n.Type]; {
		case held || n.Path != "" && n.Type != specs.UserNamespace:
		case n.Type == specs.UserNamespace:
			in.joined[n.Type] = give(nil)
		case n.Type == specs.NetworkNamespace || n.Type == specs.IPCNamespace || n.Type == specs.UTSNamespace:
			if usesNamespace(c.Spec, specs.UserNamespace) {
				in.joined[n.Type] = give(nil)
			}
		}
	}
	in.userns = in.joined[specs.UserNamespace]
	in.idmaps = map[string]int{}
	if in.userns != 0 {
		in.idmaps[mappingKey(c.Spec.Linux.UIDMappings, c.Spec.Linux.GIDMappings)] = in.userns
	}
	for _, m := range c.Spec.Mounts {
		key := mappingKey(m.UIDMappings, m.GIDMappings)
		if _, known := in.idmaps[key]; !known && len(m.UIDMappings) > 0 {
			in.idmaps[key] = give(c.idmaps[key])
		}
	}
}

func usesNamespace(spec *specs.Spec, kind specs.LinuxNamespaceType) bool {
	for _, n := range spec.Linux.Namespaces {
		if n.Type == kind {
			return true
		}
	}
	return false
}
