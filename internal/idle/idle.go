// Package idle gives memory back that a process does not need while it has nothing to do.
package idle

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"github.com/criserver/criserver/internal/trim"
)

// quiet is how little a process allocates between two looks that is idle, and worked how much since it was trimmed that is
// worth another time, in bytes. What is done now and then allocates less than that and brings the program's pages back all the
// same, each fault with its neighbours (internal/trim): they go again after every pause looks in
// a row that saw less than still. A caller that comes more often than that does not pay for it.
const (
	quiet  = 1 << 20
	worked = 256 << 10
	still  = 64 << 10
	pause  = 2
)

// Trim looks every period whether the process did next to nothing since the last look, and then gives its free memory and the
// pages of its program back, unless it has hardly worked since that was done. It returns when ctx ends.
func Trim(ctx context.Context, period time.Duration) {
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	allocated := func() uint64 {
		metrics.Read(sample)
		return sample[0].Value.Uint64()
	}
	last, trimmed := allocated(), uint64(0)
	looks := 0 // that saw a still process, in a row
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now := allocated()
		if looks++; now-last >= still {
			looks = 0
		}
		switch {
		case now-last < quiet && now-trimmed > worked:
			runtime.GC() // what lies in a sync.Pool is free after the second collection
			debug.FreeOSMemory()
			now = allocated()
			trimmed, looks = now, 0
			trim.Text()
		case looks >= pause:
			looks = 0
			trim.Text()
		}
		last = now
	}
}
