package shimd

import (
	"context"
	"fmt"
	"os"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/shim/api"
	"github.com/criserver/criserver/shim/native"
)

// userSpace is a pod's user namespace, which its containers join; netSpace the network namespace that it owns, which is here until
// StopPod, although the caller pins it.
const (
	userSpace = "user"
	netSpace  = "net"
)

func (p *pod) answer() *api.StartPodResponse {
	r := &api.StartPodResponse{HolderPid: int32(p.holder)}
	if f := p.spaces[netSpace]; f != nil {
		r.Netns = "/proc/" + strconv.Itoa(os.Getpid()) + "/fd/" + strconv.Itoa(int(f.Fd()))
	}
	return r
}

// missingUser adds what the pod lacks of a user namespace. One whose network namespace was pinned can be found again by it, when
// shim and keeper were killed together: found.
func (p *pod) missingUser(c *native.PodConfig, r *api.StartPodRequest) (found bool, err error) {
	if len(r.UidMappings) == 0 && len(r.GidMappings) == 0 {
		return false, nil
	}
	c.User = &native.UserMappings{UIDs: ociMappings(r.UidMappings), GIDs: ociMappings(r.GidMappings)}
	c.Network = r.Network && r.Netns == "" && p.spaces[netSpace] == nil
	c.UserNamespace = p.spaces[userSpace]
	if c.UserNamespace != nil || r.Netns == "" || !r.Network {
		return false, nil
	}
	owner, err := native.OwnerOf(r.Netns)
	if err != nil {
		return false, fmt.Errorf("find the pod's user namespace again: %w", err)
	}
	if p.spaces == nil {
		p.spaces = map[string]*os.File{}
	}
	p.spaces[userSpace], c.UserNamespace = owner, owner
	return true, nil
}

// makesUser says whether a user namespace is to be made.
func makesUser(c native.PodConfig) bool { return c.User != nil && c.UserNamespace == nil }

func ociMappings(mappings []*api.IDMapping) []specs.LinuxIDMapping {
	var all []specs.LinuxIDMapping
	for _, m := range mappings {
		all = append(all, specs.LinuxIDMapping{ContainerID: m.ContainerId, HostID: m.HostId, Size: m.Size})
	}
	return all
}

func (h handler) mapsOwners(ctx context.Context, directory string) error {
	return h.s.runtime.mapsOwners(ctx, directory)
}
