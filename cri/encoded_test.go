package cri

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/engine"
)

// TestWithItems compares what is sent with what the response would be with the items in its field.
func TestWithItems(t *testing.T) {
	containers := []*engine.ContainerItem{
		{ID: "a", PodID: "p", Name: "main", Image: "i", UserImage: "u", ImageID: "sha256:1", ImageRef: "r@sha256:2", State: engine.ContainerRunning,
			Labels: map[string]string{"k": "v"}, Annotations: map[string]string{"a": "b"}},
		{},
		{ID: "b", Attempt: 7, State: engine.ContainerUnknown, Labels: map[string]string{"long": string(make([]byte, 300))}},
	}
	pods := []*engine.PodItem{{ID: "p", Name: "n", Namespace: "ns", UID: "u", Attempt: 1, State: engine.PodReady, Handler: "runc",
		Labels: map[string]string{"k": "v"}}, {}}
	var encoded [][]byte
	wantContainers, wantPods := &runtime.ListContainersResponse{}, &runtime.ListPodSandboxResponse{}
	for _, c := range containers {
		encoded = append(encoded, mustEncode(t, func() ([]byte, error) { return encodeContainer(c) }))
		wantContainers.Containers = append(wantContainers.Containers, containerItem(c))
	}
	sameOnWire(t, withItems(&runtime.ListContainersResponse{}, encoded), wantContainers)
	sameOnWire(t, withItems(&runtime.StreamContainersResponse{}, encoded), &runtime.StreamContainersResponse{Containers: wantContainers.Containers})
	encoded = nil
	for _, p := range pods {
		encoded = append(encoded, mustEncode(t, func() ([]byte, error) { return encodePod(p) }))
		wantPods.Items = append(wantPods.Items, podItem(p))
	}
	sameOnWire(t, withItems(&runtime.ListPodSandboxResponse{}, encoded), wantPods)
	sameOnWire(t, withItems(&runtime.StreamPodSandboxesResponse{}, encoded), &runtime.StreamPodSandboxesResponse{PodSandboxes: wantPods.Items})
	sameOnWire(t, withItems(&runtime.ListPodSandboxResponse{}, nil), &runtime.ListPodSandboxResponse{})
	if _, err := encodeItem(&runtime.Container{Id: "\xff"}); err == nil {
		t.Error("an id that is not UTF-8 was encoded")
	}
}

func mustEncode(t *testing.T, encode func() ([]byte, error)) []byte {
	t.Helper()
	data, err := encode()
	if err != nil {
		t.Fatal(err)
	}
	if len(data) != cap(data) {
		t.Errorf("an item of %d bytes is kept in %d", len(data), cap(data))
	}
	return data
}

// sameOnWire wants the same bytes; maps here have one entry at most, as theirs come in any order.
func sameOnWire(t *testing.T, got, want proto.Message) {
	t.Helper()
	a, err := proto.Marshal(got)
	b, err2 := proto.Marshal(want)
	if err != nil || err2 != nil || string(a) != string(b) {
		t.Errorf("%T: %x, want %x (%v, %v)", got, a, b, err, err2)
	}
}

// TestListsFollow has a list asked for between all changes: what is kept of an item must never outlive them.
func TestListsFollow(t *testing.T) {
	f := newFront(t)
	ctx := t.Context()
	check := func(when string, want ...string) {
		t.Helper()
		for range 2 { // the second is answered with what was kept
			pods, err := f.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
			if err != nil {
				t.Fatal(err)
			}
			containers, err := f.ListContainers(ctx, &runtime.ListContainersRequest{})
			if err != nil {
				t.Fatal(err)
			}
			got := []string{}
			for _, p := range pods.Items {
				got = append(got, fmt.Sprint(p.Metadata.Name, " ", p.State))
			}
			for _, c := range containers.Containers {
				got = append(got, fmt.Sprint(c.Metadata.Name, " ", c.State))
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s: %q, want %q", when, got, want)
			}
		}
	}
	check("nothing")
	config := podConfig("web")
	p, err := f.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	name := config.Metadata.Name
	check("pod", name+" SANDBOX_READY")
	c, err := f.CreateContainer(ctx, &runtime.CreateContainerRequest{PodSandboxId: p.PodSandboxId, Config: containerConfig("main")})
	if err != nil {
		t.Fatal(err)
	}
	check("created", name+" SANDBOX_READY", "main CONTAINER_CREATED")
	if _, err := f.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
		t.Fatal(err)
	}
	check("started", name+" SANDBOX_READY", "main CONTAINER_RUNNING")
	if _, err := f.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: c.ContainerId}); err != nil {
		t.Fatal(err)
	}
	check("ended", name+" SANDBOX_READY", "main CONTAINER_EXITED")
	if _, err := f.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: p.PodSandboxId}); err != nil {
		t.Fatal(err)
	}
	check("stopped", name+" SANDBOX_NOTREADY", "main CONTAINER_EXITED")
	if _, err := f.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: p.PodSandboxId}); err != nil {
		t.Fatal(err)
	}
	check("removed")
}
