package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func cdiDevices(names ...string) containerOption {
	return func(c *runtimev1.ContainerConfig) {
		for _, name := range names {
			c.CDIDevices = append(c.CDIDevices, &runtimev1.CDIDevice{Name: name})
		}
	}
}

func annotation(key, value string) containerOption {
	return func(c *runtimev1.ContainerConfig) {
		if c.Annotations == nil {
			c.Annotations = map[string]string{}
		}
		c.Annotations[key] = value
	}
}

// cdiNode is the common daemon with a directory of CDI files that has devices, vendor.com/toy=a and =hooked, besides a broken
// file. The directory goes with the place. Its second result is a directory that the first one mounts.
func cdiNode(t *testing.T) (n *node, share string) {
	n = sharedNode(t)
	share = t.TempDir()
	if err := os.Chmod(share, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(share, "firmware"), []byte("v7\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	node := filepath.Join(share, "toy")
	if err := unix.Mknod(node, unix.S_IFCHR|0o644, int(unix.Mkdev(1, 5))); err != nil { // zero
		t.Fatal(err)
	}
	files := map[string]string{
		"toy.yaml": fmt.Sprintf(`
cdiVersion: 0.7.0
kind: vendor.com/toy
containerEdits:
  env: [TOYS=yes]
devices:
  - name: a
    containerEdits:
      env: [TOY=a]
      deviceNodes: [{path: /dev/toy, hostPath: %[1]s/toy, permissions: r}]
      mounts: [{hostPath: %[1]s, containerPath: /opt/toy, options: [ro, nosuid, rbind]}]
      additionalGids: [4242]
  - name: hooked
    containerEdits:
      hooks:
        - hookName: createContainer
          path: %[2]s
          args: [hook, role-hook, /tmp/]
          env: [TOY=hooked]
          timeout: 10
`, share, thisProgram(t)),
		"broken.json": `{"cdiVersion": "0.6.0", `,
	}
	for name, text := range files {
		path := filepath.Join(n.d.CDIDir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Remove(path) })
	}
	return n, share
}

func TestCDIDevice(t *testing.T) {
	n, _ := cdiNode(t)
	p := n.runPod(t)
	for name, asks := range map[string]containerOption{
		"field": cdiDevices("vendor.com/toy=a"), "annotation": annotation("cdi.k8s.io/plugin_1", "vendor.com/toy=a"),
	} {
		t.Run(name, func(t *testing.T) {
			c := p.run(t, shell(`set -e
				echo "$TOYS $TOY $(cat /opt/toy/firmware) $(head -c 3 /dev/toy | wc -c)"
				id -G
				if echo x >/dev/toy; then echo written; fi
				if touch /opt/toy/x; then echo touched; fi`), asks)
			if s := c.wait(t, callTimeout); s.ExitCode != 0 {
				t.Errorf("exit code %d, stderr %q", s.ExitCode, c.logText(t, "stderr"))
			}
			got := c.logText(t, "stdout")
			if first, groups, _ := strings.Cut(got, "\n"); first != "yes a v7 3" || !strings.Contains(groups, "4242") || strings.Contains(got, "ed\n") {
				t.Errorf("the container saw %q", got)
			}
		})
	}
}

// A hook that a device brings runs in the container's mount namespace before its root is entered: paths are the host's, and
// what is mounted there would be the container's.
func TestCDIHook(t *testing.T) {
	n, share := cdiNode(t)
	out := filepath.Join(share, "out")
	if err := os.Mkdir(out, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(n.d.CDIDir, "toy.yaml")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.NewReplacer("role-hook, /tmp/", "role-hook, "+out).Replace(string(text))), 0o644); err != nil {
		t.Fatal(err)
	}
	c := n.runPod(t).run(t, shell("readlink /proc/self/ns/mnt"), cdiDevices("vendor.com/toy=hooked"))
	if s := c.wait(t, callTimeout); s.ExitCode != 0 {
		t.Fatalf("exit code %d: %s", s.ExitCode, s.Message)
	}
	state, err := os.ReadFile(filepath.Join(out, "state"))
	if err != nil || !strings.Contains(string(state), c.id) {
		t.Errorf("the hook was given %q, %v", state, err)
	}
	mnt, err := os.ReadFile(filepath.Join(out, "mnt"))
	if want := c.logText(t, "stdout") + "hooked\n"; err != nil || string(mnt) != want {
		t.Errorf("the hook saw %q, %v; want %q", mnt, err, want)
	}
}

func TestCDIUnknownDevice(t *testing.T) {
	n, _ := cdiNode(t)
	p := n.runPod(t)
	_, err := p.tryCreate(command("true"), cdiDevices("vendor.com/toy=b"))
	wantCode(t, err, codes.FailedPrecondition, "vendor.com/toy=b is described by no file in "+n.d.CDIDir)
	wantCode(t, err, codes.FailedPrecondition, "broken.json")
	_, err = p.tryCreate(command("true"), cdiDevices("toy"))
	wantCode(t, err, codes.InvalidArgument, "config.CDI_devices[0].name")

	ctx, cancel := callContext()
	defer cancel()
	s, err := n.d.Runtime.Status(ctx, &runtimev1.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var state struct {
		Devices []string
		Errors  map[string][]string
	}
	if err := json.Unmarshal([]byte(s.Info["cdi"]), &state); err != nil {
		t.Fatalf("info of a verbose Status: %v in %q", err, s.Info["cdi"])
	}
	if len(state.Devices) != 2 || len(state.Errors[filepath.Join(n.d.CDIDir, "broken.json")]) == 0 {
		t.Errorf("a verbose Status says %+v", state)
	}
}
