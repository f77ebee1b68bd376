package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/criserver/criserver/cni"
	"github.com/criserver/criserver/engine/spec"
	"github.com/criserver/criserver/internal/fsx"
	"github.com/criserver/criserver/shim/api"
)

func podKey(id string) string { return "pod " + id }

// RunPod makes a pod ready and answers its id. ID of p is chosen by the engine. A pod with the same name, namespace, uid
// and attempt that is being made or is ready with the same configuration is answered as it is.
func (e *Engine) RunPod(ctx context.Context, p spec.Pod) (string, error) {
	if err := e.checkPod(&p); err != nil {
		return "", err
	}
	id, left, err := e.reservePod(p)
	if left != "" {
		// What an earlier attempt left is not done with yet. Its removal is this call's to finish.
		if err := e.RemovePod(ctx, left); err != nil {
			return "", fmt.Errorf("an earlier attempt at pod %s/%s left things that cannot be removed: %w", p.Namespace, p.Name, err)
		}
		id, left, err = e.reservePod(p)
	}
	if err != nil {
		return "", err
	}
	if left != "" {
		return "", fmt.Errorf("pod %s/%s is being removed again and again: %w", p.Namespace, p.Name, errdefs.ErrAborted)
	}
	if err := e.ops.do(ctx, e.ctx, podKey(id), "run", func(ctx context.Context) error { return e.runPod(ctx, id) }); err != nil {
		return "", fmt.Errorf("pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	return id, nil
}

// checkPod says which field of a pod is wrong, and brings the rest to the form in which it is kept.
func (e *Engine) checkPod(p *spec.Pod) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("pod's "+format+": %w", append(args, errdefs.ErrInvalidArgument)...)
	}
	switch {
	case p.Name == "":
		return bad("name is empty")
	case len(p.Hostname) > 64 || strings.ContainsAny(p.Hostname, "\x00\n/"):
		return bad("hostname %q: must be of at most 64 characters, without slash or control characters", p.Hostname)
	case p.LogDirectory != "" && !filepath.IsAbs(p.LogDirectory):
		return bad("log directory %q: must be absolute", p.LogDirectory)
	}
	h, err := e.handler(p.Handler)
	switch {
	case err != nil:
		return err
	case p.Security.Namespaces.User != nil && !h.UserNamespaces:
		return bad("user namespace: the program of runtime handler %q does not say that it has those with mapped mounts (features: linux.namespaces, linux.mountExtensions.idmap); runc has from 1.2 on, and this node's own runtime, %q, does",
			p.Handler, NativeHandler)
	}
	if p.CgroupParent == "" {
		// Nobody has made a cgroup with the pod's limits, so it is ours to make.
		p.CgroupParent, p.OwnCgroup = e.cfg.CgroupParent, !p.Resources.IsZero()
	}
	if err := e.checkCgroupParent(p); err != nil {
		return err
	}
	if _, err := spec.PodSysctls(p, nil); err != nil {
		return err
	}
	if _, err := networkRequest(p); err != nil {
		return err
	}
	if p.OwnNetwork() && p.Hostname == "" {
		p.Hostname = p.Name[:min(len(p.Name), 63)]
	}
	return nil
}

// reservePod finds the pod with the identity of p, or records in memory that there is one from now on. With left the
// identity belongs to a pod that is being removed.
func (e *Engine) reservePod(p spec.Pod) (id, left string, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, other := range e.pods {
		o := other.record.Pod
		if o.Name != p.Name || o.Namespace != p.Namespace || o.UID != p.UID || o.Attempt != p.Attempt || o.Owner != p.Owner {
			continue
		}
		switch state := other.record.State; {
		case state == removing:
			return "", o.ID, nil
		case state == notready:
			return "", "", fmt.Errorf("pod %s/%s, attempt %d, exists as %s and was stopped: remove it, or raise the attempt: %w",
				p.Namespace, p.Name, p.Attempt, o.ID, errdefs.ErrAlreadyExists)
		case !samePod(o, p):
			return "", "", fmt.Errorf("pod %s/%s, attempt %d, exists as %s with another configuration: remove it, or raise the attempt: %w",
				p.Namespace, p.Name, p.Attempt, o.ID, errdefs.ErrAlreadyExists)
		}
		return o.ID, "", nil
	}
	p.ID = newID()
	e.pods[p.ID] = &pod{record: podRecord{BootID: fsx.BootID(), State: creating, Pod: p, CreatedAt: time.Now()}}
	return p.ID, "", nil
}

// samePod compares what is kept of two pods but their ids.
func samePod(a, b spec.Pod) bool {
	a.ID, b.ID = "", ""
	return sameJSON(a, b)
}

func sameJSON(a, b any) bool {
	x, err := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return err == nil && err2 == nil && bytes.Equal(x, y)
}

