package engine

import (
	"context"
	"errors"
	"io/fs"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/criserver/criserver/cni"
	"github.com/criserver/criserver/internal/cgstat"
)

// Detail says how much of a container's or pod's stats is read.
type Detail = cgstat.Detail

// The details. DetailFull reads several times as many files of the kernel.
const (
	DetailBasic = cgstat.Basic
	DetailFull  = cgstat.Full
)

// ContainerStats is what a container uses. Nothing in it may be changed.
type ContainerStats struct {
	Status ContainerStatus
	// Cgroup is what the kernel counts; nil for a container that does not run.
	Cgroup *cgstat.Sample
	// NanoCores is the CPU time in nanoseconds a second, over the time since the last reading that was not too near.
	NanoCores uint64
	// Layer is what the writable layer takes; nil until it was measured.
	Layer *LayerUsage
	// Processes is filled with DetailFull.
	Processes *ProcessUsage
}

// PodStats is what a pod uses. Nothing in it may be changed.
type PodStats struct {
	Status PodStatus
	// Cgroup is what the kernel counts for the pod's cgroup or, where pods share one, the sum of the containers that run; nil
	// when there is neither.
	Cgroup    *cgstat.Sample
	NanoCores uint64
	// OwnCgroup says that Cgroup is that of a cgroup which only this pod is in.
	OwnCgroup bool
	// Processes is how many there are in the pod's containers.
	Processes uint64
	// Links are the interfaces of a pod with a network of its own, that with its addresses first, read at LinksAt.
	Links   []cni.LinkStats
	LinksAt time.Time
	// Containers are those of the pod that run.
	Containers []ContainerStats
}

// ContainerStats reads what one container uses. One that does not run has only a writable layer.
func (e *Engine) ContainerStats(ctx context.Context, id string) (ContainerStats, error) {
	e.mu.RLock()
	full, err := find(e.containers, "container", id)
	if err != nil {
		e.mu.RUnlock()
		return ContainerStats{}, err
	}
	c := e.containers[full]
	s := ContainerStats{Status: e.containerStatus(c)}
	e.mu.RUnlock()
	if s.Status.State == ContainerRunning {
		if err := e.readContainer(c, &s, DetailBasic); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return ContainerStats{}, err
		}
	}
	e.layers.want(ctx, singlePatience, &c.layer)
	s.Layer = c.layer.last()
	return s, nil
}

// ListContainerStats reads what the running containers use that the filter selects, oldest first. One that ends meanwhile,
// or that cannot be read, is left out.
func (e *Engine) ListContainerStats(ctx context.Context, f ContainerFilter) []ContainerStats {
	f.State = ContainerRunning
	return e.readContainers(ctx, f, DetailBasic)
}

// PodStats reads what one pod and its containers use.
func (e *Engine) PodStats(ctx context.Context, id string) (PodStats, error) {
	status, err := e.Pod(id)
	if err != nil {
		return PodStats{}, err
	}
	containers := e.readContainers(ctx, ContainerFilter{PodID: status.Pod.ID, State: ContainerRunning}, DetailBasic)
	p := PodStats{Status: status, Containers: containers}
	e.readPod(ctx, &p, e.ownCgroups()[status.Pod.ID], DetailBasic)
	return p, nil
}

// ListPodStats reads what the ready pods use that the filter selects, with their running containers, oldest first.
func (e *Engine) ListPodStats(ctx context.Context, f PodFilter, detail Detail) []PodStats {
	f.State = PodReady
	byPod := map[string][]ContainerStats{}
	for _, c := range e.readContainers(ctx, ContainerFilter{PodID: f.ID, Owner: f.Owner, State: ContainerRunning}, detail) {
		byPod[c.Status.Container.PodID] = append(byPod[c.Status.Container.PodID], c)
	}
	own := e.ownCgroups()
	pods := e.Pods(f)
	all := make([]PodStats, len(pods))
	parallel(len(all), func(i int) {
		if ctx.Err() == nil {
			all[i] = PodStats{Status: pods[i], Containers: byPod[pods[i].Pod.ID]}
			e.readPod(ctx, &all[i], own[pods[i].Pod.ID], detail)
		}
	})
	return all
}

// readContainers reads the running containers that the filter selects.
func (e *Engine) readContainers(ctx context.Context, f ContainerFilter, detail Detail) []ContainerStats {
	e.mu.RLock()
	found := e.selectContainers(f)
	all := make([]ContainerStats, len(found))
	layers := make([]*layerState, len(found))
	for i, c := range found {
		all[i].Status, layers[i] = e.containerStatus(c), &c.layer
	}
	e.mu.RUnlock()
	var mu sync.Mutex // guards failed
	var failed error
	parallel(len(all), func(i int) {
		if ctx.Err() != nil {
			return
		}
		err := e.readContainer(found[i], &all[i], detail)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			mu.Lock()
			failed = err
			mu.Unlock()
		}
	})
	if failed != nil {
		e.log.Warn("what a container uses cannot be read", "error", failed)
	}
	e.layers.want(ctx, listPatience, layers...)
	for i := range all {
		all[i].Layer = layers[i].last()
	}
	return slices.DeleteFunc(all, func(s ContainerStats) bool { return s.Cgroup == nil })
}

