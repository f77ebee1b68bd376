package e2e

import (
	"os"
	"path/filepath"
	"testing"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// volumes is an image that asks for volumes at /data, where it has a file, and at /new/scratch.
const volumes = "criserver/volumes:latest"

// TestVolumesThatImagesDefine has them writable whatever the root is, each container with its own, and a mount of the client in their
// place.
func TestVolumesThatImagesDefine(t *testing.T) {
	n := sharedNode(t)
	if err := n.pull(volumes); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.forget(t, image(volumes)) })
	const writes = "cat /data/seed && echo mine >/data/seed && echo new >/new/scratch/file && cat /data/seed /new/scratch/file"
	readonly := with(func(s *runtimev1.LinuxContainerSecurityContext) { s.ReadonlyRootfs = true })
	p := n.runPod(t)
	for range 2 { // the second sees nothing of the first
		c := p.run(t, fromImage(volumes), command("sleep", "1000"), readonly)
		if got := c.output(t, "sh", "-c", writes); got != "from the image\nmine\nnew\n" {
			t.Errorf("the volumes have %q", got)
		}
		if got := c.output(t, "sh", "-c", refuses(": >/etc/x")); got != "refused\n" {
			t.Errorf("the root is written to: %q", got)
		}
	}
	given := t.TempDir()
	c := p.run(t, fromImage(volumes), command("sleep", "1000"), mountAt(given, "/data"))
	c.output(t, "sh", "-c", "test ! -e /data/seed && echo >/data/theirs && echo >/new/scratch/file")
	if _, err := os.Stat(filepath.Join(given, "theirs")); err != nil {
		t.Errorf("the client's mount is not where the volume would be: %v", err)
	}
}

// TestVolumesThatImagesDefineInUser has root of a user namespace own them.
func TestVolumesThatImagesDefineInUser(t *testing.T) {
	n := sharedNode(t)
	needUser(t, n)
	if err := n.pull(volumes); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.forget(t, image(volumes)) })
	c := n.runPod(t, inUser).run(t, fromImage(volumes), command("sleep", "1000"))
	if got := c.output(t, "sh", "-c", "stat -c %u:%g /data /data/seed /new/scratch && echo mine >>/data/seed && echo >/new/scratch/file && tail -1 /data/seed"); got != "0:0\n0:0\n0:0\nmine\n" {
		t.Errorf("the volumes have %q", got)
	}
}
