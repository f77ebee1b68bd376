package native

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native/plan"
	"github.com/criserver/criserver/shim/native/stage"
)

// A container with a user namespace is made by a stage that stays in the host's until all is mounted: it needs the host's
// privileges for that, and what it has mounted is locked for the container, which gets a copy of the mount namespace that its
// user namespace owns. See docs/adr/0011-user-namespaces.md.

var errSharedInUser = fmt.Errorf("shared propagation: out of a mount namespace that a user namespace owns no mount is passed on: %w", errdefs.ErrInvalidArgument)

// inUser says that the container has a user namespace.
func (c *compiler) inUser() bool {
	return c.in.spec != nil && c.namespaceOf(specs.UserNamespace) != nil
}

// hostUID and hostGID are what an id in the container is outside. An id that is not mapped is itself.
func (c *compiler) hostUID(id uint32) uint32 {
	outside, _ := MapID(id, c.in.spec.Linux.UIDMappings)
	return outside
}

func (c *compiler) hostGID(id uint32) uint32 {
	outside, _ := MapID(id, c.in.spec.Linux.GIDMappings)
	return outside
}

// MapID translates an id of a user namespace to the outside; one that has no mapping is answered as it is.
func MapID(id uint32, mappings []specs.LinuxIDMapping) (outside uint32, mapped bool) {
	for _, m := range mappings {
		if id >= m.ContainerID && id-m.ContainerID < m.Size {
			return m.HostID + id - m.ContainerID, true
		}
	}
	return id, false
}

// hasIDs refuses ids that the container's user namespace does not have.
func (c *compiler) hasIDs(uid, gid uint32) error {
	if !c.inUser() {
		return nil
	}
	if _, ok := MapID(uid, c.in.spec.Linux.UIDMappings); !ok {
		return fmt.Errorf("uid %d is not in linux.uidMappings: %w", uid, errdefs.ErrInvalidArgument)
	}
	if _, ok := MapID(gid, c.in.spec.Linux.GIDMappings); !ok {
		return fmt.Errorf("gid %d is not in linux.gidMappings: %w", gid, errdefs.ErrInvalidArgument)
	}
	return nil
}

// privileges are the capabilities that the process has before it gives any away: in a new user namespace all.
func (c *compiler) privileges() uint64 {
	if c.inUser() {
		return 1<<(c.in.host.LastCapability+1) - 1
	}
	return c.in.host.Capabilities
}

// mapLayers lays over each layer, in the stage's mount namespace, a copy of it whose owners are those of the user namespace
// (Linux 5.19).
func (c *compiler) mapLayers(o overlayOptions) {
	if !c.inUser() {
		return
	}
	if c.mapped == nil {
		c.mapped = map[string]bool{}
	}
	for _, d := range o.lower {
		if c.isMapped(d) {
			continue
		}
		c.mapped[d] = true
		tree := c.Reg()
		c.OpenTree(tree, plan.Cwd, d, unix.OPEN_TREE_CLONE)
		c.MountIdmap(tree, 0, c.in.userns)
		c.place(tree, d)
		c.Close(tree)
	}
}

// idmapOf is the descriptor of the user namespace by which a bind mount is mapped, 0 when it is not.
func (c *compiler) idmapOf(m *specs.Mount, o mountOptions) (int, error) {
	if len(m.UIDMappings) == 0 && len(m.GIDMappings) == 0 {
		if o.idmap && !c.inUser() {
			return 0, fmt.Errorf("option idmap without mappings, of a container without a user namespace: %w", errdefs.ErrInvalidArgument)
		}
		if o.idmap {
			return c.in.userns, nil
		}
		return 0, nil
	}
	fd, ok := c.in.idmaps[mappingKey(m.UIDMappings, m.GIDMappings)]
	if !ok {
		return 0, fmt.Errorf("no user namespace was made for its mappings: %w", errdefs.ErrInternal)
	}
	return fd, nil
}

func mappingKey(uids, gids []specs.LinuxIDMapping) string { return fmt.Sprint(uids, gids) }

// ownerOptions are the options of a filesystem with the ids outside, since it is mounted from there.
func (c *compiler) ownerOptions(fstype string, options []string) ([]string, error) {
	if !c.inUser() || fstype != "tmpfs" && fstype != "devpts" {
		return options, nil
	}
	out := slices.Clone(options)
	named := map[string]bool{}
	for i, o := range out {
		key, value, _ := strings.Cut(o, "=")
		if key != "uid" && key != "gid" {
			continue
		}
		named[key] = true
		id, err := strconv.ParseUint(value, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("option %q: not an id: %w", o, errdefs.ErrInvalidArgument)
		}
		outside := c.hostUID(uint32(id))
		if key == "gid" {
			outside = c.hostGID(uint32(id))
			err = c.hasIDs(0, uint32(id))
		} else {
			err = c.hasIDs(uint32(id), 0)
		}
		if err != nil {
			return nil, fmt.Errorf("option %q: %w", o, err)
		}
		out[i] = fmt.Sprintf("%s=%d", key, outside)
	}
	if fstype == "tmpfs" {
		for key, id := range map[string]uint32{"uid": c.hostUID(0), "gid": c.hostGID(0)} {
			if !named[key] {
				out = append(out, fmt.Sprintf("%s=%d", key, id))
			}
		}
		slices.Sort(out[len(options):])
	}
	return out, nil
}

