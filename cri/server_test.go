package cri

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/cni"
	"github.com/criserver/criserver/engine"
	"github.com/criserver/criserver/engine/spec"
	"github.com/criserver/criserver/image"
	"github.com/criserver/criserver/shim/api"
)

func podConfig(name string) *runtime.PodSandboxConfig {
	return &runtime.PodSandboxConfig{
		Metadata: &runtime.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "u-" + name},
		Labels:   map[string]string{"app": name},
		Linux: &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER},
		}},
	}
}

func containerConfig(name string) *runtime.ContainerConfig {
	return &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: name}, Image: &runtime.ImageSpec{Image: "busybox"},
		Labels: map[string]string{"c": name},
	}
}

// running makes a pod with one running container.
func (f *front) running(t testing.TB, name string) (pod, container string) {
	t.Helper()
	p, err := f.RunPodSandbox(t.Context(), &runtime.RunPodSandboxRequest{Config: podConfig(name)})
	if err != nil {
		t.Fatal(err)
	}
	c, err := f.CreateContainer(t.Context(), &runtime.CreateContainerRequest{PodSandboxId: p.PodSandboxId, Config: containerConfig("main")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.StartContainer(t.Context(), &runtime.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
		t.Fatal(err)
	}
	return p.PodSandboxId, c.ContainerId
}

func wantCode(t *testing.T, what string, err error, code codes.Code, text string) {
	t.Helper()
	if status.Code(err) != code || !strings.Contains(status.Convert(err).Message(), text) {
		t.Errorf("%s: got %v, want %v with %q", what, err, code, text)
	}
}

func TestLifecycle(t *testing.T) {
	f := newFront(t)
	ctx := t.Context()
	pod, container := f.running(t, "web")

	c, err := f.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: container[:12], Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	s := c.GetStatus()
	if s.State != runtime.ContainerState_CONTAINER_RUNNING || s.StartedAt == 0 || s.FinishedAt != 0 || s.ImageId != "sha256:0011" ||
		s.ImageRef != "busybox@sha256:22" || s.StopSignal != runtime.Signal_SIGNAL_SIGTERM || !strings.Contains(c.Info["info"], `"runtimeSpec":{"ociVersion"`) || !strings.Contains(c.Info["info"], `{"step":"process","took":"`) {
		t.Errorf("running: %v", c)
	}
	p, err := f.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: pod, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	if p.Status.State != runtime.PodSandboxState_SANDBOX_READY || len(p.ContainersStatuses) != 1 || p.Timestamp == 0 ||
		p.Status.Linux.Namespaces.Options.Pid != runtime.NamespaceMode_CONTAINER || !strings.Contains(p.Info["info"], `"u-web"`) {
		t.Errorf("ready: %v", p)
	}
	for range 2 {
		if _, err := f.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: container, Timeout: 1}); err != nil {
			t.Fatal(err)
		}
	}
	if c, _ = f.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: container}); c.GetStatus().GetExitCode() != 143 ||
		c.GetStatus().GetState() != runtime.ContainerState_CONTAINER_EXITED || c.GetStatus().GetFinishedAt() == 0 {
		t.Errorf("stopped: %v", c)
	}
	for range 2 {
		if _, err := f.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
			t.Fatal(err)
		}
	}
	list, err := f.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
	if err != nil || len(list.Items) != 1 || list.Items[0].State != runtime.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("stopped pod: %v, %v", list, err)
	}
	for range 2 {
		if _, err := f.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
			t.Fatal(err)
		}
		if _, err := f.RemoveContainer(ctx, &runtime.RemoveContainerRequest{ContainerId: container}); err != nil {
			t.Fatal(err)
		}
	}
	_, err = f.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: container})
	wantCode(t, "a container that was removed", err, codes.NotFound, container)
}

