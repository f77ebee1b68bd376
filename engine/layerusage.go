package engine

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// LayerUsage is what a writable layer takes on disk.
type LayerUsage struct {
	Bytes, Inodes uint64
	At            time.Time // when it was measured
}

const (
	// layerAge is how old a measurement may be before one is made anew; one that took long lasts longer, so that measuring
	// takes at most one part in layerShare of the time.
	layerAge   = 10 * time.Second
	layerShare = 50
	// layerLimit ends a measurement: the layer is then one whose size is not known.
	layerLimit = time.Minute
	// measurers is how many layers are measured at once.
	measurers = 2
	// singlePatience and listPatience are how long a call waits for a first measurement. Later ones are never waited for.
	singlePatience = 200 * time.Millisecond
	listPatience   = 20 * time.Millisecond
)

// layerState is what is known of the size of one container's writable layer. The zero value is one never measured.
type layerState struct {
	key string // set before the container is known to others

	mu      sync.Mutex
	usage   *LayerUsage
	took    time.Duration
	next    time.Time     // not measured again before
	running chan struct{} // closed at the end of the measurement under way; nil when there is none
}

func (s *layerState) last() *LayerUsage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.usage
}

// layerMeter measures writable layers behind the calls that ask for them. It walks directories, which takes as long as they
// are large, so what it answers may be some seconds old.
type layerMeter struct {
	ctx    context.Context
	log    *slog.Logger
	rootfs Rootfs
	turns  chan struct{} // of measurers

	mu      sync.Mutex // guards closed, and the first Add of running against its Wait
	closed  bool
	running sync.WaitGroup
}

func newLayerMeter(ctx context.Context, rootfs Rootfs, log *slog.Logger) *layerMeter {
	return &layerMeter{ctx: ctx, log: log, rootfs: rootfs, turns: make(chan struct{}, measurers)}
}

// close waits for measurements under way, which end with the context.
func (m *layerMeter) close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.running.Wait()
}

// spawn is false once the meter was closed.
func (m *layerMeter) spawn(fn func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.running.Go(fn)
	return true
}

// want has those measured whose last measurement is too old, and waits no longer than patience for those that have none.
func (m *layerMeter) want(ctx context.Context, patience time.Duration, layers ...*layerState) {
	var first []chan struct{}
	for _, s := range layers {
		if running, unknown := m.begin(s); unknown && running != nil {
			first = append(first, running)
		}
	}
	if len(first) == 0 {
		return
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for _, running := range first {
		select {
		case <-running:
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// begin starts a measurement that is due.
func (m *layerMeter) begin(s *layerState) (running chan struct{}, unknown bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	unknown = s.usage == nil
	if s.running != nil || time.Now().Before(s.next) {
		return s.running, unknown
	}
	done := make(chan struct{})
	if m.spawn(func() { m.measure(s, done) }) {
		s.running = done
	}
	return s.running, unknown
}

func (m *layerMeter) measure(s *layerState, done chan struct{}) {
	var usage LayerUsage
	err := m.ctx.Err()
	select {
	case m.turns <- struct{}{}:
		defer func() { <-m.turns }()
	case <-m.ctx.Done():
		err = m.ctx.Err()
	}
	start := time.Now()
	if err == nil {
		ctx, cancel := context.WithTimeout(m.ctx, layerLimit)
		usage.Bytes, usage.Inodes, err = m.rootfs.Usage(ctx, s.key)
		cancel()
	}
	usage.At = time.Now()
	if err != nil && m.ctx.Err() == nil {
		m.log.Debug("a writable layer cannot be measured", "container", s.key, "error", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.took = usage.At.Sub(start)
	s.next = usage.At.Add(max(layerAge, layerShare*s.took))
	if err == nil {
		s.usage = &usage
	}
	s.running = nil
	close(done)
}

// LayersUsage is what the writable layers of all containers take together, as far as they were measured, and when the oldest
// of the measurements was made. It has those measured that are due.
func (e *Engine) LayersUsage(ctx context.Context) LayerUsage {
	e.mu.RLock()
	layers := make([]*layerState, 0, len(e.containers))
	for _, c := range e.containers {
		if c.record.State != creating && c.record.State != removing {
			layers = append(layers, &c.layer)
		}
	}
	e.mu.RUnlock()
	e.layers.want(ctx, listPatience, layers...)
	sum := LayerUsage{At: time.Now()}
	for _, s := range layers {
		if one := s.last(); one != nil {
			sum.Bytes += one.Bytes
			sum.Inodes += one.Inodes
			if one.At.Before(sum.At) {
				sum.At = one.At
			}
		}
	}
	return sum
}
