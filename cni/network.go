// Package cni gives pods their network namespaces, and attaches these by the built-in plugin or by the plugins of a CNI
// configuration list.
package cni

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/criserver/criserver/cni/builtin"
	"github.com/criserver/criserver/cni/netns"
	"github.com/criserver/criserver/internal/fsx"
)

// pinPrefix starts the names of pinned namespaces.
const pinPrefix = "criserver-"

// Network attaches pods. Every method may be called concurrently; calls for one pod come one after the other. What is
// attached survives the process: New finds it in the records of StateDir.
type Network struct {
	cfg    Config
	log    *slog.Logger
	store  store
	dir    netns.Dir
	pool   *netns.Pool
	owner  string          // written into our namespaces
	plugin *builtin.Plugin // nil when nothing is, or was, attached by it
	lists  *lists
	keys   keys
	cancel context.CancelFunc
	ctx    context.Context // of the goroutines
	tasks  sync.WaitGroup

	mu      sync.Mutex
	records map[string]*record

	changingCIDRs sync.Mutex
	toldCIDRs     []netip.Prefix // guarded by changingCIDRs
}

// New reads the records and takes over what is attached: host ports are served again, removals that were under way go
// on. Records of another boot are garbage. Close it.
func New(ctx context.Context, cfg Config) (*Network, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(cfg.StateDir))
	n := &Network{cfg: cfg, log: cfg.Logger, owner: "criserver:" + hex.EncodeToString(sum[:8])}
	var err error
	if n.store, err = openStore(cfg.StateDir); err != nil {
		return nil, err
	}
	if n.dir, err = netns.OpenDir(cfg.NetnsDir); err != nil {
		return nil, err
	}
	if n.records, err = n.store.load(n.dropBroken); err != nil {
		return nil, err
	}
	recallCIDRs(&n.cfg)
	n.ctx, n.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if err := n.startPlugin(ctx); err != nil {
		n.cancel()
		return nil, err
	}
	if n.lists, err = newLists(n.cfg); err != nil {
		n.cancel()
		if n.plugin != nil {
			err = errors.Join(err, n.plugin.Close(false))
		}
		return nil, err
	}
	n.pool = netns.NewPool(max(cfg.PoolSize, 0), n.owner, n.log)
	n.resume()
	return n, nil
}

func (n *Network) dropBroken(path string, err error) {
	n.log.Error("a network record is broken; its pod loses its network", "path", path, "err", err)
	name := path[strings.LastIndexByte(path, '/')+1:]
	if id := strings.TrimSuffix(name, ".json"); checkPodID(id) == nil {
		if err := n.dir.Unpin(pinPrefix + id); err != nil {
			n.log.Warn("remove the network namespace of a broken record", "err", err)
		}
	}
}

// startPlugin makes the built-in plugin when it is wanted or has left something.
func (n *Network) startPlugin(ctx context.Context) error {
	inUse := n.cfg.Mode == ModeBuiltin
	for _, r := range n.records {
		inUse = inUse || r.Builtin != nil
	}
	if !inUse {
		return nil
	}
	cidrs := n.cfg.PodCIDRs
	if len(cidrs) == 0 {
		cidrs = defaultCIDRs
	}
	plugin, err := builtin.New(builtin.Config{CIDRs: cidrs, NoMasquerade: n.cfg.NoMasquerade, Bridge: n.cfg.Bridge,
		MTU: n.cfg.MTU, Proxy: true, Logger: n.log})
	if err != nil {
		return fmt.Errorf("built-in network: %w", err)
	}
	n.plugin = plugin
	for id, r := range n.snapshot() {
		if r.Builtin == nil {
			continue
		}
		leaving := r.BootID != fsx.BootID() || !n.dir.Pinned(pinPrefix+id)
		if leaving {
			r = r.to(stateDetaching)
			n.know(r)
		}
		if err := plugin.Recover(id, r.Builtin, leaving, n.gone(r)); err != nil {
			n.log.Error("a network record contradicts another; its pod loses its network", "pod", id, "err", err)
		}
	}
	plugin.RemoveStrays(n.knowsInterface)
	if err := plugin.Start(ctx); err != nil {
		return errors.Join(fmt.Errorf("built-in network: %w", err), plugin.Close(false))
	}
	return nil
}

