package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// callTimeout bounds every call; under emulation all is slow.
const callTimeout = 60 * time.Second

// Repositories of hack/testimages.
const (
	busybox = "e2e-test-images/busybox:1.29-2"
	nginx   = "e2e-test-images/nginx:1.14-2"
)

// image is the full name of a test image.
func image(name string) string { return registry + "/" + name }

// handler is what runs the pods of all tests: our own runtime, or what E2E_HANDLER names of E2E_RUNTIMES (see package rig).
var handler = os.Getenv("E2E_HANDLER")

// useHandler makes handler another for one test.
func useHandler(t *testing.T, name string) {
	before := handler
	handler = name
	t.Cleanup(func() { handler = before })
}

// nativeOnly skips a test that asserts how our own runtime works, and not what a client is promised.
func nativeOnly(t *testing.T) {
	t.Helper()
	if handler != "" && handler != "native" {
		t.Skipf("it asserts how native works; the handler is %s", handler)
	}
}

// sequence makes names unique over all tests.
var sequence atomic.Int64

// podOption changes what a pod is asked for; containerOption the same of a container.
type (
	podOption       func(*runtimev1.PodSandboxConfig)
	containerOption func(*runtimev1.ContainerConfig)
)

// pod is a sandbox with its configuration, which CreateContainer wants to see again.
type pod struct {
	n      *node
	id     string
	config *runtimev1.PodSandboxConfig
}

func hostNetwork(c *runtimev1.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.Network = runtimev1.NamespaceMode_NODE
}

func sharedPID(c *runtimev1.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.Pid = runtimev1.NamespaceMode_POD
}

func hostPort(port *runtimev1.PortMapping) podOption {
	return func(c *runtimev1.PodSandboxConfig) { c.PortMappings = append(c.PortMappings, port) }
}

func podConfig(t testing.TB, n *node, options ...podOption) *runtimev1.PodSandboxConfig {
	number := sequence.Add(1)
	c := &runtimev1.PodSandboxConfig{
		Metadata:     &runtimev1.PodSandboxMetadata{Name: fmt.Sprintf("pod-%d", number), Namespace: "e2e", Uid: fmt.Sprintf("uid-%d", number)},
		Hostname:     fmt.Sprintf("pod-%d", number),
		LogDirectory: filepath.Join(n.logs, fmt.Sprintf("pod-%d", number)),
		Labels:       map[string]string{"test": strings.ReplaceAll(t.Name(), "/", ".")},
		Linux: &runtimev1.LinuxPodSandboxConfig{SecurityContext: &runtimev1.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimev1.NamespaceOption{Pid: runtimev1.NamespaceMode_CONTAINER},
		}},
	}
	if err := os.MkdirAll(c.LogDirectory, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, o := range options {
		o(c)
	}
	return c
}

// runPod runs a pod and removes it at the test's end.
func (n *node) runPod(t testing.TB, options ...podOption) *pod {
	t.Helper()
	p, err := n.tryPod(t, options...)
	if err != nil {
		t.Fatalf("RunPodSandbox: %v", err)
	}
	t.Cleanup(func() {
		if err := p.down(); err != nil {
			t.Errorf("removing pod %s: %v", p.id, err)
		}
	})
	return p
}

func (n *node) tryPod(t testing.TB, options ...podOption) (*pod, error) {
	ctx, cancel := callContext()
	defer cancel()
	p := &pod{n: n, config: podConfig(t, n, options...)}
	resp, err := n.d.Runtime.RunPodSandbox(ctx, &runtimev1.RunPodSandboxRequest{Config: p.config, RuntimeHandler: handler})
	p.id = resp.GetPodSandboxId()
	return p, err
}

// down stops and removes the pod; it may be called again.
func (p *pod) down() error {
	ctx, cancel := callContext()
	defer cancel()
	_, stopErr := p.n.d.Runtime.StopPodSandbox(ctx, &runtimev1.StopPodSandboxRequest{PodSandboxId: p.id})
	_, removeErr := p.n.d.Runtime.RemovePodSandbox(ctx, &runtimev1.RemovePodSandboxRequest{PodSandboxId: p.id})
	return errors.Join(stopErr, removeErr)
}

