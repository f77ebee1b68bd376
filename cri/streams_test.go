package cri

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestSendMessages(t *testing.T) {
	big := func(size int) *runtime.Container { return &runtime.Container{Id: strings.Repeat("x", size)} }
	for name, items := range map[string][]*runtime.Container{
		"none":      nil,
		"one":       {big(1)},
		"small":     slices.Repeat([]*runtime.Container{big(100)}, 50000),
		"huge":      {big(10), big(9 << 20), big(9 << 20), big(15 << 20), big(10)},
		"near half": {big(chunk - 10), big(MaxMessage/2 - chunk), big(10)},
	} {
		var sent []*runtime.Container
		messages := 0
		err := sendMessages(items, func(part []*runtime.Container) error {
			messages++
			if size := proto.Size(&runtime.StreamContainersResponse{Containers: part}); size > MaxMessage || len(part) == 0 {
				t.Errorf("%s: a message of %d items, %d bytes", name, len(part), size)
			}
			sent = append(sent, part...)
			return nil
		})
		if err != nil || !slices.Equal(sent, items) || name == "small" && messages > 20 {
			t.Errorf("%s: %d of %d items in %d messages, %v", name, len(sent), len(items), messages, err)
		}
	}
	failed := errors.New("gone")
	if err := sendMessages([]*runtime.Container{big(1)}, func([]*runtime.Container) error { return failed }); !errors.Is(err, failed) {
		t.Error(err)
	}
}

// collect reads a stream of lists to its end.
func collect[M any, T any](t *testing.T, what string, stream grpc.ServerStreamingClient[M], err error, items func(*M) []T) []T {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	var all []T
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		all = append(all, items(m)...)
	}
}

func TestListStreams(t *testing.T) {
	f := newFront(t)
	ctx := t.Context()
	one, _ := f.running(t, "one")
	f.running(t, "two")
	pods, err := f.StreamPodSandboxes(ctx, &runtime.StreamPodSandboxesRequest{})
	if all := collect(t, "pods", pods, err, (*runtime.StreamPodSandboxesResponse).GetPodSandboxes); len(all) != 2 {
		t.Errorf("pods %v", all)
	}
	pods, err = f.StreamPodSandboxes(ctx, &runtime.StreamPodSandboxesRequest{Filter: &runtime.PodSandboxFilter{Id: "nope"}})
	if all := collect(t, "pods", pods, err, (*runtime.StreamPodSandboxesResponse).GetPodSandboxes); len(all) != 0 {
		t.Errorf("pods %v", all)
	}
	containers, err := f.StreamContainers(ctx, &runtime.StreamContainersRequest{Filter: &runtime.ContainerFilter{PodSandboxId: one}})
	if all := collect(t, "containers", containers, err, (*runtime.StreamContainersResponse).GetContainers); len(all) != 1 || all[0].PodSandboxId != one {
		t.Errorf("containers %v", all)
	}
	stats, err := f.StreamContainerStats(ctx, &runtime.StreamContainerStatsRequest{})
	collect(t, "container stats", stats, err, (*runtime.StreamContainerStatsResponse).GetContainerStats)
	podStats, err := f.StreamPodSandboxStats(ctx, &runtime.StreamPodSandboxStatsRequest{})
	if all := collect(t, "pod stats", podStats, err, (*runtime.StreamPodSandboxStatsResponse).GetPodSandboxStats); len(all) != 2 {
		t.Errorf("pod stats %v", all)
	}
	metrics, err := f.StreamPodSandboxMetrics(ctx, &runtime.StreamPodSandboxMetricsRequest{})
	if all := collect(t, "metrics", metrics, err, (*runtime.StreamPodSandboxMetricsResponse).GetPodSandboxMetrics); len(all) != 2 {
		t.Errorf("metrics %v", all)
	}
	images, err := f.images.StreamImages(ctx, &runtime.StreamImagesRequest{})
	collect(t, "images", images, err, (*runtime.StreamImagesResponse).GetImages)
}

func TestContainerEvents(t *testing.T) {
	f := newFront(t)
	stream, err := f.GetContainerEvents(t.Context(), &runtime.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil {
		t.Fatal(err)
	}
	pod, container := f.running(t, "web")
	if _, err := f.RemovePodSandbox(t.Context(), &runtime.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Fatal(err)
	}
	names := map[string]string{pod: "pod", container: "container"}
	var got []string
	for {
		event, err := stream.Recv()
		if err != nil {
			t.Fatalf("after %q: %v", got, err)
		}
		if event.CreatedAt == 0 || event.PodSandboxStatus.GetMetadata().GetUid() != "u-web" {
			t.Errorf("%v", event)
		}
		if event.ContainerEventType == runtime.ContainerEventType_CONTAINER_STARTED_EVENT && event.ContainerId == container &&
			(len(event.ContainersStatuses) != 1 || event.ContainersStatuses[0].State != runtime.ContainerState_CONTAINER_RUNNING) {
			t.Errorf("started: %v", event.ContainersStatuses)
		}
		got = append(got, fmt.Sprint(names[event.ContainerId], " ", event.ContainerEventType))
		if event.ContainerId == pod && event.ContainerEventType == runtime.ContainerEventType_CONTAINER_DELETED_EVENT {
			break
		}
	}
	if got[0] != "pod CONTAINER_CREATED_EVENT" || !slices.Contains(got, "container CONTAINER_DELETED_EVENT") {
		t.Errorf("got %q", got)
	}
	f.server.EndStreams()
	_, err = stream.Recv()
	wantCode(t, "the daemon stops", err, codes.Unavailable, "stops")
}

func TestUpdateRuntimeConfig(t *testing.T) {
	f := newFront(t)
	update := func(cidr string) error {
		_, err := f.UpdateRuntimeConfig(t.Context(), &runtime.UpdateRuntimeConfigRequest{
			RuntimeConfig: &runtime.RuntimeConfig{NetworkConfig: &runtime.NetworkConfig{PodCidr: cidr}}})
		return err
	}
	for _, text := range []string{"10.3.0.0/24,fd00:3::/64", "10.3.0.7/24, fd00:3::1/64"} {
		f.net.cidrs = nil
		if err := update(text); err != nil || !slices.Equal(f.net.cidrs, []netip.Prefix{netip.MustParsePrefix("10.3.0.0/24"), netip.MustParsePrefix("fd00:3::/64")}) {
			t.Errorf("%s: %v, %v", text, f.net.cidrs, err)
		}
	}
	f.net.cidrs = nil
	if err := update(""); err != nil || f.net.cidrs != nil {
		t.Errorf("nothing: %v, %v", f.net.cidrs, err)
	}
	for _, text := range []string{"10.3.0.0", "x", "10.3.0.0/24,", "10.3.0.0/24,10.4.0.0/24"} {
		wantCode(t, text, update(text), codes.InvalidArgument, "runtime_config.network_config.pod_cidr: ")
	}
}