func (n *Network) knowsInterface(name string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range n.records {
		if r.Builtin != nil && r.Builtin.Interface == name {
			return true
		}
	}
	return false
}

// gone removes the record once its interface is gone, unless the pod has been attached anew.
func (n *Network) gone(r *record) func() {
	id := r.Request.PodID
	return func() {
		n.mu.Lock()
		mine := n.records[id] == nil || n.records[id].Builtin != nil && n.records[id].Builtin.Interface == r.Builtin.Interface
		if mine {
			delete(n.records, id)
			// Under the lock, because a new record could be written between the two. It is an unlink on a tmpfs.
			if err := n.store.remove(id, stateDetaching); err != nil {
				n.log.Warn("network record", "err", err)
			}
		}
		n.mu.Unlock()
	}
}

// resume goes on with the DELs that an earlier process left, those of pods of another boot included.
func (n *Network) resume() {
	for id, r := range n.snapshot() {
		switch {
		case r.Conflist == nil:
		case r.State == statePending:
			n.postpone(r)
		case r.State == stateDetaching, r.BootID != fsx.BootID():
			if err := n.dir.Unpin(pinPrefix + id); err != nil {
				n.log.Warn("remove a network namespace", "err", err)
			}
			n.postpone(r.to(statePending))
		}
	}
}

func (n *Network) snapshot() map[string]*record {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.records)
}

func (n *Network) record(id string) *record {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.records[id]
}

// put writes the record and makes it known. The caller holds the pod's key.
func (n *Network) put(r *record) error {
	if err := n.store.write(r); err != nil {
		return err
	}
	n.know(r)
	return nil
}

func (n *Network) know(r *record) {
	n.mu.Lock()
	n.records[r.Request.PodID] = r
	n.mu.Unlock()
}

// Attach makes the namespace and attaches it. Repeated for a pod that is attached it answers as before. After an error
// Detach, or another Attach, cleans up. errdefs.ErrFailedPrecondition: a host port is taken, or the host or the
// configuration does not allow it; errdefs.ErrResourceExhausted: no address is free; errdefs.ErrUnavailable: no
// configuration list is there, or an earlier network of the pod is still being removed.
func (n *Network) Attach(ctx context.Context, r Request) (Result, error) {
	if err := checkPodID(r.PodID); err != nil {
		return Result{}, err
	}
	unlock, err := n.keys.lock(ctx, r.PodID)
	if err != nil {
		return Result{}, fmt.Errorf("attach pod %s: %w", r.PodID, err)
	}
	defer unlock()
	if old := n.record(r.PodID); old != nil {
		if old.State == stateAttached && n.intact(old) {
			return old.result(), nil
		}
		if err := n.teardown(ctx, old); err != nil {
			return Result{}, fmt.Errorf("attach pod %s: remove what an earlier attempt left: %w", r.PodID, err)
		}
		if left := n.record(r.PodID); left != nil && left.State == statePending {
			return Result{}, fmt.Errorf("attach pod %s: its earlier network is still being removed (%s): %w", r.PodID, left.Conflist.Error, errdefs.ErrUnavailable)
		}
	}
	return n.attach(ctx, r)
}

// intact says whether what an attached record describes is still there.
func (n *Network) intact(r *record) bool {
	return n.dir.Pinned(pinPrefix+r.Request.PodID) && (r.Builtin == nil || n.plugin.Exists(r.Builtin))
}

func (n *Network) attach(ctx context.Context, req Request) (Result, error) {
	r, err := n.plan(req)
	if err != nil {
		return Result{}, fmt.Errorf("attach pod %s: %w", req.PodID, err)
	}
	if r.Builtin != nil {
		return n.attachBuiltin(ctx, r)
	}
	return n.attachConflist(ctx, r)
}

