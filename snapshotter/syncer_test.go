package snapshotter

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
)

func TestSyncer(t *testing.T) {
	s, err := newSyncer(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	early := s.mark()
	var calls sync.WaitGroup
	for range 20 {
		calls.Go(func() {
			if err := s.sync(context.Background(), s.mark()); err != nil {
				t.Error(err)
			}
		})
	}
	calls.Wait()
	if err := s.sync(t.Context(), early); err != nil {
		t.Error(err)
	}
	// An error that a syncfs for someone else met is also that of whoever had begun to write before.
	s.mu.Lock()
	s.failures++
	s.mu.Unlock()
	if err := s.sync(t.Context(), early); !errdefs.IsDataLoss(err) {
		t.Errorf("sync after an error: %v", err)
	}
	if err := s.sync(t.Context(), s.mark()); err != nil {
		t.Errorf("sync of what was written after the error: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.sync(ctx, s.mark()); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
	if s.running || s.waiting != nil {
		t.Error("close did not wait for the last sync")
	}
}
