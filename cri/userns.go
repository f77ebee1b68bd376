package cri

import (
	"slices"
	"strconv"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/engine/spec"
)

// userNamespaceOf translates a pod's user namespace; nil is the host's.
func userNamespaceOf(at string, options *runtime.UserNamespace) (*spec.UserNamespace, error) {
	switch mode := options.GetMode(); {
	case options == nil:
		return nil, nil
	case mode == runtime.NamespaceMode_NODE:
		if len(options.GetUids())+len(options.GetGids()) > 0 {
			return nil, invalid(at, "mode NODE has no mappings")
		}
		return nil, nil
	case mode != runtime.NamespaceMode_POD:
		return nil, invalid(at+".mode", "%s: only POD and NODE are known", mode)
	}
	uids, err := mappingsOf(at+".uids", options.GetUids())
	if err != nil {
		return nil, err
	}
	gids, err := mappingsOf(at+".gids", options.GetGids())
	if err != nil {
		return nil, err
	}
	for field, mappings := range map[string][]spec.IDMapping{at + ".uids": uids, at + ".gids": gids} {
		if !slices.ContainsFunc(mappings, func(m spec.IDMapping) bool { return m.Container == 0 }) {
			return nil, invalid(field, "container_id 0 is not mapped: a pod needs a root")
		}
	}
	return &spec.UserNamespace{UIDs: uids, GIDs: gids}, nil
}

// mostMappings is how many the kernel takes (user_namespaces(7)).
const mostMappings = 340

// mappingsOf translates mappings, of which there must be at least one and none that overlaps another.
func mappingsOf(at string, mappings []*runtime.IDMapping) ([]spec.IDMapping, error) {
	if len(mappings) == 0 {
		return nil, required(at)
	}
	if len(mappings) > mostMappings {
		return nil, invalid(at, "%d mappings; the kernel takes %d", len(mappings), mostMappings)
	}
	overlap := func(a, size, b, other uint32) bool {
		return uint64(a) < uint64(b)+uint64(other) && uint64(b) < uint64(a)+uint64(size)
	}
	var all []spec.IDMapping
	for i, m := range mappings {
		field := at + "[" + strconv.Itoa(i) + "]"
		one := spec.IDMapping{Container: m.GetContainerId(), Host: m.GetHostId(), Size: m.GetLength()}
		if one.Size == 0 {
			return nil, invalid(field+".length", "is 0")
		}
		if uint64(max(one.Container, one.Host))+uint64(one.Size) > maxID+1 {
			return nil, invalid(field, "%d ids from %d go beyond the last id", one.Size, max(one.Container, one.Host))
		}
		for j, other := range all {
			if overlap(one.Container, one.Size, other.Container, other.Size) || overlap(one.Host, one.Size, other.Host, other.Size) {
				return nil, invalid(field, "overlaps with mapping %d", j)
			}
		}
		all = append(all, one)
	}
	return all, nil
}

// sameUserNamespace refuses a container's user namespace that is not its pod's. Without options it is the pod's.
func sameUserNamespace(at string, options *runtime.UserNamespace, pod *spec.UserNamespace) error {
	own, err := userNamespaceOf(at, options)
	if err != nil || options == nil {
		return err
	}
	if (own == nil) != (pod == nil) || own != nil && (!slices.Equal(own.UIDs, pod.UIDs) || !slices.Equal(own.GIDs, pod.GIDs)) {
		return invalid(at, "is not that of the pod; leave it out, or say what the pod has")
	}
	return nil
}

// mountMappings translates the mappings of a mount: both or none.
func mountMappings(at string, m *runtime.Mount) (uids, gids []spec.IDMapping, err error) {
	if len(m.GetUidMappings()) == 0 && len(m.GetGidMappings()) == 0 {
		return nil, nil, nil
	}
	if uids, err = mappingsOf(at+".uidMappings", m.GetUidMappings()); err != nil {
		return nil, nil, err
	}
	gids, err = mappingsOf(at+".gidMappings", m.GetGidMappings())
	return uids, gids, err
}

func criUserNamespace(u *spec.UserNamespace) *runtime.UserNamespace {
	if u == nil {
		return nil
	}
	return &runtime.UserNamespace{Mode: runtime.NamespaceMode_POD, Uids: criMappings(u.UIDs), Gids: criMappings(u.GIDs)}
}

func criMappings(mappings []spec.IDMapping) []*runtime.IDMapping {
	var all []*runtime.IDMapping
	for _, m := range mappings {
		all = append(all, &runtime.IDMapping{ContainerId: m.Container, HostId: m.Host, Length: m.Size})
	}
	return all
}
