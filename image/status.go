package image

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// watchEvery is how often a caller that watches a pull is told how far it is.
const watchEvery = 200 * time.Millisecond

// Phase is what a pull is about.
type Phase int32

// The phases, in the order in which a pull goes through them.
const (
	Resolving Phase = iota // asking the registry what the name means, and for manifest and configuration
	Verifying              // asking the verifiers
	Fetching               // layers, unpacked as they come
	Recording              // giving the image its names
)

// String is the phase in a word.
func (p Phase) String() string {
	return [...]string{"resolving", "verifying", "fetching", "recording"}[p]
}

// PullStatus is how far a pull is.
type PullStatus struct {
	// Ref is the full name of what is pulled.
	Ref   string
	Began time.Time
	Phase Phase
	// BytesDone of BytesTotal are those of layers as the registry serves them; a layer that was here counts as fetched.
	// BytesTotal is 0 until it is known. BytesDone never falls.
	BytesDone, BytesTotal int64
	// BytesUnpacked are those of tar streams that were written to layers.
	BytesUnpacked           int64
	LayersDone, LayersTotal int
}

// tally counts what a pull has of its layers. The zero value is a pull that does not know them yet.
type tally struct {
	phase            atomic.Int32
	total, done      atomic.Int64
	unpacked         atomic.Int64
	layers, complete atomic.Int32
}

// begin says how much there is to fetch; what came before, documents, does not count.
func (t *tally) begin(total int64, layers int) {
	t.done.Store(0)
	t.total.Store(total)
	t.layers.Store(int32(layers))
	t.phase.Store(int32(Fetching))
}

// status reads the counters.
func (p *pull) status() PullStatus {
	t := &p.meter.tally
	s := PullStatus{
		Ref: p.named.String(), Began: p.began, Phase: Phase(t.phase.Load()), BytesTotal: t.total.Load(),
		BytesUnpacked: t.unpacked.Load(), LayersDone: int(t.complete.Load()), LayersTotal: int(t.layers.Load()),
	}
	// A layer that has to be fetched again counts twice, and documents before the layers count for nothing.
	if s.BytesDone = min(t.done.Load(), s.BytesTotal); s.LayersTotal > 0 && s.LayersDone == s.LayersTotal {
		s.BytesDone = s.BytesTotal
	}
	return s
}

// underway are the pulls that run, by the key by which callers join them.
type underway struct {
	mu    sync.Mutex
	pulls map[string]*pull
}

// add lists a pull until what it returns is called.
func (u *underway) add(key string, p *pull) func() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.pulls == nil {
		u.pulls = map[string]*pull{}
	}
	u.pulls[key] = p
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.pulls[key] == p {
			delete(u.pulls, key)
		}
	}
}

func (u *underway) find(key string) *pull {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.pulls[key]
}

// Pulls says how far the pulls are that run, the oldest first.
func (s *Store) Pulls() []PullStatus {
	s.underway.mu.Lock()
	var all []PullStatus
	for _, p := range s.underway.pulls {
		all = append(all, p.status())
	}
	s.underway.mu.Unlock()
	slices.SortFunc(all, func(a, b PullStatus) int { return cmp.Or(a.Began.Compare(b.Began), cmp.Compare(a.Ref, b.Ref)) })
	return all
}

// watch tells a caller how far its pull is, until what it returns is called.
func (s *Store) watch(ctx context.Context, key string, tell func(PullStatus)) func() {
	if tell == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	group.Go(func() {
		ticker := time.NewTicker(watchEvery)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				if p := s.underway.find(key); p != nil {
					tell(p.status())
				}
			}
		}
	})
	return func() { cancel(); group.Wait() }
}
