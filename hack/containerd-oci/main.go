// Command containerd-oci runs a pod by a containerd that takes criserver-oci for its runc: by io.containerd.runc.v2 with
// BinaryName. It makes a place of its own, as the end-to-end tests do, and leaves nothing.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/test/e2e/rig"
)

const (
	stepTimeout  = time.Minute
	readyTimeout = 30 * time.Second
)

func main() {
	bin := flag.String("bin", "hack/cache/bin", "`directory` of containerd, containerd-shim-runc-v2 and crictl")
	oci := flag.String("oci", "bin/criserver-oci", "the OCI runtime, a `program`")
	flag.Parse()
	for _, p := range []*string{bin, oci} {
		if absolute, err := filepath.Abs(*p); err == nil {
			*p = absolute
		}
	}
	place := rig.Isolate()
	if err := run(context.Background(), place, *bin, *oci); err != nil {
		fmt.Fprintf(os.Stderr, "containerd-oci: %v\n", err)
		os.Exit(1)
	}
}

// walk is the state of the run.
type walk struct {
	dir, bin, oci, root string
	parent              string // of the pod's cgroup
	image               string
	pod, container      string
}

func run(ctx context.Context, place *rig.Place, bin, oci string) (err error) {
	registry, err := place.StartRegistry()
	if err != nil {
		return err
	}
	// The shims' sockets have a fixed place. This mount is the rig's alone.
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	w := &walk{dir: filepath.Join(place.Dir, "c"), bin: bin, oci: oci, parent: place.CgroupParent, image: registry + "/e2e-test-images/busybox:1.29-2"}
	w.root = filepath.Join(w.dir, "oci")
	if err := w.write(registry); err != nil {
		return err
	}
	stop, err := w.serve(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	for _, s := range w.steps() {
		if err := w.do(ctx, s); err != nil {
			return fmt.Errorf("%w\n%s", err, w.log())
		}
	}
	return nil
}

// write writes the configurations of containerd, crictl, the pod and the container.
func (w *walk) write(registry string) error {
	if err := os.MkdirAll(filepath.Join(w.dir, "logs"), 0o755); err != nil {
		return err
	}
	config := fmt.Sprintf(`version = 3
root = %q
state = %q
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[grpc]
address = %q
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = %q
[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = "criserver"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.criserver]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.criserver.options]
BinaryName = %q
Root = %q
`, w.dir+"/root", w.dir+"/state", w.socket(), registry+"/pause:3.10", w.oci, w.root)
	endpoint := "unix://" + w.socket()
	files := map[string]any{
		"config.toml": config,
		"crictl.yaml": "runtime-endpoint: " + endpoint + "\nimage-endpoint: " + endpoint + "\ntimeout: 30\n",
		"pod.json": map[string]any{
			"metadata":      map[string]any{"name": "pod", "namespace": "default", "uid": "0001", "attempt": 0},
			"log_directory": filepath.Join(w.dir, "logs"),
			"linux": map[string]any{
				"cgroup_parent":    w.parent + "/pod",
				"security_context": map[string]any{"namespace_options": map[string]any{"network": 2, "pid": 1}},
			},
		},
		"container.json": map[string]any{
			"metadata": map[string]any{"name": "main", "attempt": 0},
			"image":    map[string]any{"image": w.image},
			"command":  []string{"sh", "-c", "echo started; trap 'exit 3' TERM; while :; do sleep 0.1; done"},
			"log_path": "main.log",
			"linux": map[string]any{
				"resources":        map[string]any{"memory_limit_in_bytes": 64 << 20, "cpu_shares": 512},
				"security_context": map[string]any{"run_as_user": map[string]any{"value": 1000}, "no_new_privs": true, "namespace_options": map[string]any{"network": 2, "pid": 1}},
			},
		},
	}
	for name, content := range files {
		b, ok := content.(string)
		if !ok {
			j, err := json.Marshal(content)
			if err != nil {
				return err
			}
			b = string(j)
		}
		if err := os.WriteFile(filepath.Join(w.dir, name), []byte(b), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (w *walk) socket() string { return filepath.Join(w.dir, "containerd.sock") }

func (w *walk) log() string {
	b, _ := os.ReadFile(filepath.Join(w.dir, "log"))
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// serve starts containerd. stop ends it.
func (w *walk) serve(ctx context.Context) (stop func() error, err error) {
	log, err := os.Create(filepath.Join(w.dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(w.bin, "containerd"), "--config", filepath.Join(w.dir, "config.toml"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = []string{"PATH=" + w.bin + ":/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + w.dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stop = func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		return cmd.Wait()
	}
	for deadline := time.Now().Add(readyTimeout); ; time.Sleep(100 * time.Millisecond) {
		if _, err := w.crictl(ctx, "version"); err == nil {
			return stop, nil
		} else if time.Now().After(deadline) {
			return nil, errors.Join(fmt.Errorf("containerd does not answer: %w\n%s", err, w.log()), stop())
		}
	}
}

func (w *walk) crictl(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(w.bin, "crictl"), append([]string{"--config", filepath.Join(w.dir, "crictl.yaml")}, args...)...)
	cmd.Dir = w.dir
	cmd.Env = []string{"HOME=" + w.dir, "PATH=/usr/bin:/bin"}
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return out.String() + stderr.String(), fmt.Errorf("crictl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return out.String(), nil
}
