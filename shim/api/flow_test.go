package api

import (
	"context"
	"math"
	"testing"
)

func TestCredit(t *testing.T) {
	c := NewCredit()
	for range Window {
		if !c.Take(t.Context()) {
			t.Fatal("a new stream has no room")
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if c.Take(ended) {
		t.Error("room for more than a window")
	}
	c.Give(math.MaxUint32) // a peer that lies gets no more than a window
	if len(c) != Window || c.Take(ended) {
		t.Errorf("room for %d, or sent after the end", len(c))
	}
}

// TestTaken sees to it that a sender that has used up its window hears of it before the receiver has none left.
func TestTaken(t *testing.T) {
	var taken Taken
	total := uint32(0)
	for i := range uint32(Window) {
		total += taken.Add()
		if i+1-total >= Window/2 {
			t.Fatalf("after %d messages only %d were told", i+1, total)
		}
	}
	if total != Window {
		t.Errorf("%d of %d were told", total, Window)
	}
}