func TestFilters(t *testing.T) {
	f := newFront(t)
	pod1, container1 := f.running(t, "one")
	_, container2 := f.running(t, "two")
	if _, err := f.StopContainer(t.Context(), &runtime.StopContainerRequest{ContainerId: container2}); err != nil {
		t.Fatal(err)
	}
	state := func(s runtime.ContainerState) *runtime.ContainerStateValue {
		return &runtime.ContainerStateValue{State: s}
	}
	for name, tt := range map[string]struct {
		filter *runtime.ContainerFilter
		want   int
	}{
		"all":           {nil, 2},
		"running":       {&runtime.ContainerFilter{State: state(runtime.ContainerState_CONTAINER_RUNNING)}, 1},
		"created":       {&runtime.ContainerFilter{State: state(runtime.ContainerState_CONTAINER_CREATED)}, 0},
		"unknown state": {&runtime.ContainerFilter{State: state(99)}, 0},
		"id":            {&runtime.ContainerFilter{Id: container1[:10]}, 1},
		"pod":           {&runtime.ContainerFilter{PodSandboxId: pod1}, 1},
		"label":         {&runtime.ContainerFilter{LabelSelector: map[string]string{"c": "main"}}, 2},
		"other label":   {&runtime.ContainerFilter{LabelSelector: map[string]string{"c": "x"}}, 0},
	} {
		list, err := f.ListContainers(t.Context(), &runtime.ListContainersRequest{Filter: tt.filter})
		if err != nil || len(list.Containers) != tt.want {
			t.Errorf("%s: %d containers, %v", name, len(list.GetContainers()), err)
		}
	}
	for name, tt := range map[string]struct {
		filter *runtime.PodSandboxFilter
		want   int
	}{
		"ready":     {&runtime.PodSandboxFilter{State: &runtime.PodSandboxStateValue{State: runtime.PodSandboxState_SANDBOX_READY}}, 2},
		"not ready": {&runtime.PodSandboxFilter{State: &runtime.PodSandboxStateValue{State: runtime.PodSandboxState_SANDBOX_NOTREADY}}, 0},
		"bad state": {&runtime.PodSandboxFilter{State: &runtime.PodSandboxStateValue{State: 9}}, 0},
		"label":     {&runtime.PodSandboxFilter{LabelSelector: map[string]string{"app": "two"}}, 1},
	} {
		list, err := f.ListPodSandbox(t.Context(), &runtime.ListPodSandboxRequest{Filter: tt.filter})
		if err != nil || len(list.Items) != tt.want {
			t.Errorf("%s: %d pods, %v", name, len(list.GetItems()), err)
		}
	}
}

func TestCodes(t *testing.T) {
	f := newFront(t)
	ctx := t.Context()
	pod, container := f.running(t, "web")

	_, err := f.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: &runtime.PodSandboxConfig{Metadata: &runtime.PodSandboxMetadata{}}})
	wantCode(t, "no name", err, codes.InvalidArgument, "config.metadata.name: required")
	_, err = f.CreateContainer(ctx, &runtime.CreateContainerRequest{PodSandboxId: "nope", Config: containerConfig("a")})
	wantCode(t, "no pod", err, codes.NotFound, "nope")
	withImage := containerConfig("a")
	withImage.Image.Image = "absent"
	_, err = f.CreateContainer(ctx, &runtime.CreateContainerRequest{PodSandboxId: pod, Config: withImage})
	wantCode(t, "no image", err, codes.NotFound, "absent")
	withCDI := containerConfig("a")
	withCDI.CDIDevices = []*runtime.CDIDevice{{Name: "v.com/c=d"}}
	_, err = f.CreateContainer(ctx, &runtime.CreateContainerRequest{PodSandboxId: pod, Config: withCDI})
	wantCode(t, "CDI", err, codes.FailedPrecondition, "CDI device v.com/c=d: CDI is turned off")
	_, err = f.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: "nope"})
	wantCode(t, "start", err, codes.NotFound, "nope")
	_, err = f.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: "nope"})
	wantCode(t, "pod status", err, codes.NotFound, "nope")
	_, err = f.Attach(ctx, &runtime.AttachRequest{})
	wantCode(t, "attach", err, codes.InvalidArgument, "container_id")

	for what, call := range map[string]func() error{
		"pod_sandbox_id StopPodSandbox":   func() error { _, err := f.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{}); return err },
		"pod_sandbox_id RemovePodSandbox": func() error { _, err := f.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{}); return err },
		"pod_sandbox_id PodSandboxStatus": func() error { _, err := f.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{}); return err },
		"pod_sandbox_id CreateContainer":  func() error { _, err := f.CreateContainer(ctx, &runtime.CreateContainerRequest{}); return err },
		"container_id StartContainer":     func() error { _, err := f.StartContainer(ctx, &runtime.StartContainerRequest{}); return err },
		"container_id StopContainer":      func() error { _, err := f.StopContainer(ctx, &runtime.StopContainerRequest{}); return err },
		"container_id RemoveContainer":    func() error { _, err := f.RemoveContainer(ctx, &runtime.RemoveContainerRequest{}); return err },
		"container_id ContainerStatus":    func() error { _, err := f.ContainerStatus(ctx, &runtime.ContainerStatusRequest{}); return err },
		"container_id ReopenContainerLog": func() error { _, err := f.ReopenContainerLog(ctx, &runtime.ReopenContainerLogRequest{}); return err },
		"container_id Update": func() error {
			_, err := f.UpdateContainerResources(ctx, &runtime.UpdateContainerResourcesRequest{})
			return err
		},
		"container_id ExecSync": func() error { _, err := f.ExecSync(ctx, &runtime.ExecSyncRequest{}); return err },
		"cmd ExecSync":          func() error { _, err := f.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: container}); return err },
		"timeout ExecSync": func() error {
			_, err := f.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: container, Cmd: []string{"a"}, Timeout: -1})
			return err
		},
		"image.image PullImage":   func() error { _, err := f.images.PullImage(ctx, &runtime.PullImageRequest{}); return err },
		"image.image ImageStatus": func() error { _, err := f.images.ImageStatus(ctx, &runtime.ImageStatusRequest{}); return err },
		"image.image RemoveImage": func() error { _, err := f.images.RemoveImage(ctx, &runtime.RemoveImageRequest{}); return err },
	} {
		field, _, _ := strings.Cut(what, " ")
		wantCode(t, what, call(), codes.InvalidArgument, field+": ")
	}
}

