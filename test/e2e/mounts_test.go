package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// layered has two layers: busybox and a file of its own, /image.
const layered = "k8s-staging-cri-tools/test-image-tag:test"

// imageVolume mounts an image.
func imageVolume(name, subPath, target string) containerOption {
	return func(c *runtimev1.ContainerConfig) {
		c.Mounts = append(c.Mounts, &runtimev1.Mount{
			Image: &runtimev1.ImageSpec{Image: image(name)}, ImageSubPath: subPath, ContainerPath: target, Readonly: true,
		})
	}
}

// TestImageVolumes mounts images of one and of two layers, whole and in part, with and without a user namespace.
func TestImageVolumes(t *testing.T) {
	n := sharedNode(t)
	if err := n.pull(layered); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.removeImage(t, layered) })
	for name, options := range map[string][]podOption{"plain": nil, "user namespace": {inUser}} {
		t.Run(name, func(t *testing.T) {
			if options != nil {
				needUser(t, n)
			}
			p := n.runPod(t, options...)
			c := p.run(t, command("sleep", "1000"), imageVolume(layered, "", "/v/all"), imageVolume(layered, "etc", "/v/etc"),
				imageVolume(busybox, "etc/passwd", "/v/passwd"), imageVolume(busybox, "", "/v/one"))
			own := c.output(t, "cat", "/etc/passwd")
			for _, path := range []string{"/v/all/etc/passwd", "/v/etc/passwd", "/v/passwd", "/v/one/etc/passwd"} {
				if got := c.output(t, "cat", path); got != own {
					t.Errorf("%s reads %q", path, got)
				}
				if got := strings.TrimSpace(c.output(t, "stat", "-c", "%u:%g", path)); got != "0:0" {
					t.Errorf("%s belongs to %s", path, got)
				}
			}
			if r, err := c.exec(t.Context(), 0, "touch", "/v/all/x", "/v/one/x"); err != nil || r.code == 0 || strings.Count(r.stderr, "Read-only") != 2 {
				t.Errorf("a volume is written to: %+v, %v", r, err)
			}
			for _, m := range c.status(t).Mounts {
				if ref := m.GetImage().GetImageRef(); !strings.Contains(ref, "@sha256:") || m.HostPath != "" {
					t.Errorf("mount %v has no image_ref", m)
				}
			}
			if err := p.down(); err != nil {
				t.Error(err)
			}
		})
	}
}

func (n *node) removeImage(t testing.TB, name string) {
	t.Helper()
	ctx, cancel := callContext()
	defer cancel()
	if _, err := n.d.Images.RemoveImage(ctx, &runtimev1.RemoveImageRequest{Image: &runtimev1.ImageSpec{Image: image(name)}}); err != nil {
		t.Errorf("RemoveImage %s: %v", name, err)
	}
}

// TestImageVolumeStays removes the image, and kills the daemon, while it is mounted.
func TestImageVolumeStays(t *testing.T) {
	n := ownNode(t)
	if err := n.pull(layered); err != nil {
		t.Fatal(err)
	}
	p := n.runPod(t)
	c := p.create(t, command("sleep", "1000"), imageVolume(layered, "", "/v"))
	n.removeImage(t, layered)
	n.kill(t, killed{daemon: true})
	n.recovered(t, killed{daemon: true})
	c.start(t)
	if got := c.output(t, "ls", "/v"); !strings.Contains(got, "etc") {
		t.Errorf("the volume holds %q", got)
	}
}

func TestMountErrors(t *testing.T) {
	n := sharedNode(t)
	p := n.runPod(t)
	_, err := p.tryCreate(imageVolume(busybox, "not/there", "/v"))
	wantCode(t, err, codes.InvalidArgument, "not/there")
	_, err = p.tryCreate(imageVolume(busybox, "../../etc", "/v"))
	wantCode(t, err, codes.InvalidArgument, "image_sub_path")
	_, err = p.tryCreate(imageVolume("nothing:1", "", "/v"))
	wantCode(t, err, codes.NotFound, "nothing:1")
	_, err = p.tryCreate(imageVolume(busybox, "", "/v"), func(c *runtimev1.ContainerConfig) { c.Mounts[0].Readonly = false })
	wantCode(t, err, codes.InvalidArgument, "readonly")
}

