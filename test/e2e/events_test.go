package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// listen subscribes to events; what it answers reads the next one. Nothing that happens from now on is missed.
func (n *node) listen(t testing.TB) func() (*runtimev1.ContainerEventResponse, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	t.Cleanup(cancel)
	stream, err := n.d.Runtime.GetContainerEvents(ctx, &runtimev1.GetEventsRequest{})
	if err == nil {
		_, err = stream.Header()
	}
	if err != nil {
		t.Fatalf("GetContainerEvents: %v", err)
	}
	return stream.Recv
}

// TestEvents has several consumers, one of which does not read, and one that begins late.
func TestEvents(t *testing.T) {
	n := ownNode(t)
	n.listen(t) // never reads
	next, other := n.listen(t), n.listen(t)
	p := n.runPod(t)
	c := p.run(t, shell("exit 3"))
	c.wait(t, 20*time.Second)
	late := n.listen(t)
	c.remove(t)
	if err := p.down(); err != nil {
		t.Fatal(err)
	}
	names := map[string]string{p.id: "pod", c.id: "container"}
	read := func(next func() (*runtimev1.ContainerEventResponse, error)) string {
		var all []string
		for {
			event, err := next()
			if err != nil {
				t.Fatalf("after %q: %v", all, err)
			}
			kind := strings.TrimSuffix(strings.TrimPrefix(event.ContainerEventType.String(), "CONTAINER_"), "_EVENT")
			all = append(all, names[event.ContainerId]+" "+kind)
			if event.PodSandboxStatus.GetMetadata().GetName() != p.config.Metadata.Name || event.CreatedAt == 0 {
				t.Errorf("%v", event)
			}
			if event.ContainerId == c.id && kind == "STOPPED" && (len(event.ContainersStatuses) != 1 || event.ContainersStatuses[0].ExitCode != 3) {
				t.Errorf("stopped: %v", event.ContainersStatuses)
			}
			if event.ContainerId == p.id && kind == "DELETED" {
				return strings.Join(all, ", ")
			}
		}
	}
	end := "container DELETED, pod STOPPED, pod DELETED"
	want := "pod CREATED, pod STARTED, container CREATED, container STARTED, container STOPPED, " + end
	if got := read(next); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := read(other); got != want {
		t.Errorf("the other: got  %s\nwant %s", got, want)
	}
	if got := read(late); got != end {
		t.Errorf("the late one: got  %s\nwant %s", got, end)
	}
	// Streams do not hold up the daemon's end.
	start := time.Now()
	if err := n.d.Stop(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 4*time.Second {
		t.Errorf("the daemon took %v to stop", took)
	}
	_, err := next()
	wantCode(t, err, codes.Unavailable, "")
	if err := n.d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.runPod(t) // the bridge, which went with the daemon, comes back with it
}

// drain reads a stream of lists.
func drain[M any, T any](t testing.TB, recv func() (*M, error), items func(*M) []T) []T {
	t.Helper()
	var all []T
	for {
		m, err := recv()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, items(m)...)
	}
}

