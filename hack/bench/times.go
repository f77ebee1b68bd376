package main

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// times collects durations by the name of what was done. It may be used concurrently.
type times struct {
	mu   sync.Mutex
	took map[string][]time.Duration
}

func (t *times) add(name string, d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.took == nil {
		t.took = map[string][]time.Duration{}
	}
	t.took[name] = append(t.took[name], d)
}

// time does something and notes how long it took, unless it failed. Without a name nothing is noted.
func (t *times) time(name string, do func() error) error {
	start := time.Now()
	if err := do(); err != nil {
		if name != "" {
			err = fmt.Errorf("%s: %w", name, err)
		}
		return err
	}
	if name != "" {
		t.add(name, time.Since(start))
	}
	return nil
}

// ms is a quantile in milliseconds; nil when nothing was noted under the name.
func (t *times) ms(name string, q float64) *float64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return quantile(t.took[name], q)
}

// quantile is that of the nearest rank, in milliseconds; nil of nothing.
func quantile(took []time.Duration, q float64) *float64 {
	if len(took) == 0 {
		return nil
	}
	sorted := slices.Sorted(slices.Values(took))
	return ptr(sorted[int(q*float64(len(sorted)-1)+0.5)].Seconds() * 1000)
}

func ptr(f float64) *float64 { return &f }

// each calls do for 0 to n-1, so many at a time, waits, and answers with all errors.
func each(n, concurrency int, do func(i int) error) error {
	var (
		wait sync.WaitGroup
		mu   sync.Mutex
		all  error
	)
	slots := make(chan struct{}, concurrency)
	for i := range n {
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			if err := do(i); err != nil {
				mu.Lock()
				all = errors.Join(all, err)
				mu.Unlock()
			}
		})
	}
	wait.Wait()
	return all
}
