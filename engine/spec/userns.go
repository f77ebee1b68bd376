package spec

import (
	"fmt"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Root is who root in the pod is on the host: 0, or as its user namespace says.
func (p *Pod) Root() (uid, gid int) { return p.Outside(0, 0) }

// Outside is who a user and a group of the pod are on the host.
func (p *Pod) Outside(uid, gid uint32) (int, int) {
	u := p.Security.Namespaces.User
	if u == nil {
		return int(uid), int(gid)
	}
	return outside(uid, u.UIDs), outside(gid, u.GIDs)
}

func outside(id uint32, mappings []IDMapping) int {
	for _, m := range mappings {
		if id >= m.Container && id-m.Container < m.Size {
			return int(m.Host + id - m.Container)
		}
	}
	return int(id)
}

// userNamespace has the container join its pod's user namespace.
func (b *builder) userNamespace(s *specs.Spec) error {
	u := b.in.Pod.Security.Namespaces.User
	if u == nil {
		return nil
	}
	for at, mappings := range map[string][]IDMapping{"uids": u.UIDs, "gids": u.GIDs} {
		if !slices.ContainsFunc(mappings, func(m IDMapping) bool { return m.Container == 0 && m.Size > 0 }) {
			return invalid("pod's user namespace: %s: 0 is not mapped", at)
		}
	}
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	s.Linux.UIDMappings, s.Linux.GIDMappings = ociMappings(u.UIDs), ociMappings(u.GIDs)
	b.out.PodNamespaces = append(b.out.PodNamespaces, "user")
	for what, id := range map[string]uint32{"user": b.in.User.UID} {
		if !mapped(id, u.UIDs) {
			return invalid("%s %d of the container is not in the uids of the pod's user namespace", what, id)
		}
	}
	for _, id := range append([]uint32{b.in.User.GID}, b.in.User.AdditionalGIDs...) {
		if !mapped(id, u.GIDs) {
			return invalid("group %d of the container is not in the gids of the pod's user namespace", id)
		}
	}
	return nil
}

func mapped(id uint32, mappings []IDMapping) bool {
	return slices.ContainsFunc(mappings, func(m IDMapping) bool { return id >= m.Container && id-m.Container < m.Size })
}

func ociMappings(mappings []IDMapping) []specs.LinuxIDMapping {
	var all []specs.LinuxIDMapping
	for _, m := range mappings {
		all = append(all, specs.LinuxIDMapping{ContainerID: m.Container, HostID: m.Host, Size: m.Size})
	}
	return all
}

// pingGroups is the parameter by which groups may use ping sockets. It cannot name groups that a user namespace does not have.
const pingGroups = "net.ipv4.ping_group_range"

// mappedPingGroups is the value of pingGroups for all groups that a user namespace has from 0 on.
func mappedPingGroups(u *UserNamespace) string {
	top := uint64(0)
	for more := true; more; {
		more = false
		for _, m := range u.GIDs {
			if uint64(m.Container) <= top && uint64(m.Container)+uint64(m.Size) > top {
				top, more = uint64(m.Container)+uint64(m.Size), true
			}
		}
	}
	return fmt.Sprintf("0 %d", min(max(top, 1)-1, 1<<31-1))
}
