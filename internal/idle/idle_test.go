package idle

import (
	"context"
	"runtime"
	"runtime/metrics"
	"testing"
	"time"
)

// TestTrim makes garbage and then nothing.
func TestTrim(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { Trim(ctx, 20*time.Millisecond); close(done) }()
	garbage := make([]byte, 32<<20)
	for i := 0; i < len(garbage); i += 4096 {
		garbage[i] = 1
	}
	runtime.KeepAlive(garbage)
	before := released()
	for end := time.Now().Add(10 * time.Second); released() < before+16<<20; time.Sleep(10 * time.Millisecond) {
		little = make([]byte, 100<<10) // it was trimmed perhaps while the garbage was none yet, and is again after some work
		if time.Now().After(end) {
			t.Fatalf("%d bytes were given back before, now %d", before, released())
		}
	}
	cancel()
	<-done
}

var little []byte

func released() uint64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}
