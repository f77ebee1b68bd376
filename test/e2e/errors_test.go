package e2e

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestUnknown asks for what is not there: removal is no error, everything else is NotFound and names it.
func TestUnknown(t *testing.T) {
	n := sharedNode(t)
	const id = "ffffffffffff"
	r, i := n.d.Runtime, n.d.Images
	for name, call := range map[string]func(context.Context) error{
		"PodSandboxStatus": func(ctx context.Context) error {
			_, err := r.PodSandboxStatus(ctx, &runtimev1.PodSandboxStatusRequest{PodSandboxId: id})
			return err
		},
		"ContainerStatus": func(ctx context.Context) error {
			_, err := r.ContainerStatus(ctx, &runtimev1.ContainerStatusRequest{ContainerId: id})
			return err
		},
		"StartContainer": func(ctx context.Context) error {
			_, err := r.StartContainer(ctx, &runtimev1.StartContainerRequest{ContainerId: id})
			return err
		},
		"ExecSync": func(ctx context.Context) error {
			_, err := r.ExecSync(ctx, &runtimev1.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
			return err
		},
		"ReopenContainerLog": func(ctx context.Context) error {
			_, err := r.ReopenContainerLog(ctx, &runtimev1.ReopenContainerLogRequest{ContainerId: id})
			return err
		},
		"CreateContainer": func(ctx context.Context) error {
			_, err := (&pod{n: n, id: id, config: podConfig(t, n)}).tryCreate()
			return err
		},
	} {
		t.Run(name, func(t *testing.T) { wantCode(t, call(t.Context()), codes.NotFound, id) })
	}
	for name, call := range map[string]func(context.Context) error{
		"StopPodSandbox": func(ctx context.Context) error {
			_, err := r.StopPodSandbox(ctx, &runtimev1.StopPodSandboxRequest{PodSandboxId: id})
			return err
		},
		"RemovePodSandbox": func(ctx context.Context) error {
			_, err := r.RemovePodSandbox(ctx, &runtimev1.RemovePodSandboxRequest{PodSandboxId: id})
			return err
		},
		"StopContainer": func(ctx context.Context) error {
			_, err := r.StopContainer(ctx, &runtimev1.StopContainerRequest{ContainerId: id})
			return err
		},
		"RemoveContainer": func(ctx context.Context) error {
			_, err := r.RemoveContainer(ctx, &runtimev1.RemoveContainerRequest{ContainerId: id})
			return err
		},
		"RemoveImage": func(ctx context.Context) error {
			_, err := i.RemoveImage(ctx, &runtimev1.RemoveImageRequest{Image: &runtimev1.ImageSpec{Image: image("no/such:image")}})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := call(t.Context()); err != nil {
				t.Errorf("%v, want no error: api.proto says that it is idempotent", err)
			}
		})
	}
	resp, err := i.ImageStatus(t.Context(), &runtimev1.ImageStatusRequest{Image: &runtimev1.ImageSpec{Image: image("no/such:image")}})
	if err != nil || resp.Image != nil {
		t.Errorf("ImageStatus: %v, %v, want no image and no error", resp, err)
	}
}

// TestInvalid sends requests that are wrong in one field, which the error names.
func TestInvalid(t *testing.T) {
	n := sharedNode(t)
	for field, change := range map[string]podOption{
		"metadata": func(c *runtimev1.PodSandboxConfig) { c.Metadata = nil },
		"name":     func(c *runtimev1.PodSandboxConfig) { c.Metadata.Name = "" },
		"sysctls":  func(c *runtimev1.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"../x": "1"} },
	} {
		t.Run("pod "+field, func(t *testing.T) {
			p, err := n.tryPod(t, change)
			if err == nil {
				_ = p.down()
			}
			wantCode(t, err, codes.InvalidArgument, field)
		})
	}
	p := n.runPod(t, hostNetwork)
	for field, change := range map[string]containerOption{
		"metadata": func(c *runtimev1.ContainerConfig) { c.Metadata = nil },
		"image":    func(c *runtimev1.ContainerConfig) { c.Image = nil },
		"mounts":   func(c *runtimev1.ContainerConfig) { c.Mounts = []*runtimev1.Mount{{HostPath: "/tmp"}} },
	} {
		t.Run("container "+field, func(t *testing.T) {
			_, err := p.tryCreate(change)
			wantCode(t, err, codes.InvalidArgument, field)
		})
	}
	t.Run("no such image", func(t *testing.T) {
		_, err := p.tryCreate(func(c *runtimev1.ContainerConfig) { c.Image.Image = image("not/pulled:yet") })
		wantCode(t, err, codes.NotFound, "not/pulled")
	})
	t.Run("no such command", func(t *testing.T) {
		c := p.create(t, command("/no/such/command"))
		if err := c.tryStart(); err == nil || !strings.Contains(err.Error(), "/no/such/command") {
			t.Errorf("StartContainer: %v, want an error that names the command", err)
		}
		c.remove(t)
	})
	t.Run("exec of no such command", func(t *testing.T) {
		c := p.run(t, command("sleep", "1000"))
		r, err := c.exec(t.Context(), 0, "/no/such/command")
		if err == nil && r.code == 0 {
			t.Errorf("ExecSync: %+v, want an error or a code", r)
		}
		c.stop(t, 0)
		c.remove(t)
	})
	t.Run("pull of no such image", func(t *testing.T) {
		err := n.pull("no/such:image")
		if err == nil || !strings.Contains(err.Error(), "no/such") {
			t.Errorf("PullImage: %v, want an error that names the image", err)
		}
	})
}

// TestStopped asserts that a stopped pod takes no new container, and that stopping and removing may be repeated.
func TestStopped(t *testing.T) {
	n := sharedNode(t)
	p := n.runPod(t)
	c := p.run(t, command("sleep", "1000"))
	ctx, cancel := callContext()
	defer cancel()
	for range 2 {
		if _, err := n.d.Runtime.StopPodSandbox(ctx, &runtimev1.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
			t.Fatalf("StopPodSandbox: %v", err)
		}
	}
	if s := p.status(t); s.State != runtimev1.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("the pod is %v", s.State)
	}
	if s := c.status(t); s.State != runtimev1.ContainerState_CONTAINER_EXITED {
		t.Errorf("the container is %v", s.State)
	}
	_, err := p.tryCreate(command("sleep", "1000"))
	wantCode(t, err, codes.FailedPrecondition, p.id)
	for range 2 {
		if err := p.down(); err != nil {
			t.Fatal(err)
		}
	}
}