// keepUser keeps the way into the user namespace beyond the closing of the descriptors, where the plan was. Neither it nor a
// pidfd is a directory that a working directory could be reached by.
func (c *compiler) keepUser() {
	way := c.in.userns
	if c.in.target != 0 {
		way = c.in.target
	}
	if !c.inUser() {
		c.Simple(unix.SYS_CLOSE_RANGE, "close_range", stage.Plan, stage.Plan, 0) // a number that was free again
		return
	}
	c.Simple(unix.SYS_DUP3, "dup3", way, stage.Plan, unix.O_CLOEXEC)
}

// enterUser enters the user namespace. What is made of a container (create) is copied into namespaces that it owns: the copies
// of mounts cannot be undone, one by one, by the container.
func (c *compiler) enterUser(create bool) {
	if !c.inUser() {
		return
	}
	c.At("linux.namespaces user")
	c.Setns(stage.Plan, unix.CLONE_NEWUSER)
	c.Simple(unix.SYS_CLOSE, "close", stage.Plan)
	if !create {
		return
	}
	flags := unix.CLONE_NEWNS
	if c.namespaceOf(specs.CgroupNamespace) != nil && !c.joins(specs.CgroupNamespace) {
		flags |= unix.CLONE_NEWCGROUP
	}
	c.Unshare(flags)
}

// validateUser checks a user namespace and its mappings.
func validateUser(spec *specs.Spec, p *specs.Process, asked bool) error {
	uids, gids := spec.Linux.UIDMappings, spec.Linux.GIDMappings
	switch {
	case !asked && len(uids)+len(gids) > 0:
		return fmt.Errorf("linux.uidMappings and linux.gidMappings: linux.namespaces has no user namespace: %w", errdefs.ErrInvalidArgument)
	case asked && (len(uids) == 0 || len(gids) == 0):
		return fmt.Errorf("linux.uidMappings and linux.gidMappings: both are needed with a user namespace, also with one of a path: %w", errdefs.ErrInvalidArgument)
	case asked && propagationOptions[spec.Linux.RootfsPropagation]&unix.MS_SHARED != 0:
		return fmt.Errorf("linux.rootfsPropagation: %w", errSharedInUser)
	}
	if err := validateMappings("linux.uidMappings", uids); err != nil {
		return err
	}
	if err := validateMappings("linux.gidMappings", gids); err != nil {
		return err
	}
	if asked {
		if err := validateRoot(uids, gids, p.User); err != nil {
			return err
		}
	}
	for i, m := range spec.Mounts {
		if len(m.UIDMappings) == 0 && len(m.GIDMappings) == 0 {
			continue
		}
		at := fmt.Sprintf("mounts[%d] %s", i, m.Destination)
		if o, err := parseOptions(m.Options); err == nil && !o.bind && m.Type != "bind" {
			return fmt.Errorf("%s: uidMappings and gidMappings are for bind mounts: %w", at, errdefs.ErrInvalidArgument)
		}
		if len(m.UIDMappings) == 0 || len(m.GIDMappings) == 0 {
			return fmt.Errorf("%s: uidMappings and gidMappings are both needed: %w", at, errdefs.ErrInvalidArgument)
		}
		if err := validateMappings(at+": uidMappings", m.UIDMappings); err != nil {
			return err
		}
		if err := validateMappings(at+": gidMappings", m.GIDMappings); err != nil {
			return err
		}
	}
	return nil
}

// validateRoot checks that root and the process's ids are mapped.
func validateRoot(uids, gids []specs.LinuxIDMapping, user specs.User) error {
	for _, id := range []uint32{0, user.UID} {
		if _, ok := MapID(id, uids); !ok {
			return fmt.Errorf("linux.uidMappings: uid %d is not mapped: %w", id, errdefs.ErrInvalidArgument)
		}
	}
	for _, id := range append([]uint32{0, user.GID}, user.AdditionalGids...) {
		if _, ok := MapID(id, gids); !ok {
			return fmt.Errorf("linux.gidMappings: gid %d is not mapped: %w", id, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// mostMappings is how many extents the kernel takes (user_namespaces(7)).
const mostMappings = 340

func validateMappings(at string, mappings []specs.LinuxIDMapping) error {
	if len(mappings) > mostMappings {
		return fmt.Errorf("%s: %d mappings, the kernel takes %d: %w", at, len(mappings), mostMappings, errdefs.ErrInvalidArgument)
	}
	overlap := func(a, b, size, other uint32) bool {
		return uint64(a) < uint64(b)+uint64(other) && uint64(b) < uint64(a)+uint64(size)
	}
	for i, m := range mappings {
		const all = 1 << 32
		if m.Size == 0 || uint64(m.ContainerID)+uint64(m.Size) >= all || uint64(m.HostID)+uint64(m.Size) >= all {
			return fmt.Errorf("%s[%d]: a range of %d ids from %d (on the host %d) is empty or goes beyond the last id: %w",
				at, i, m.Size, m.ContainerID, m.HostID, errdefs.ErrInvalidArgument)
		}
		for _, n := range mappings[:i] {
			if overlap(m.ContainerID, n.ContainerID, m.Size, n.Size) || overlap(m.HostID, n.HostID, m.Size, n.Size) {
				return fmt.Errorf("%s[%d]: it overlaps with another: %w", at, i, errdefs.ErrInvalidArgument)
			}
		}
	}
	return nil
}