// TestMountPropagation mounts on the node, and in the container, while it runs.
func TestMountPropagation(t *testing.T) {
	n := sharedNode(t)
	base := filepath.Join(place.Dir, "propagation")
	for _, dir := range []string{"private/sub", "slave/sub", "shared/sub"} {
		if err := os.MkdirAll(filepath.Join(base, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount(base, base, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for unix.Unmount(base, unix.MNT_DETACH) == nil {
		}
		os.RemoveAll(base)
	})
	if err := unix.Mount("", base, "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
	p := n.runPod(t, func(c *runtimev1.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	c := p.run(t, command("sleep", "1000"), func(c *runtimev1.ContainerConfig) {
		c.Linux.SecurityContext.Privileged = true
		for name, propagation := range map[string]runtimev1.MountPropagation{
			"private": runtimev1.MountPropagation_PROPAGATION_PRIVATE, "slave": runtimev1.MountPropagation_PROPAGATION_HOST_TO_CONTAINER,
			"shared": runtimev1.MountPropagation_PROPAGATION_BIDIRECTIONAL,
		} {
			c.Mounts = append(c.Mounts, &runtimev1.Mount{HostPath: filepath.Join(base, name), ContainerPath: "/" + name, Propagation: propagation})
		}
	})
	for _, name := range []string{"private", "slave", "shared"} {
		at := filepath.Join(base, name, "sub")
		if err := unix.Mount("tmpfs", at, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at+"/file", nil, 0o644); err != nil {
			t.Fatal(err)
		}
		r, err := c.exec(t.Context(), 0, "test", "-e", "/"+name+"/sub/file")
		if want := name != "private"; err != nil || (r.code == 0) != want {
			t.Errorf("%s: a mount of the node's is seen: %v, %v", name, r.code == 0, err)
		}
		r, err = c.exec(t.Context(), 0, "sh", "-c", fmt.Sprintf("mkdir /%s/own && mount -t tmpfs x /%[1]s/own && touch /%[1]s/own/file", name))
		if err != nil || r.code != 0 {
			t.Fatalf("%s: mount in the container: %+v, %v", name, r, err)
		}
		_, err = os.Stat(filepath.Join(base, name, "own/file"))
		if want := name == "shared"; (err == nil) != want {
			t.Errorf("%s: a mount of the container's is seen on the node: %v", name, err == nil)
		}
	}
}

// TestRecursiveReadonly has a mount below the one that is read-only.
func TestRecursiveReadonly(t *testing.T) {
	n := sharedNode(t)
	base := filepath.Join(place.Dir, "readonly")
	if err := os.MkdirAll(base+"/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(base)
	if err := unix.Mount("tmpfs", base+"/sub", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(base+"/sub", unix.MNT_DETACH)
	c := n.runPod(t).run(t, command("sleep", "1000"), func(c *runtimev1.ContainerConfig) {
		c.Mounts = append(c.Mounts,
			&runtimev1.Mount{HostPath: base, ContainerPath: "/ro", Readonly: true},
			&runtimev1.Mount{HostPath: base, ContainerPath: "/rro", Readonly: true, RecursiveReadOnly: true, MountOptions: []string{"noexec"}})
	})
	for path, want := range map[string]bool{"/ro/x": false, "/ro/sub/x": true, "/rro/x": false, "/rro/sub/x": false} {
		if r, err := c.exec(context.Background(), 0, "touch", path); err != nil || (r.code == 0) != want {
			t.Errorf("%s can be written to: %v, %v", path, r.code == 0, err)
		}
	}
	if got := c.output(t, "cat", "/proc/mounts"); !strings.Contains(got, " /rro ") || !strings.Contains(strings.SplitN(got[strings.Index(got, " /rro "):], "\n", 2)[0], "noexec") {
		t.Errorf("/rro is not noexec: %s", got)
	}
}