// attachBuiltin pins the namespace last: a pinned namespace is what makes the attachment, so that one record does. Of
// what was made for a namespace that was never pinned, nothing outlives this process.
func (n *Network) attachBuiltin(ctx context.Context, r *record) (Result, error) {
	id := r.Request.PodID
	if err := n.store.write(r.to(stateAttached)); err != nil {
		return Result{}, errors.Join(err, n.plugin.Detach(id, r.Builtin, nil))
	}
	n.know(r)
	ns, err := n.namespace(r.Request)
	if err != nil {
		return Result{}, err
	}
	defer ns.Close()
	if err := n.plugin.Attach(ctx, id, r.Builtin, ns); err != nil {
		return Result{}, err
	}
	if err := n.dir.Pin(ns, pinPrefix+id); err != nil {
		return Result{}, err
	}
	n.know(r.to(stateAttached))
	return r.result(), nil
}

// attachConflist pins the namespace first, because plugins are given its path.
func (n *Network) attachConflist(ctx context.Context, r *record) (Result, error) {
	if err := n.put(r); err != nil {
		return Result{}, err
	}
	ns, err := n.namespace(r.Request)
	if err != nil {
		return Result{}, err
	}
	defer ns.Close()
	if err := n.dir.Pin(ns, pinPrefix+r.Request.PodID); err != nil {
		return Result{}, err
	}
	attached := r.to(stateAttached)
	if attached.IPs, attached.Conflist, err = n.lists.add(ctx, r); err != nil {
		return Result{}, err
	}
	if err := n.put(attached); err != nil {
		return Result{}, err
	}
	return attached.result(), nil
}

// plan decides what the pod gets, in memory.
func (n *Network) plan(req Request) (*record, error) {
	r := &record{BootID: fsx.BootID(), State: stateAttaching, Since: time.Now().UTC(), Mode: n.cfg.Mode, Request: req,
		Netns: n.dir.Path(pinPrefix + req.PodID)}
	rates, err := rates(req.Annotations)
	if err != nil {
		return nil, err
	}
	if n.cfg.Mode == ModeCNI {
		r.Conflist, err = n.lists.plan(req, rates)
		return r, err
	}
	want := make([]builtin.Port, 0, len(req.PortMappings))
	for _, p := range req.PortMappings {
		if p.HostPort != 0 { // a port that is only named is not published
			p.Protocol = strings.ToLower(p.Protocol)
			want = append(want, builtin.Port(p))
		}
	}
	if r.Builtin, err = n.plugin.Reserve(req.PodID, interfaceName, want, rates); err != nil {
		return nil, err
	}
	r.IPs = r.Builtin.IPs()
	return r, nil
}

// Detach lets go of all that Attach made. It goes on past errors and may be repeated; an unknown pod is no error. The
// pod's address is free once the kernel has taken its interface down. A plugin whose DEL fails, or takes longer than a
// tenth of PluginTimeout, is run again behind; Detach does not wait for that and does not fail for it.
func (n *Network) Detach(ctx context.Context, podID string) error {
	if err := checkPodID(podID); err != nil {
		return err
	}
	unlock, err := n.keys.lock(ctx, podID)
	if err != nil {
		return fmt.Errorf("detach pod %s: %w", podID, err)
	}
	defer unlock()
	r := n.record(podID)
	if r == nil {
		return n.dir.Unpin(pinPrefix + podID)
	}
	if err := n.teardown(ctx, r); err != nil {
		return fmt.Errorf("detach pod %s: %w", podID, err)
	}
	return nil
}

// teardown undoes a record of any state. The caller holds the pod's key.
func (n *Network) teardown(ctx context.Context, r *record) error {
	if r.State == statePending {
		return nil // under way behind
	}
	if r.Conflist != nil {
		return n.teardownConflist(ctx, r)
	}
	var errs []error
	if r.State != stateDetaching {
		r = r.to(stateDetaching)
		n.know(r) // on disk the missing pin says it
		errs = append(errs, n.plugin.Detach(r.Request.PodID, r.Builtin, n.gone(r)))
	}
	return errors.Join(append(errs, n.dir.Unpin(pinPrefix+r.Request.PodID))...)
}