// runPod is the operation of RunPod.
func (e *Engine) runPod(ctx context.Context, id string) error {
	record, ok := e.podRecord(id)
	switch {
	case ok && record.State == ready:
		return nil
	case !ok || record.State != creating:
		return fmt.Errorf("it was removed meanwhile: %w", errdefs.ErrAborted)
	}
	defer e.podStep(id, "run")()
	err := e.bringUp(ctx, record)
	if err == nil {
		return nil
	}
	ctx, cancel := undo(ctx)
	defer cancel()
	if undoErr := e.removePod(ctx, id); undoErr != nil {
		e.log.Warn("what a pod that did not come up left is removed later", "pod", id, "error", undoErr)
	}
	return err
}

// bringUp makes what a pod consists of. The record is written first, so that what is made is known to be its.
func (e *Engine) bringUp(ctx context.Context, record podRecord) error {
	p := record.Pod
	sysctls, err := spec.PodSysctls(&p, e.cfg.DefaultSysctls)
	if err != nil {
		return err
	}
	if p.Security.Namespaces.User != nil {
		if err := e.UserNamespaces(ctx); err != nil {
			return err
		}
	}
	if err := makeDir(e.store.podDir(p.ID), 0o700); err != nil {
		return fmt.Errorf("pod's directory: %w", err)
	}
	if err := e.labelPod(&record); err != nil {
		return err
	}
	if err := e.store.savePod(record); err != nil {
		return err
	}
	network, holder, err := e.makeNamespaces(ctx, &record, sysctls)
	if err != nil {
		return err
	}
	if err := writeHosts(e.store.podDir(p.ID), &p, network.IPs); err != nil {
		return err
	}
	if err := e.labelPodFiles(record); err != nil {
		return err
	}
	return e.podReady(ctx, p.ID, network, int(holder))
}

// makeNamespaces makes what the pod's containers share, network and resolv.conf included.
func (e *Engine) makeNamespaces(ctx context.Context, r *podRecord, sysctls map[string]string) (network cni.Result, holder int32, err error) {
	p := &r.Pod
	g, gctx := errgroup.WithContext(ctx)
	namespaces := func(netns string) (string, error) {
		answer, err := e.startNamespaces(gctx, r, netns, sysctls)
		holder = answer.GetHolderPid()
		return answer.GetNetns(), err
	}
	// Namespaces wait for the network only when there are sysctls to set in it, the network for the namespaces when its own is one
	// that the pod's user namespace owns.
	owned := p.Security.Namespaces.User != nil
	early := !owned && (!p.OwnNetwork() || !hasNetSysctl(sysctls))
	g.Go(func() (err error) {
		var netns string
		if owned {
			if netns, err = namespaces(""); err != nil {
				return err
			}
		}
		if network, err = e.attach(gctx, p, netns); err != nil || owned || early {
			return err
		}
		_, err = namespaces(network.Netns)
		return err
	})
	if early {
		g.Go(func() error {
			_, err := namespaces("")
			return err
		})
	}
	g.Go(func() error { return writeResolver(e.store.podDir(p.ID), p) })
	err = g.Wait()
	return network, holder, err
}

// podReady records what a pod was given and lets containers in, unless a plugin refuses it.
func (e *Engine) podReady(ctx context.Context, id string, network cni.Result, holder int) error {
	record, _ := e.podRecord(id)
	if err := move(&record.State, ready); err != nil {
		return err
	}
	record.Network, record.HolderPID = network, holder
	defer e.holdPlugins()()
	if err := e.tellOfPod(ctx, record); err != nil {
		return err
	}
	if err := e.store.savePod(record); err != nil {
		return err
	}
	return e.changePod(id, ready, func(r *podRecord) { *r = record })
}

func hasNetSysctl(sysctls map[string]string) bool {
	for name := range sysctls {
		if strings.HasPrefix(name, "net.") {
			return true
		}
	}
	return false
}

// attach gives a pod its network namespace, unless it is in the host's. netns is where it can be opened, if it is there.
func (e *Engine) attach(ctx context.Context, p *spec.Pod, netns string) (cni.Result, error) {
	if !p.OwnNetwork() {
		return cni.Result{}, nil
	}
	defer e.podStep(p.ID, "network")()
	request, err := networkRequest(p)
	if err != nil {
		return cni.Result{}, err
	}
	request.MadeNetns = netns
	ctx, cancel := context.WithTimeout(ctx, attachLimit)
	defer cancel()
	result, err := e.cfg.Network.Attach(ctx, request)
	if err != nil {
		return cni.Result{}, fmt.Errorf("attach the network: %w", err)
	}
	return result, nil
}

