package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// tool runs a program and answers what it prints.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s (hack/ci/prepare installs it)", name, strings.Join(args, " "), err, out, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// image runs criserver image.
func (n *node) image(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), filepath.Join(place.BinDir, "criserver"), append([]string{"image", args[0], "--config", n.d.Config}, args[1:]...)...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("criserver image %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimSpace(string(out)), err
}

func (n *node) mustImage(t *testing.T, args ...string) string {
	t.Helper()
	out, err := n.image(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// foreignRegistry is Debian's registry on loopback, for as long as the test runs.
func foreignRegistry(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := listener.Addr().String()
	listener.Close()
	dir := t.TempDir()
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %q}}\nhttp: {addr: %q}\n", filepath.Join(dir, "data"), addr)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.Command("docker-registry", "serve", config)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v (hack/ci/prepare installs it)", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		response, err := http.Get("http://" + addr + "/v2/")
		if err == nil {
			response.Body.Close()
			return addr
		}
		if time.Now().After(deadline) {
			t.Fatalf("the registry does not answer: %v\n%s", err, log.String())
		}
	}
}

// manifest is what a registry has under a name, byte for byte.
func manifest(t *testing.T, host, repository, reference string) string {
	t.Helper()
	request, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+host+"/v2/"+repository+"/manifests/"+reference, nil)
	for _, accept := range []string{"oci.image.index.v1", "oci.image.manifest.v1", "docker.distribution.manifest.v2", "docker.distribution.manifest.list.v2"} {
		request.Header.Add("Accept", "application/vnd."+accept+"+json")
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("manifest %s of %s: %s %v", reference, repository, response.Status, err)
	}
	return string(data)
}

// sees runs a container of an image and compares what it prints.
func (n *node) sees(t *testing.T, ref string) {
	t.Helper()
	p := n.runPod(t)
	c := p.run(t, command("sleep", "1000"), func(c *runtimev1.ContainerConfig) { c.Image.Image = ref })
	if got := c.output(t, "echo", "it runs"); got != "it runs\n" {
		t.Errorf("a container of %s says %q", ref, got)
	}
	if err := p.down(); err != nil {
		t.Fatal(err)
	}
}