func TestExecSync(t *testing.T) {
	f := newFront(t)
	_, container := f.running(t, "web")
	f.shims.exec = func(r *api.ExecRequest, output func(stdout, stderr []byte)) (*api.ExecResponse, error) {
		output([]byte("out"), nil)
		output(nil, []byte("err"))
		return &api.ExecResponse{Done: true, ExitCode: 7}, nil
	}
	request := &runtime.ExecSyncRequest{ContainerId: container, Cmd: []string{"echo"}, Timeout: 2}
	r, err := f.ExecSync(t.Context(), request)
	if err != nil || string(r.Stdout) != "out" || string(r.Stderr) != "err" || r.ExitCode != 7 {
		t.Errorf("got %v, %v", r, err)
	}
	f.shims.exec = func(r *api.ExecRequest, _ func(stdout, stderr []byte)) (*api.ExecResponse, error) {
		if r.TimeoutNs != int64(2*time.Second) {
			t.Errorf("timeout %d", r.TimeoutNs)
		}
		return &api.ExecResponse{Done: true, TimedOut: true, ExitCode: 137}, nil
	}
	_, err = f.ExecSync(t.Context(), request)
	wantCode(t, "a command that is too slow", err, codes.DeadlineExceeded, "")

	// Both outputs at their limit must still fit in what a client takes.
	f.shims.exec = func(r *api.ExecRequest, output func(stdout, stderr []byte)) (*api.ExecResponse, error) {
		output(make([]byte, r.OutputLimit), nil)
		output(nil, make([]byte, r.OutputLimit))
		return &api.ExecResponse{Done: true}, nil
	}
	if r, err = f.ExecSync(t.Context(), request); err != nil || len(r.Stdout)+len(r.Stderr) != execAnswer {
		t.Errorf("got %d and %d bytes, %v", len(r.GetStdout()), len(r.GetStderr()), err)
	}
}

func TestFit(t *testing.T) {
	for _, tt := range []struct{ a, b, wantA, wantB int }{
		{3, 4, 3, 4}, {10, 0, 10, 0}, {20, 0, 10, 0}, {0, 20, 0, 10}, {20, 20, 5, 5}, {2, 20, 2, 8}, {20, 2, 8, 2},
	} {
		a, b := fit(make([]byte, tt.a), make([]byte, tt.b), 10)
		if len(a) != tt.wantA || len(b) != tt.wantB {
			t.Errorf("fit(%d, %d) gives %d, %d", tt.a, tt.b, len(a), len(b))
		}
	}
}