func (p *pod) status(t testing.TB) *runtimev1.PodSandboxStatus {
	t.Helper()
	ctx, cancel := callContext()
	defer cancel()
	resp, err := p.n.d.Runtime.PodSandboxStatus(ctx, &runtimev1.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatalf("PodSandboxStatus: %v", err)
	}
	return resp.Status
}

func (p *pod) ip(t testing.TB) string {
	t.Helper()
	ip := p.status(t).GetNetwork().GetIp()
	if ip == "" {
		t.Fatalf("pod %s has no address", p.id)
	}
	return ip
}

// container is one container of a pod.
type container struct {
	p       *pod
	id      string
	logFile string
}

func shell(script string) containerOption { return command("sh", "-c", script) }

func command(args ...string) containerOption {
	return func(c *runtimev1.ContainerConfig) { c.Command = args }
}

// helper runs this program in a role. It is mounted from the host.
func helper(args ...string) containerOption {
	return func(c *runtimev1.ContainerConfig) {
		c.Command = append([]string{helperPath}, args...)
		self, err := os.Executable()
		if err != nil {
			panic(err) // /proc is mounted, see package rig
		}
		c.Mounts = append(c.Mounts, &runtimev1.Mount{HostPath: self, ContainerPath: helperPath, Readonly: true})
	}
}

func tty(c *runtimev1.ContainerConfig) { c.Tty = true }

func memoryLimit(bytes int64) containerOption {
	return func(c *runtimev1.ContainerConfig) {
		c.Linux.Resources = &runtimev1.LinuxContainerResources{MemoryLimitInBytes: bytes}
	}
}

func addCapabilities(names ...string) containerOption {
	return func(c *runtimev1.ContainerConfig) {
		c.Linux.SecurityContext.Capabilities = &runtimev1.Capability{AddCapabilities: names}
	}
}

// create makes a container without starting it.
func (p *pod) create(t testing.TB, options ...containerOption) *container {
	t.Helper()
	c, err := p.tryCreate(options...)
	if err != nil {
		t.Fatalf("CreateContainer: %v", err)
	}
	return c
}

func (p *pod) tryCreate(options ...containerOption) (*container, error) {
	ctx, cancel := callContext()
	defer cancel()
	name := fmt.Sprintf("c%d", sequence.Add(1))
	config := &runtimev1.ContainerConfig{
		Metadata: &runtimev1.ContainerMetadata{Name: name},
		Image:    &runtimev1.ImageSpec{Image: image(busybox)},
		LogPath:  name + ".log",
		Linux: &runtimev1.LinuxContainerConfig{SecurityContext: &runtimev1.LinuxContainerSecurityContext{
			NamespaceOptions: p.config.Linux.SecurityContext.NamespaceOptions,
		}},
	}
	for _, o := range options {
		o(config)
	}
	resp, err := p.n.d.Runtime.CreateContainer(ctx, &runtimev1.CreateContainerRequest{
		PodSandboxId: p.id, Config: config, SandboxConfig: p.config,
	})
	return &container{p: p, id: resp.GetContainerId(), logFile: filepath.Join(p.config.LogDirectory, config.LogPath)}, err
}

// run makes and starts a container.
func (p *pod) run(t testing.TB, options ...containerOption) *container {
	t.Helper()
	c := p.create(t, options...)
	c.start(t)
	return c
}

func (c *container) start(t testing.TB) {
	t.Helper()
	if err := c.tryStart(); err != nil {
		t.Fatalf("StartContainer: %v", err)
	}
}

func (c *container) tryStart() error {
	ctx, cancel := callContext()
	defer cancel()
	_, err := c.p.n.d.Runtime.StartContainer(ctx, &runtimev1.StartContainerRequest{ContainerId: c.id})
	return err
}

// stop stops with a grace period in seconds.
func (c *container) stop(t testing.TB, grace int64) {
	t.Helper()
	ctx, cancel := callContext()
	defer cancel()
	_, err := c.p.n.d.Runtime.StopContainer(ctx, &runtimev1.StopContainerRequest{ContainerId: c.id, Timeout: grace})
	if err != nil {
		t.Fatalf("StopContainer: %v", err)
	}
}