func networkRequest(p *spec.Pod) (cni.Request, error) {
	r := cni.Request{
		PodID: p.ID, Namespace: p.Namespace, Name: p.Name, UID: p.UID,
		Annotations: p.Annotations, CgroupParent: p.Cgroup(),
	}
	for _, m := range p.PortMappings {
		if m.HostPort == 0 {
			continue // it says only that the container listens
		}
		mapping := cni.PortMapping{Protocol: strings.ToLower(m.Protocol), HostPort: m.HostPort, ContainerPort: m.ContainerPort}
		if mapping.Protocol == "" {
			mapping.Protocol = "tcp"
		}
		if m.HostIP != "" {
			ip, err := netip.ParseAddr(m.HostIP)
			if err != nil {
				return r, fmt.Errorf("host ip %q of port mapping %d: must be an address: %w", m.HostIP, m.HostPort, errdefs.ErrInvalidArgument)
			}
			mapping.HostIP = ip
		}
		switch {
		case mapping.Protocol != "tcp" && mapping.Protocol != "udp" && mapping.Protocol != "sctp":
			return r, fmt.Errorf("protocol %q of port mapping %d: must be tcp, udp or sctp: %w", m.Protocol, m.HostPort, errdefs.ErrInvalidArgument)
		case mapping.ContainerPort == 0:
			return r, fmt.Errorf("port mapping of host port %d has no container port: %w", m.HostPort, errdefs.ErrInvalidArgument)
		}
		r.PortMappings = append(r.PortMappings, mapping)
	}
	return r, nil
}

// startNamespaces has the shim make the namespaces that the pod's containers share, when there are any. Repeated it
// answers as before, or makes those anew that were lost with shim and keeper.
func (e *Engine) startNamespaces(ctx context.Context, record *podRecord, netns string, sysctls map[string]string) (*api.StartPodResponse, error) {
	p := &record.Pod
	r := &api.StartPodRequest{
		PodId: p.ID, Netns: netns, Ipc: p.OwnIPC(), Uts: p.OwnNetwork(), Pid: p.OwnPID(),
		CgroupsPath: p.ProcessCgroup(p.ID), Sysctls: sysctls,
	}
	if err := e.podCgroup(r, p); err != nil {
		return nil, err
	}
	if r.Uts {
		r.Hostname = p.Hostname
	}
	if r.Ipc {
		r.ShmSize = spec.ShmSize
		if record.SELinux != nil {
			r.MountLabel = record.SELinux.Mount
		}
	}
	if u := p.Security.Namespaces.User; u != nil {
		r.UidMappings, r.GidMappings, r.Network = wireMappings(u.UIDs), wireMappings(u.GIDs), p.OwnNetwork()
	}
	if !r.Ipc && !r.Uts && !r.Pid && len(sysctls) == 0 && r.PodCgroup == "" && len(r.UidMappings) == 0 {
		return nil, nil
	}
	defer e.podStep(p.ID, "namespaces")()
	var answer *api.StartPodResponse
	err := e.shim(ctx, func(ctx context.Context) (err error) {
		answer, err = e.cfg.Shims.StartPod(ctx, r)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make the pod's namespaces: %w", err)
	}
	return answer, nil
}

func wireMappings(mappings []spec.IDMapping) []*api.IDMapping {
	var all []*api.IDMapping
	for _, m := range mappings {
		all = append(all, &api.IDMapping{ContainerId: m.Container, HostId: m.Host, Size: m.Size})
	}
	return all
}

// StopPod kills the containers of a pod and lets go of its network and namespaces. An unknown pod is no error.
func (e *Engine) StopPod(ctx context.Context, id string) error {
	id, err := e.resolvePod(id)
	if err != nil {
		return ignoreNotFound(err)
	}
	e.hurry(id)
	err = e.ops.do(ctx, e.ctx, podKey(id), "stop", func(ctx context.Context) error { return e.stopPod(ctx, id) })
	if err != nil {
		return fmt.Errorf("stop pod %s: %w", id, err)
	}
	return nil
}

// stopPod is the operation of StopPod. Once the pod is not ready no container is added to it, so that the list of those
// to kill is complete.
func (e *Engine) stopPod(ctx context.Context, id string) error {
	record, ok := e.podRecord(id)
	if !ok || record.State == removing || record.Released {
		return nil
	}
	if err := e.changePod(id, notready, nil); err != nil {
		return err
	}
	record.State = notready
	if err := e.store.savePod(record); err != nil {
		return err
	}
	e.hurry(id)
	err := e.eachContainer(id, func(c string) error { return e.stopNow(ctx, c) })
	if err != nil {
		return err
	}
	e.tellPodEnd(ctx, record)
	if err := e.releasePod(ctx, record); err != nil {
		return err
	}
	record.Network, record.HolderPID, record.Released = cni.Result{}, 0, true
	if err := e.store.savePod(record); err != nil {
		return err
	}
	return e.changePod(id, notready, func(r *podRecord) { *r = record })
}

// RemovePod stops a pod and removes it with its containers. An unknown pod is no error.
func (e *Engine) RemovePod(ctx context.Context, id string) error {
	id, err := e.resolvePod(id)
	if err != nil {
		return ignoreNotFound(err)
	}
	e.hurry(id)
	err = e.ops.do(ctx, e.ctx, podKey(id), "remove", func(ctx context.Context) error { return e.removePod(ctx, id) })
	if err != nil {
		return fmt.Errorf("remove pod %s: %w", id, err)
	}
	return nil
}