func TestStatus(t *testing.T) {
	f := newFront(t)
	v, err := f.Version(t.Context(), &runtime.VersionRequest{})
	if err != nil || v.RuntimeName != "criserver" || v.RuntimeVersion != "1.2.3" || v.RuntimeApiVersion != "v1" {
		t.Errorf("version %v, %v", v, err)
	}
	s, err := f.Status(t.Context(), &runtime.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	for i, kind := range []string{"RuntimeReady", "NetworkReady"} {
		if c := s.Status.Conditions[i]; c.Type != kind || !c.Status {
			t.Errorf("condition %v", c)
		}
	}
	if s.Info["config"] != `{"a":1}` || len(s.RuntimeHandlers) != 2 || !s.Features.SupplementalGroupsPolicy {
		t.Errorf("status %v", s)
	}
	f.net.notReady = errors.New("no configuration in /etc/cni/net.d")
	if s, err = f.Status(t.Context(), &runtime.StatusRequest{}); err != nil {
		t.Fatal(err)
	}
	if c := s.Status.Conditions[1]; c.Status || c.Reason != "NetworkNotReady" || !strings.Contains(c.Message, "/etc/cni/net.d") || s.Info != nil {
		t.Errorf("status %v", s)
	}
	r, err := f.RuntimeConfig(t.Context(), &runtime.RuntimeConfigRequest{})
	if err != nil || r.Linux.CgroupDriver != runtime.CgroupDriver_CGROUPFS {
		t.Errorf("runtime config %v, %v", r, err)
	}
}

func TestImages(t *testing.T) {
	f := newFront(t)
	s, err := f.images.ImageStatus(t.Context(), &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: "absent:1"}})
	if err != nil || s.Image != nil {
		t.Errorf("an absent image: %v, %v", s, err)
	}
	l, err := f.images.ListImages(t.Context(), &runtime.ListImagesRequest{Filter: &runtime.ImageFilter{Image: &runtime.ImageSpec{Image: "absent:1"}}})
	if err != nil || len(l.Images) != 0 {
		t.Errorf("an absent image: %v, %v", l, err)
	}
	if _, err := f.images.RemoveImage(t.Context(), &runtime.RemoveImageRequest{Image: &runtime.ImageSpec{Image: "absent:1"}}); err != nil {
		t.Error(err)
	}
	i, err := f.images.ImageFsInfo(t.Context(), &runtime.ImageFsInfoRequest{})
	if err != nil || len(i.ImageFilesystems) != 1 || i.ImageFilesystems[0].Timestamp == 0 || i.ImageFilesystems[0].FsId.Mountpoint == "" {
		t.Errorf("filesystem %v, %v", i, err)
	}
}

func TestMissingSource(t *testing.T) {
	f := newFront(t)
	pod, _ := f.running(t, "web")
	dir := t.TempDir()
	config := containerConfig("mounted")
	config.Mounts = []*runtime.Mount{{HostPath: filepath.Join(dir, "a/b"), ContainerPath: "/data"}}
	if _, err := f.CreateContainer(t.Context(), &runtime.CreateContainerRequest{PodSandboxId: pod, Config: config}); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, "a/b")); err != nil || !info.IsDir() {
		t.Errorf("the source was not made: %v", err)
	}
	if err := makeSources(t.Context(), []spec.Mount{{Source: "/proc/self/no/such", Target: "/x"}}); err == nil || !strings.Contains(err.Error(), "/x") {
		t.Errorf("a source that cannot be made gives %v", err)
	}
}

func TestDrain(t *testing.T) {
	f := newFront(t)
	f.running(t, "one")
	f.running(t, "two")
	var lines []string
	if err := Drain(t.Context(), f.conn, 2*time.Second, func(line string) { lines = append(lines, line) }); err != nil {
		t.Fatal(err)
	}
	if text := strings.Join(lines, "\n"); len(lines) != 4 || !strings.Contains(text, "(main)") || !strings.Contains(text, "(default/two)") {
		t.Errorf("reported %q", lines)
	}
	list, err := f.ListPodSandbox(t.Context(), &runtime.ListPodSandboxRequest{})
	if err != nil || len(list.Items) != 2 {
		t.Fatalf("pods %v, %v", list, err)
	}
	for _, pod := range list.Items {
		if pod.State != runtime.PodSandboxState_SANDBOX_NOTREADY {
			t.Errorf("not drained: %v", pod)
		}
	}
}

