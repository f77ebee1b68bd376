package engine

import (
	"fmt"
	"testing"
)

// TestAllocations keeps the engine's part of the path from request to workload from growing: what is allocated costs its
// time later, by the garbage collector. The limit is a bit above what was counted when it was written.
func TestAllocations(t *testing.T) {
	const limit = 570
	e := open(t, newWorld(), t.TempDir())
	i := 0
	got := testing.AllocsPerRun(50, func() {
		i++
		podID, _ := runningContainer(t, e, fmt.Sprint("pod-", i))
		must(t, e.StopPod(background, podID))
		must(t, e.RemovePod(background, podID))
	})
	t.Logf("%.0f allocations", got)
	if got > limit {
		t.Errorf("a pod with one container, up and down, makes %.0f allocations, the limit is %d (go test -bench PodCycle -memprofile says where)", got, limit)
	}
}