func (c *container) remove(t testing.TB) {
	t.Helper()
	ctx, cancel := callContext()
	defer cancel()
	if _, err := c.p.n.d.Runtime.RemoveContainer(ctx, &runtimev1.RemoveContainerRequest{ContainerId: c.id}); err != nil {
		t.Fatalf("RemoveContainer: %v", err)
	}
}

func (c *container) status(t testing.TB) *runtimev1.ContainerStatus {
	t.Helper()
	ctx, cancel := callContext()
	defer cancel()
	resp, err := c.p.n.d.Runtime.ContainerStatus(ctx, &runtimev1.ContainerStatusRequest{ContainerId: c.id})
	if err != nil {
		t.Fatalf("ContainerStatus: %v", err)
	}
	return resp.Status
}

// wait waits until the container has exited.
func (c *container) wait(t testing.TB, limit time.Duration) *runtimev1.ContainerStatus {
	t.Helper()
	var s *runtimev1.ContainerStatus
	eventually(t, limit, func() error {
		if s = c.status(t); s.State != runtimev1.ContainerState_CONTAINER_EXITED {
			return fmt.Errorf("container is %v", s.State)
		}
		return nil
	})
	return s
}

// execResult is the outcome of an ExecSync.
type execResult struct {
	stdout, stderr string
	code           int32
}

// exec runs a command to its end, which must be within the timeout (seconds; 0: none).
func (c *container) exec(ctx context.Context, timeout int64, args ...string) (execResult, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := c.p.n.d.Runtime.ExecSync(ctx, &runtimev1.ExecSyncRequest{ContainerId: c.id, Cmd: args, Timeout: timeout})
	return execResult{string(resp.GetStdout()), string(resp.GetStderr()), resp.GetExitCode()}, err
}

// output is the standard output of a command that must succeed.
func (c *container) output(t testing.TB, args ...string) string {
	t.Helper()
	r, err := c.exec(t.Context(), 0, args...)
	if err != nil {
		t.Fatalf("ExecSync %q: %v", args, err)
	}
	if r.code != 0 {
		t.Fatalf("ExecSync %q: exit code %d, stderr %q", args, r.code, r.stderr)
	}
	return r.stdout
}

// logLine is a line of a log in CRI format.
type logLine struct {
	time         time.Time
	stream, text string
	partial      bool
}

// readLog parses the container's log strictly. An unfinished last line is left out.
func (c *container) readLog(t testing.TB) []logLine {
	t.Helper()
	data, err := os.ReadFile(c.logFile)
	if err != nil {
		t.Fatalf("log: %v", err)
	}
	data = data[:bytes.LastIndexByte(data, '\n')+1]
	var lines []logLine
	for line := range strings.Lines(string(data)) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(fields) != 4 || fields[1] != "stdout" && fields[1] != "stderr" || fields[2] != "F" && fields[2] != "P" {
			t.Fatalf("log: line %d is not in CRI format: %q", len(lines)+1, line)
		}
		at, err := time.Parse(time.RFC3339Nano, fields[0])
		if err != nil {
			t.Fatalf("log: line %d: %v", len(lines)+1, err)
		}
		lines = append(lines, logLine{at, fields[1], fields[3], fields[2] == "P"})
	}
	return lines
}

// logText is the text of one stream of the log, with its line ends.
func (c *container) logText(t testing.TB, stream string) string {
	t.Helper()
	var b strings.Builder
	for _, l := range c.readLog(t) {
		if l.stream == stream {
			b.WriteString(l.text)
			if !l.partial {
				b.WriteByte('\n')
			}
		}
	}
	return b.String()
}

// callContext is not the test's context: that one is cancelled before cleanups run, which make calls, too.
func callContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), callTimeout)
}

// eventually tries until there is no error any more.
func eventually(t testing.TB, limit time.Duration, try func() error) {
	t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %v", limit, err)
		}
	}
}

// wantCode asserts the kind of an error and that its text names what it is about.
func wantCode(t testing.TB, err error, code codes.Code, mentions string) {
	t.Helper()
	if got := status.Code(err); got != code {
		t.Errorf("error %v has code %v, want %v", err, got, code)
	} else if !strings.Contains(err.Error(), mentions) {
		t.Errorf("error %q does not name %q", err, mentions)
	}
}
