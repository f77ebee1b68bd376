package engine

import (
	"fmt"
	"testing"
)

// TestListAllocations keeps a list from costing something for each item: clients ask for all pods and containers every second.
func TestListAllocations(t *testing.T) {
	const n, limit = 20, 10
	e := open(t, newWorld(), t.TempDir())
	for i := range n {
		runningContainer(t, e, fmt.Sprint("pod-", i))
	}
	encoded := 0
	encodePod := func(p *PodItem) ([]byte, error) { encoded++; return []byte(p.Name), nil }
	encode := func(c *ContainerItem) ([]byte, error) { encoded++; return []byte(c.ID + " " + string(c.State)), nil }
	got := testing.AllocsPerRun(20, func() {
		pods, err := e.ListPods(PodFilter{}, encodePod)
		must(t, err)
		containers, err := e.ListContainers(ContainerFilter{State: ContainerRunning}, encode)
		must(t, err)
		if len(pods) != n || len(containers) != n {
			t.Fatalf("%d pods, %d containers", len(pods), len(containers))
		}
	})
	if encoded != 2*n {
		t.Errorf("%d items were encoded, %d pods with a container each", encoded, n)
	}
	if got > limit {
		t.Errorf("the lists of %d pods and their containers make %.0f allocations, the limit is %d", n, got, limit)
	}
}
