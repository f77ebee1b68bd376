package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/internal/cgstat"
	"github.com/criserver/criserver/test/e2e/rig"
)

// stage is where subjects run side by side: a place of the rig with a registry.
type stage struct {
	*rig.Place
	registry string
	tools    string // directory of containerd, runc, crictl, and cni with the plugins
	host     *cgstat.Host
	subjects int // so far: each gets address ranges of its own
}

func newStage(place *rig.Place, tools string) (*stage, error) {
	st := &stage{Place: place, tools: tools}
	var err error
	if st.registry, err = place.StartRegistry(); err != nil {
		return nil, err
	}
	// Runtimes keep things in fixed places. These mounts are the rig's alone: /run as a tmpfs, as everywhere, and /var/lib, in
	// which plugins keep their results, on disk.
	state := filepath.Join(place.Dir, "varlib")
	if err := os.MkdirAll(state, 0o755); err != nil {
		return nil, err
	}
	if err := errors.Join(unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"), unix.Mount(state, "/var/lib", "", unix.MS_BIND, "")); err != nil {
		return nil, fmt.Errorf("mount /run and /var/lib: %w", err)
	}
	st.host, err = cgstat.Machine()
	return st, err
}

// subject makes what all subjects have, and answers with a command line prefix that puts the daemon into its cgroup.
func (st *stage) subject(name string) (*subject, []string, error) {
	st.subjects++
	s := &subject{
		name: name, cgroup: st.CgroupParent + "/" + name, host: st.host, image: st.registry + "/criserver/bench:latest",
		logs: filepath.Join(st.Dir, name+"-logs"),
	}
	root, err := accounting()
	if err != nil {
		return nil, nil, err
	}
	for _, child := range []string{"daemon", "pods"} {
		if err := os.MkdirAll(filepath.Join(root, s.cgroup, child), 0o755); err != nil {
			return nil, nil, err
		}
	}
	enter := []string{"/bin/sh", "-c", `echo 0 > "$0" && exec "$@"`, filepath.Join(root, s.cgroup, "daemon", "cgroup.procs")}
	return s, enter, nil
}

// accounting is the root of the hierarchy that counts CPU time.
func accounting() (string, error) {
	roots, err := rig.CgroupRoots()
	if err != nil {
		return "", err
	}
	for _, root := range roots {
		if _, err := os.Stat(filepath.Join(root, "cpuacct.usage")); err == nil {
			return root, nil
		}
	}
	if len(roots) == 1 {
		return roots[0], nil
	}
	return "", fmt.Errorf("none of %s counts CPU time", strings.Join(roots, ", "))
}

// ours starts criserver: network is what its table of the configuration has more.
func (st *stage) ours(ctx context.Context, name, network string) (*subject, *rig.Daemon, error) {
	s, enter, err := st.subject(name)
	if err != nil {
		return nil, nil, err
	}
	network += fmt.Sprintf("\nbridge = \"b%d-\"\npod_cidrs = [\"10.%d.0.0/16\", \"fd88:1e5a:c0de:%d::/64\"]\n", st.subjects, 100+st.subjects, st.subjects)
	d, err := st.NewDaemonWith(ctx, name, rig.Settings{
		LogLevel: "info", NetnsDir: filepath.Join(st.Dir, "run", name+"-netns"), Network: network, Wrap: enter,
	})
	if err != nil {
		return nil, nil, err
	}
	s.runtime, s.images, s.socket, s.pid = d.Runtime, d.Images, d.Socket(), d.PID
	s.log = func() string { return d.LogTail(5) }
	s.stop = d.Stop
	return s, d, s.prepare(ctx)
}

// oursWithPlugins is criserver with the stock plugins that the peer has.
func (st *stage) oursWithPlugins(ctx context.Context, name string) (*subject, error) {
	dir, err := st.conflist(name)
	if err != nil {
		return nil, err
	}
	s, _, err := st.ours(ctx, name, fmt.Sprintf("mode = \"cni\"\nconf_dir = %q\nbin_dirs = [%q]", dir, filepath.Join(st.tools, "cni")))
	return s, err
}

// conflist writes the configuration of stock plugins as a node that kubeadm made has it, into a directory of its own.
func (st *stage) conflist(name string) (string, error) {
	dir := filepath.Join(st.Dir, name+"-net.d")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	n := st.subjects + 50
	text := fmt.Sprintf(`{
  "cniVersion": "1.0.0",
  "name": %q,
  "plugins": [
    {
      "type": "bridge", "bridge": "plug%d", "isGateway": true, "ipMasq": true, "promiscMode": false,
      "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.%d.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`, name, n, 100+n)
	return dir, os.WriteFile(filepath.Join(dir, "10-"+name+".conflist"), []byte(text), 0o644)
}

// containerd starts the peer with runc. Its configuration is its default but for the places, and for oom_score_adj, which it
// leaves alone where the kernel forbids to lower it; criserver sees that by itself.
func (st *stage) containerd(ctx context.Context, name string) (*subject, error) {
	s, enter, err := st.subject(name)
	if err != nil {
		return nil, err
	}
	conflists, err := st.conflist(name)
	if err != nil {
		return nil, err
	}
	base, state := filepath.Join(st.Dir, name), filepath.Join(st.Dir, "run", name)
	for _, dir := range []string{base, state} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	s.socket = filepath.Join(state, "containerd.sock")
	config, logFile := filepath.Join(base, "config.toml"), filepath.Join(base, "log")
	text := fmt.Sprintf(`version = 3
root = %q
state = %q
disabled_plugins = ["io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[grpc]
address = %q
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = %q
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = [%q]
conf_dir = %q
[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = "runc"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = %q
`, filepath.Join(base, "root"), state, s.socket, st.registry+"/pause:3.10", filepath.Join(st.tools, "cni"), conflists, filepath.Join(st.tools, "runc"))
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return nil, err
	}
	s.log = func() string { return rig.Tail(logFile, 10) }
	cmd := exec.Command(enter[0], slices.Concat(enter[1:], []string{filepath.Join(st.tools, "containerd"), "--config", config})...)
	log, err := os.Create(logFile)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = []string{"PATH=" + st.tools + ":/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + base}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s.pid = func() int { return cmd.Process.Pid }
	s.stop = func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		return cmd.Wait()
	}
	if err := s.dial(ctx); err != nil {
		return nil, err
	}
	return s, s.prepare(ctx)
}

// dial connects to the socket as soon as something listens there.
func (s *subject) dial(ctx context.Context) error {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		conn, err := net.Dial("unix", s.socket)
		if err == nil {
			conn.Close()
			break
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return s.failed(fmt.Errorf("it does not listen: %w", err))
		}
	}
	conn, err := grpc.NewClient("unix:"+s.socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20))) // a kubelet's
	if err != nil {
		return err
	}
	s.runtime, s.images = runtimev1.NewRuntimeServiceClient(conn), runtimev1.NewImageServiceClient(conn)
	return nil
}