// Attached lists the pods that are attached or half attached, sorted; not those that Detach has been called for.
func (n *Network) Attached(context.Context) ([]string, error) {
	var ids []string
	for id, r := range n.snapshot() {
		if r.State == stateAttaching || r.State == stateAttached {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// Lookup returns what an attached pod got. errdefs.ErrNotFound when it is not attached.
func (n *Network) Lookup(podID string) (Result, error) {
	r := n.record(podID)
	if r == nil || r.State != stateAttached {
		return Result{}, fmt.Errorf("network of pod %q: %w", podID, errdefs.ErrNotFound)
	}
	return r.result(), nil
}

// Ready is nil when pods can be attached; else the error says what is missing.
func (n *Network) Ready(ctx context.Context) error {
	if n.cfg.Mode == ModeCNI {
		return n.lists.ready(ctx)
	}
	return n.plugin.Ready()
}

// Check verifies an attached pod: its namespace is pinned, its interface is there and, in ModeCNI, the plugins' CHECK
// passes where the configuration list has a version that knows it.
func (n *Network) Check(ctx context.Context, podID string) error {
	r := n.record(podID)
	if r == nil || r.State != stateAttached {
		return fmt.Errorf("network of pod %q: %w", podID, errdefs.ErrNotFound)
	}
	if !n.intact(r) {
		return fmt.Errorf("network of pod %s: its namespace %s or its interface is gone; remove the pod: %w", podID, r.Netns, errdefs.ErrFailedPrecondition)
	}
	if r.Conflist != nil {
		return n.lists.check(ctx, r)
	}
	return nil
}

// Reconcile detaches the pods that are not known and removes what no record knows: namespaces, interfaces and, in
// ModeCNI, what plugins remember (their GC). It goes on past errors.
func (n *Network) Reconcile(ctx context.Context, known []string) error {
	keep := make(map[string]bool, len(known))
	for _, id := range known {
		keep[id] = true
	}
	var errs []error
	attached, _ := n.Attached(ctx)
	for _, id := range attached {
		if !keep[id] {
			n.log.Info("detach a pod that is not known", "pod", id)
			errs = append(errs, n.Detach(ctx, id))
		}
	}
	if n.cfg.Mode == ModeCNI { // first: plugins need the namespaces
		errs = append(errs, n.lists.gc(ctx, n.snapshot))
	}
	errs = append(errs, n.unpinStrays(ctx))
	if n.plugin != nil {
		n.plugin.RemoveStrays(n.knowsInterface)
	}
	return errors.Join(errs...)
}

// unpinStrays removes namespaces that this state directory's daemon made and that no record knows.
func (n *Network) unpinStrays(ctx context.Context) error {
	names, err := n.dir.Names()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		id, ours := strings.CutPrefix(name, pinPrefix)
		if !ours || checkPodID(id) != nil || n.record(id) != nil || n.dir.Owner(name) != n.owner {
			continue
		}
		unlock, err := n.keys.lock(ctx, id)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		if n.record(id) == nil {
			n.log.Warn("remove a network namespace that no pod has", "name", name)
			errs = append(errs, n.dir.Unpin(name))
		}
		unlock()
	}
	return errors.Join(errs...)
}

// Close ends the goroutines and closes the listeners. Pods stay attached. When none is, bridges and rules are removed,
// after a short wait for the interfaces of pods that were detached just before. It may be repeated; no other method may be
// under way or follow.
func (n *Network) Close() error {
	if n.ctx.Err() != nil {
		return nil
	}
	n.cancel()
	n.tasks.Wait()
	n.pool.Close()
	n.lists.close()
	if n.plugin == nil {
		return nil
	}
	attached, leaving := n.countBuiltin()
	for end := time.Now().Add(closeWait); leaving > 0 && time.Now().Before(end); _, leaving = n.countBuiltin() {
		time.Sleep(2 * time.Millisecond)
	}
	return n.plugin.Close(attached == 0)
}

// closeWait is some ten times what the kernel takes for an interface.
const closeWait = 300 * time.Millisecond

func (n *Network) countBuiltin() (attached, leaving int) {
	for _, r := range n.snapshot() {
		switch {
		case r.Builtin == nil:
		case r.State == stateDetaching:
			leaving++
		default:
			attached++
		}
	}
	return attached, leaving
}