// TestImagesTravel sends an image to a registry and into archives, and has skopeo read all of them and write others.
func TestImagesTravel(t *testing.T) {
	if testing.Short() {
		t.Skip("it needs programs of Debian's that a virtual machine has not")
	}
	n := ownNode(t)
	host, dir := foreignRegistry(t), t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	if err := n.pull(layered); err != nil {
		t.Fatal(err)
	}
	origin, tag, _ := strings.Cut(layered, ":")
	original := manifest(t, registry, origin, tag)
	ours := host + "/ours/app:1"
	n.mustImage(t, "tag", image(layered), ours)

	var mounted struct {
		Result struct{ Mounted, Uploaded int }
	}
	pushed := n.mustImage(t, "push", ours)
	if got := manifest(t, host, "ours/app", "1"); got != original {
		t.Errorf("the registry has\n%s\nthe origin\n%s", got, original)
	}
	last := n.mustImage(t, "push", "--json", ours, host+"/ours/mounted:1")
	if err := json.Unmarshal([]byte(last[strings.LastIndexByte(last, '\n')+1:]), &mounted); err != nil || mounted.Result.Mounted == 0 || mounted.Result.Uploaded != 1 {
		t.Errorf("pushed to a second repository: %s, %v", last, err)
	}

	insecure := []string{"copy", "--quiet", "--insecure-policy", "--src-tls-verify=false", "--dest-tls-verify=false"}
	skopeo := func(args ...string) {
		t.Helper()
		tool(t, "skopeo", append(insecure[:len(insecure):len(insecure)], args...)...)
	}
	skopeo("docker://"+ours, "docker://"+host+"/skopeo/app:1")
	if got := manifest(t, host, "skopeo/app", "1"); got != original {
		t.Errorf("after skopeo the registry has\n%s", got)
	}
	id := strings.Fields(n.mustImage(t, "pull", host+"/skopeo/app:1"))[0]
	skopeo("docker://"+ours, "oci:"+file("layout")+":2")
	skopeo("docker://"+ours, "oci-archive:"+file("layout.tar")+":3")
	skopeo("docker://"+ours, "docker-archive:"+file("saved.tar")+":example.com/saved:4")

	n.mustImage(t, "export", "--docker", "--output", file("ours.tar"), ours)
	skopeo("docker-archive:"+file("ours.tar"), "dir:"+file("from-docker-archive"))
	skopeo("oci-archive:"+file("ours.tar"), "docker://"+host+"/exported/app:1")
	if got := manifest(t, host, "exported/app", "1"); got != original {
		t.Errorf("after an export the registry has\n%s", got)
	}

	for _, ref := range []string{ours, image(layered), host + "/skopeo/app:1"} {
		if _, err := n.image(t, "untag", ref); err != nil {
			t.Error(err)
		}
	}
	if _, err := n.d.Images.RemoveImage(t.Context(), &runtimev1.RemoveImageRequest{Image: &runtimev1.ImageSpec{Image: id}}); err != nil {
		t.Fatal(err)
	}
	for _, one := range []struct{ name, archive, as string }{
		{"", "saved.tar", "example.com/saved:4"}, {"example.com/layout", "layout", "example.com/layout:2"},
		{"example.com/tar", "layout.tar", "example.com/tar:3"}, {"", "ours.tar", ours},
	} {
		out := n.mustImage(t, "import", "--name="+one.name, file(one.archive))
		if got := strings.Fields(out); len(got) != 2 || got[0] != id || got[1] != one.as {
			t.Errorf("import of %s: %s; want %s %s", one.archive, out, id, one.as)
		}
		n.sees(t, one.as)
	}
	if !strings.Contains(pushed, "/ours/app:1@sha256:") {
		t.Errorf("push says %q", pushed)
	}
	if _, err := n.image(t, "import", "/etc/passwd"); err == nil || !strings.Contains(err.Error(), "not a tar") || !strings.Contains(err.Error(), "InvalidArgument") {
		t.Errorf("import of no archive: %v", err)
	}
	if _, err := n.image(t, "push", ours, host+"/UPPER:1"); err == nil || !strings.Contains(err.Error(), "InvalidArgument") {
		t.Errorf("push to no name: %v", err)
	}
	n.damage(t)
	for _, ref := range []string{"example.com/saved:4", "example.com/layout:2", "example.com/tar:3", ours} {
		n.mustImage(t, "untag", ref)
	}
}

// damage spoils a layer beneath a container that runs, and has it found and mended.
func (n *node) damage(t *testing.T) {
	t.Helper()
	ref := "example.com/saved:4"
	p := n.runPod(t)
	running := p.run(t, command("sleep", "1000"), func(c *runtimev1.ContainerConfig) { c.Image.Image = ref })
	found, err := filepath.Glob(filepath.Join(n.d.RootDir, "snapshots/layers/*/marker"))
	if err != nil || len(found) == 0 {
		t.Fatalf("no layer has /marker: %v", err)
	}
	if err := os.WriteFile(found[0], []byte("spoilt"), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := n.image(t, "check")
	if err == nil || !strings.Contains(out, "broken: layer sha256:") || !strings.Contains(out, "/marker") {
		t.Errorf("check: %s, %v", out, err)
	}
	if out = n.mustImage(t, "check", "--repair", ref); !strings.Contains(out, "repaired: layer sha256:") {
		t.Errorf("check --repair: %s", out)
	}
	if out = n.mustImage(t, "check"); !strings.Contains(out, " 0 broken") {
		t.Errorf("check: %s", out)
	}
	if got := running.output(t, "cat", "/marker"); !strings.Contains(got, "spoilt") {
		t.Errorf("the running container sees %q", got)
	}
	next := p.run(t, command("sleep", "1000"), func(c *runtimev1.ContainerConfig) { c.Image.Image = ref })
	if got := next.output(t, "cat", "/marker"); strings.Contains(got, "spoilt") {
		t.Errorf("the next container sees %q", got)
	}
	if err := p.down(); err != nil {
		t.Fatal(err)
	}
}