func (e *Engine) readContainer(c *container, s *ContainerStats, detail Detail) error {
	host, err := cgstat.Machine()
	if err != nil {
		return err
	}
	sample, err := host.Read(s.Status.CgroupsPath, detail)
	if err != nil {
		return err
	}
	s.Cgroup, s.NanoCores = sample, c.rate.observe(sample.At, sample.CPU.Usage, s.Status.StartedAt)
	if detail < DetailFull {
		return nil
	}
	s.Processes, err = readProcesses(host, s.Status.CgroupsPath, s.Status.PID)
	return err
}

// readPod fills in what is not of single containers. What cannot be read is left out.
func (e *Engine) readPod(ctx context.Context, p *PodStats, own bool, detail Detail) {
	r := p.Status
	if r.State == PodReady && r.Pod.OwnNetwork() {
		links, err := e.cfg.Network.Links(ctx, r.Pod.ID)
		if err == nil {
			p.Links, p.LinksAt = links, time.Now()
		} else {
			e.log.Debug("what went through the network of a pod cannot be read", "pod", r.Pod.ID, "error", err)
		}
	}
	host, err := cgstat.Machine()
	if err != nil {
		return
	}
	for _, c := range p.Containers {
		pids, err := host.Processes(c.Status.CgroupsPath)
		if err == nil {
			p.Processes += uint64(len(pids))
		}
	}
	if own {
		if sample, err := host.Read(r.Pod.CgroupParent, detail); err == nil {
			p.Cgroup, p.OwnCgroup = sample, true
		}
	}
	if p.Cgroup == nil {
		p.Cgroup = sumOf(p.Containers)
	}
	if p.Cgroup == nil {
		return
	}
	e.mu.RLock()
	known := e.pods[r.Pod.ID]
	e.mu.RUnlock()
	if known != nil && p.OwnCgroup {
		p.NanoCores = known.rate.observe(p.Cgroup.At, p.Cgroup.CPU.Usage, r.CreatedAt)
		return
	}
	for _, c := range p.Containers { // containers come and go, and the sum with them: its difference says nothing
		p.NanoCores += c.NanoCores
	}
}

// sumOf adds up what can be added; averages cannot. It is nil without any container.
func sumOf(containers []ContainerStats) *cgstat.Sample {
	var sum *cgstat.Sample
	for _, c := range containers {
		if sum == nil {
			sum = &cgstat.Sample{}
		}
		sum.Add(c.Cgroup)
	}
	return sum
}

// ownCgroups says which pods have a cgroup that no other pod is in: kubelet makes one for each and names it as the
// parent, others let all pods share one.
func (e *Engine) ownCgroups() map[string]bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	parents := make([]string, 0, len(e.pods))
	for _, p := range e.pods {
		parents = append(parents, p.record.Pod.CgroupParent)
	}
	slices.Sort(parents)
	own := make(map[string]bool, len(e.pods))
	for id, p := range e.pods {
		parent := p.record.Pod.CgroupParent
		if parent == e.cfg.CgroupParent {
			continue // the one for pods that ask for none
		}
		first, _ := slices.BinarySearch(parents, parent)
		shared := first+1 < len(parents) && parents[first+1] == parent
		below, _ := slices.BinarySearch(parents, parent+"/")
		shared = shared || below < len(parents) && strings.HasPrefix(parents[below], parent+"/")
		own[id] = !shared
	}
	return own
}

// parallel calls fn for 0 to n-1 on as many goroutines as there are CPUs, when there is enough to do for that.
func parallel(n int, fn func(i int)) {
	const enough = 8
	workers := min(runtime.GOMAXPROCS(0), n/enough)
	if workers < 2 {
		for i := range n {
			fn(i)
		}
		return
	}
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			for i := w; i < n; i += workers {
				fn(i)
			}
		})
	}
	group.Wait()
}

// rate turns readings of a counter of nanoseconds into how fast it runs. The zero value is ready for use.
type rate struct {
	mu        sync.Mutex
	at        time.Time
	usage     uint64
	nanoCores uint64
}

// nearest is the least time between two readings of which the difference is taken; one that comes sooner gets the last answer.
const nearest = time.Second

// observe takes a reading in. The first is compared with the start, when there was none.
func (r *rate) observe(at time.Time, usage uint64, start time.Time) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	since, before := r.at, r.usage
	if since.IsZero() {
		since, before = start, 0
	} else if at.Sub(since) < nearest {
		return r.nanoCores
	}
	if took := at.Sub(since); took > 0 && usage >= before {
		r.nanoCores = uint64(float64(usage-before) / took.Seconds())
	}
	r.at, r.usage = at, usage
	return r.nanoCores
}