// TestMetricsAndStreams compares each stream with its list, and looks for a few metrics of a pod that is known.
func TestMetricsAndStreams(t *testing.T) {
	n := sharedNode(t)
	p := n.runPod(t, ownCgroup(t))
	c := p.run(t, memoryLimit(64<<20), command("sleep", "1000"))
	ctx, cancel := callContext()
	defer cancel()
	r := n.d.Runtime
	descriptors, err := r.ListMetricDescriptors(ctx, &runtimev1.ListMetricDescriptorsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string][]string{}
	for _, d := range descriptors.Descriptors {
		keys[d.Name] = d.LabelKeys
	}
	metrics, err := r.StreamPodSandboxMetrics(ctx, &runtimev1.StreamPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	all := drain(t, metrics.Recv, (*runtimev1.StreamPodSandboxMetricsResponse).GetPodSandboxMetrics)
	if len(all) != 1 || all[0].PodSandboxId != p.id || len(all[0].ContainerMetrics) != 1 || all[0].ContainerMetrics[0].ContainerId != c.id {
		t.Fatalf("metrics %v", all)
	}
	values := map[string]uint64{}
	for level, list := range map[string][]*runtimev1.Metric{"pod": all[0].Metrics, "container": all[0].ContainerMetrics[0].Metrics} {
		for _, m := range list {
			if len(keys[m.Name]) != len(m.LabelValues) {
				t.Errorf("%s has labels %q for %q", m.Name, m.LabelValues, keys[m.Name])
				continue
			}
			if got := m.LabelValues[slices.Index(keys[m.Name], "pod")]; got != p.config.Metadata.Name {
				t.Errorf("%s is of pod %q", m.Name, got)
			}
			values[level+" "+m.Name] = m.Value.Value
		}
	}
	for name, want := range map[string]uint64{"container container_processes": 1, "container container_spec_memory_limit_bytes": 64 << 20, "container container_oom_events_total": 0} {
		if got, ok := values[name]; !ok || got != want {
			t.Errorf("%s is %d, %v", name, got, ok)
		}
	}
	for _, name := range []string{"container container_memory_usage_bytes", "container container_last_seen", "container container_fs_limit_bytes",
		"pod container_memory_usage_bytes", "container container_file_descriptors", "container container_ulimits_soft"} {
		if values[name] == 0 {
			t.Errorf("%s is missing or 0", name)
		}
	}
	pods, err := r.StreamPodSandboxes(ctx, &runtimev1.StreamPodSandboxesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if got := drain(t, pods.Recv, (*runtimev1.StreamPodSandboxesResponse).GetPodSandboxes); len(got) != 1 || got[0].Id != p.id {
		t.Errorf("pods %v", got)
	}
	stats, err := r.StreamContainerStats(ctx, &runtimev1.StreamContainerStatsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if got := drain(t, stats.Recv, (*runtimev1.StreamContainerStatsResponse).GetContainerStats); len(got) != 1 || got[0].Cpu == nil {
		t.Errorf("stats %v", got)
	}
	images, err := n.d.Images.StreamImages(ctx, &runtimev1.StreamImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if got := drain(t, images.Recv, (*runtimev1.StreamImagesResponse).GetImages); len(got) != 1 {
		t.Errorf("images %v", got)
	}
}

// TestOOMIsCounted has a child of the container's process killed for want of memory.
func TestOOMIsCounted(t *testing.T) {
	n := sharedNode(t)
	c := n.runPod(t).run(t, memoryLimit(16<<20), shell("dd if=/dev/zero of=/dev/null bs=64M count=1; echo after; sleep 1000"))
	eventually(t, 30*time.Second, func() error {
		ctx, cancel := callContext()
		defer cancel()
		resp, err := n.d.Runtime.ListPodSandboxMetrics(ctx, &runtimev1.ListPodSandboxMetricsRequest{})
		if err != nil {
			return err
		}
		for _, p := range resp.PodMetrics {
			for _, cm := range p.ContainerMetrics {
				for _, m := range cm.Metrics {
					if cm.ContainerId == c.id && m.Name == "container_oom_events_total" && m.Value.Value == 1 {
						return nil
					}
				}
			}
		}
		return fmt.Errorf("no OOM event in %v", resp)
	})
}

// TestUpdateRuntimeConfig moves the addresses of new pods; a daemon that starts again still knows.
func TestUpdateRuntimeConfig(t *testing.T) {
	n := ownNode(t)
	ctx, cancel := callContext()
	defer cancel()
	_, err := n.d.Runtime.UpdateRuntimeConfig(ctx, &runtimev1.UpdateRuntimeConfigRequest{
		RuntimeConfig: &runtimev1.RuntimeConfig{NetworkConfig: &runtimev1.NetworkConfig{PodCidr: "10.77.9.0/24"}}})
	if err != nil {
		t.Fatal(err)
	}
	told := netip.MustParsePrefix("10.77.9.0/24")
	first, err := n.tryPod(t) // what it makes once for the new range is no leftover
	if err == nil {
		err = first.down()
	}
	if err != nil {
		t.Fatal(err)
	}
	if n.baseline, err = n.settled(); err != nil {
		t.Fatal(err)
	}
	if ip := n.runPod(t).ip(t); !told.Contains(netip.MustParseAddr(ip)) {
		t.Errorf("the address is %s", ip)
	}
	n.d.Kill()
	if err := n.d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if ip := n.runPod(t).ip(t); !told.Contains(netip.MustParseAddr(ip)) {
		t.Errorf("after a restart the address is %s", ip)
	}
	_, err = n.d.Runtime.UpdateRuntimeConfig(ctx, &runtimev1.UpdateRuntimeConfigRequest{
		RuntimeConfig: &runtimev1.RuntimeConfig{NetworkConfig: &runtimev1.NetworkConfig{PodCidr: "ten"}}})
	wantCode(t, err, codes.InvalidArgument, "pod_cidr")
}
