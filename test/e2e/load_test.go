package e2e

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestFiftyPods brings pods up and down, eight at a time, each with a container that answers an exec.
func TestFiftyPods(t *testing.T) {
	pods, concurrency := 50, 8
	if testing.Short() {
		pods = 10
	}
	n := sharedNode(t)
	var (
		mu   sync.Mutex
		up   []*pod
		took []time.Duration
	)
	each(pods, concurrency, func(int) {
		start := time.Now()
		p, err := n.tryPod(t)
		if err != nil {
			t.Errorf("RunPodSandbox: %v", err)
			return
		}
		mu.Lock()
		up = append(up, p)
		mu.Unlock()
		c, err := p.tryCreate(command("sleep", "1000"))
		if err == nil {
			err = c.tryStart()
		}
		if err != nil {
			t.Errorf("container: %v", err)
			return
		}
		mu.Lock()
		took = append(took, time.Since(start))
		mu.Unlock()
		if r, err := c.exec(t.Context(), 0, "hostname"); err != nil || r.stdout != p.config.Hostname+"\n" {
			t.Errorf("exec: %+v, %v", r, err)
		}
	})
	t.Cleanup(func() { // whatever failed
		for _, p := range up {
			_ = p.down()
		}
	})
	list, err := n.d.Runtime.ListPodSandbox(t.Context(), &runtimev1.ListPodSandboxRequest{})
	if err != nil || len(list.Items) != len(up) {
		t.Errorf("ListPodSandbox: %d pods, %v, want %d", len(list.Items), err, len(up))
	}
	if w := n.workloads(t); len(w) != len(up) {
		t.Errorf("%d workload processes, want %d", len(w), len(up))
	}
	addresses := map[string]bool{}
	for _, p := range up {
		addresses[p.ip(t)] = true
	}
	if len(addresses) != len(up) {
		t.Errorf("%d pods have %d addresses", len(up), len(addresses))
	}
	start := time.Now()
	each(len(up), concurrency, func(i int) {
		if err := up[i].down(); err != nil {
			t.Errorf("down: %v", err)
		}
	})
	slices.Sort(took)
	if len(took) > 0 {
		t.Logf("up at concurrency %d: p50 %v, max %v; all down in %v", concurrency, took[len(took)/2].Round(time.Millisecond),
			took[len(took)-1].Round(time.Millisecond), time.Since(start).Round(time.Millisecond))
	}
}

// each calls do for 0 to n-1, so many at a time, and waits.
func each(n, concurrency int, do func(i int)) {
	var wait sync.WaitGroup
	slots := make(chan struct{}, concurrency)
	for i := range n {
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			do(i)
		})
	}
	wait.Wait()
}

// TestRetryJoins asks for the same pod and container many times at once, as a kubelet does whose calls time out: there
// is one of each in the end, and every caller gets its id.
func TestRetryJoins(t *testing.T) {
	n := sharedNode(t)
	config := podConfig(t, n)
	ids := make([]string, 8)
	each(len(ids), len(ids), func(i int) {
		ctx, cancel := callContext()
		defer cancel()
		resp, err := n.d.Runtime.RunPodSandbox(ctx, &runtimev1.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
		if err != nil {
			t.Errorf("RunPodSandbox: %v", err)
		}
		ids[i] = resp.GetPodSandboxId()
	})
	p := &pod{n: n, id: ids[0], config: config}
	t.Cleanup(func() {
		if err := p.down(); err != nil {
			t.Error(err)
		}
	})
	if all := slices.Compact(slices.Sorted(slices.Values(ids))); len(all) != 1 {
		t.Errorf("pods %v, want one", all)
	}
	each(len(ids), len(ids), func(i int) {
		c, err := p.tryCreate(command("sleep", "1000"), func(c *runtimev1.ContainerConfig) {
			c.Metadata.Name, c.LogPath = "one", "one.log"
		})
		if err == nil {
			err = c.tryStart()
		}
		if err != nil {
			t.Errorf("container: %v", err)
		}
		ids[i] = c.id
	})
	if all := slices.Compact(slices.Sorted(slices.Values(ids))); len(all) != 1 {
		t.Errorf("containers %v, want one", all)
	}
	if w := n.workloads(t); len(w) != 1 {
		t.Errorf("%d workloads, want 1: %s", len(w), fmt.Sprint(w))
	}
}