func TestStatusOf(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want codes.Code
	}{
		{nil, codes.OK},
		{fmt.Errorf("a: %w", errdefs.ErrNotFound), codes.NotFound},
		{fmt.Errorf("a: %w", errdefs.ErrUnavailable), codes.Unavailable},
		{fmt.Errorf("a: %w", errdefs.ErrFailedPrecondition), codes.FailedPrecondition},
		{fmt.Errorf("a: %w", context.DeadlineExceeded), codes.DeadlineExceeded},
		{fmt.Errorf("a: %w", context.Canceled), codes.Canceled},
		{status.Error(codes.Aborted, "a"), codes.Aborted},
		{errors.New("a"), codes.Internal},
		{required("a"), codes.InvalidArgument},
		{&fieldError{"a", "bs", errdefs.ErrNotImplemented}, codes.Unimplemented},
	} {
		if got := status.Code(statusOf(tt.err)); got != tt.want {
			t.Errorf("%v is %v, want %v", tt.err, got, tt.want)
		}
	}
}

func TestGoldenAnswers(t *testing.T) {
	when := time.Unix(1700000000, 5)
	pod := engine.PodStatus{
		Pod: spec.Pod{
			ID: "pod1", Name: "web", Namespace: "shop", UID: "0b1c", Attempt: 2, Labels: map[string]string{"a": "b"},
			Annotations: map[string]string{"c": "d"}, Handler: "native",
			Security: spec.Security{Namespaces: spec.Namespaces{Network: spec.ModePod, PID: spec.ModeContainer, IPC: spec.ModeNode}},
		},
		State: engine.PodReady, CreatedAt: when,
		Network: cni.Result{IPs: []netip.Addr{netip.MustParseAddr("10.88.0.7"), netip.MustParseAddr("fd88::7")}},
	}
	container := engine.ContainerStatus{
		Container: spec.Container{
			ID: "c1", PodID: "pod1", Name: "main", Attempt: 3, Image: "sha256:0011", UserImage: "busybox:1", ImageID: "sha256:0011",
			ImageRef: "busybox@sha256:22", Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"c": "d"},
			Mounts: []spec.Mount{{Source: "/a", Target: "/b", Readonly: true, Propagation: "rslave", Options: []string{"noexec"}}},
			Resources: spec.Resources{
				CPUShares: 2, CPUPeriod: 3, CPUQuota: 4, Memory: 5, MemorySwap: 6, OOMScoreAdj: 7, CPUs: "0", Mems: "1",
				HugepageLimit: map[string]uint64{"2MB": 8, "1GB": 9}, Unified: map[string]string{"memory.high": "5"},
			},
		},
		State: engine.ContainerExited, CreatedAt: when, StartedAt: when.Add(1), FinishedAt: when.Add(2), ExitCode: 137,
		Reason: engine.ReasonOOMKilled, Message: "why", LogPath: "/var/log/x", StopSignal: "SIGRTMIN+3",
		User: spec.User{UID: 1, GID: 2, AdditionalGIDs: []uint32{2, 3}},
	}
	uid := int64(1002)
	golden(t, "answers.json", map[string]any{
		"podItem": podItem(&engine.PodItem{
			ID: "pod1", Name: "web", Namespace: "shop", UID: "0b1c", Attempt: 2, Labels: pod.Pod.Labels, Annotations: pod.Pod.Annotations,
			Handler: "native", State: engine.PodReady, CreatedAt: when,
		}),
		"podStatus": podStatus(pod),
		"containerItem": containerItem(&engine.ContainerItem{
			ID: "c1", PodID: "pod1", Name: "main", Attempt: 3, Image: "sha256:0011", UserImage: "busybox:1", ImageID: "sha256:0011",
			ImageRef: "busybox@sha256:22", Labels: container.Container.Labels, Annotations: container.Container.Annotations,
			State: engine.ContainerExited, CreatedAt: when,
		}),
		"containerStatus": containerStatus(container),
		"imageByUID":      criImage(image.Image{ID: "sha256:1", RepoTags: []string{"a:1"}, RepoDigests: []string{"a@sha256:2"}, Size: 3, UID: &uid, Pinned: true}),
		"imageByName":     criImage(image.Image{ID: "sha256:1", Username: "www-data"}),
	})
}

func TestFitKeepsContent(t *testing.T) {
	a, b := fit([]byte("abcdef"), []byte("uvwxyz"), 6)
	if !bytes.Equal(a, []byte("abc")) || !bytes.Equal(b, []byte("uvw")) {
		t.Errorf("got %q, %q", a, b)
	}
}
