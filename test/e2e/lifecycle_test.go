package e2e

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/e2e/rig"
)

// TestHappyPath is the whole path once: pull, pod, container, exec, log, stop, remove, with the answers between.
func TestHappyPath(t *testing.T) {
	n := sharedNode(t)
	ctx := t.Context()
	if v, err := n.d.Runtime.Version(ctx, &runtimev1.VersionRequest{}); err != nil || v.RuntimeApiVersion != "v1" {
		t.Fatalf("Version: %v, %v", v, err)
	}
	s, err := n.d.Runtime.Status(ctx, &runtimev1.StatusRequest{})
	if err != nil {
		t.Fatalf("Status: %v", err)
	}
	for _, c := range s.Status.Conditions {
		if !c.Status {
			t.Errorf("condition %s: %s: %s", c.Type, c.Reason, c.Message)
		}
	}
	images, err := n.d.Images.ListImages(ctx, &runtimev1.ListImagesRequest{})
	if err != nil || len(images.Images) != 1 || !slices.Contains(images.Images[0].RepoTags, image(busybox)) {
		t.Fatalf("ListImages: %v, %v", images, err)
	}

	p := n.runPod(t)
	if got := p.status(t); got.State != runtimev1.PodSandboxState_SANDBOX_READY || got.Metadata.Name != p.config.Metadata.Name {
		t.Errorf("PodSandboxStatus: %v", got)
	}
	c := p.create(t, shell("echo hello; echo oops >&2; trap 'exit 3' TERM; while :; do sleep 0.1; done"))
	if got := c.status(t); got.State != runtimev1.ContainerState_CONTAINER_CREATED {
		t.Errorf("before its start the container is %v", got.State)
	}
	c.start(t)
	got := c.status(t)
	if got.State != runtimev1.ContainerState_CONTAINER_RUNNING || got.StartedAt < got.CreatedAt || got.CreatedAt == 0 {
		t.Errorf("after its start: %v", got)
	}
	if id := images.Images[0].Id; got.ImageRef == "" || got.ImageId != id {
		t.Errorf("image %q, ref %q, want id %q", got.ImageId, got.ImageRef, id)
	}
	if out := c.output(t, "cat", "/etc/hostname"); strings.TrimSpace(out) != p.config.Hostname {
		t.Errorf("hostname %q, want %q", out, p.config.Hostname)
	}
	r, err := c.exec(ctx, 0, "sh", "-c", "echo out; echo err >&2; exit 5")
	if err != nil || r != (execResult{"out\n", "err\n", 5}) {
		t.Errorf("exec: %+v, %v", r, err)
	}
	eventually(t, 5*time.Second, func() error {
		if out, errs := c.logText(t, "stdout"), c.logText(t, "stderr"); out != "hello\n" || errs != "oops\n" {
			return fmt.Errorf("log: stdout %q, stderr %q", out, errs)
		}
		return nil
	})
	list, err := n.d.Runtime.ListContainers(ctx, &runtimev1.ListContainersRequest{Filter: &runtimev1.ContainerFilter{PodSandboxId: p.id}})
	if err != nil || len(list.Containers) != 1 || list.Containers[0].Id != c.id {
		t.Errorf("ListContainers: %v, %v", list, err)
	}
	c.stop(t, 10)
	if got := c.status(t); got.State != runtimev1.ContainerState_CONTAINER_EXITED || got.ExitCode != 3 || got.FinishedAt < got.StartedAt {
		t.Errorf("after its stop: %v", got)
	}
	c.remove(t)
	c.remove(t) // again: no error
	if err := p.down(); err != nil {
		t.Fatal(err)
	}
	pods, err := n.d.Runtime.ListPodSandbox(ctx, &runtimev1.ListPodSandboxRequest{Filter: &runtimev1.PodSandboxFilter{Id: p.id}})
	if err != nil || len(pods.Items) != 0 {
		t.Errorf("ListPodSandbox after the removal: %v, %v", pods, err)
	}
}

// TestExitCodes runs workloads to ends of every kind.
func TestExitCodes(t *testing.T) {
	n := sharedNode(t)
	p := n.runPod(t, hostNetwork)
	for name, tt := range map[string]struct {
		script string
		code   int32
		reason string
	}{
		"zero":     {"exit 0", 0, "Completed"},
		"seven":    {"exit 7", 7, "Error"},
		"SIGKILL":  {"kill -9 $$", 0, "Completed"}, // process 1 is immune to itself, and the script goes on
		"child":    {"sh -c 'kill -9 $$'; exit $?", 137, "Error"},
		"term":     {"sh -c 'kill -15 $$'; exit $?", 143, "Error"},
		"bad args": {"nonsense-command", 127, "Error"},
	} {
		t.Run(name, func(t *testing.T) {
			c := p.run(t, shell(tt.script))
			if s := c.wait(t, 20*time.Second); s.ExitCode != tt.code || s.Reason != tt.reason {
				t.Errorf("code %d, reason %q, want %d, %q", s.ExitCode, s.Reason, tt.code, tt.reason)
			}
			c.remove(t)
		})
	}
}

// workloads are the processes of the place that are not ours.
func (n *node) workloads(t testing.TB) []rig.Process {
	t.Helper()
	all, err := rig.Processes()
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(all, func(p rig.Process) bool {
		return p.PID == 1 || p.PID == os.Getpid() || n.baseline[processLine(p)] > 0
	})
}

// TestKilledFromOutside ends a container as an operator could: by SIGKILL to its process.
func TestKilledFromOutside(t *testing.T) {
	n := sharedNode(t)
	c := n.runPod(t, hostNetwork).run(t, command("sleep", "1000"))
	found := n.workloads(t)
	if len(found) != 1 || found[0].Cmdline != "sleep 1000" {
		t.Fatalf("processes besides ours: %v, want the one sleep", found)
	}
	if err := syscall.Kill(found[0].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if s := c.wait(t, 20*time.Second); s.ExitCode != 137 || s.Reason != "Error" {
		t.Errorf("code %d, reason %q, want 137, Error", s.ExitCode, s.Reason)
	}
}

// TestOOM takes more memory than the limit allows.
func TestOOM(t *testing.T) {
	n := sharedNode(t)
	c := n.runPod(t, hostNetwork).run(t, helper("role-eat"), memoryLimit(64<<20))
	if s := c.wait(t, 60*time.Second); s.ExitCode != 137 || s.Reason != "OOMKilled" {
		t.Errorf("code %d, reason %q, want 137, OOMKilled", s.ExitCode, s.Reason)
	}
}

// TestStop stops with and without grace what listens to signals and what does not.
func TestStop(t *testing.T) {
	n := sharedNode(t)
	p := n.runPod(t, hostNetwork)
	const deaf = "trap '' TERM; while :; do sleep 0.1; done"
	for name, tt := range map[string]struct {
		script   string
		grace    int64
		code     int32
		min, max time.Duration
	}{
		"obedient":           {"trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done", 30, 9, 0, 10 * time.Second},
		"deaf with grace":    {"echo ready; " + deaf, 1, 137, time.Second, 15 * time.Second},
		"deaf without grace": {"echo ready; " + deaf, 0, 137, 0, 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			c := p.run(t, shell(tt.script))
			eventually(t, 20*time.Second, func() error {
				if c.logText(t, "stdout") != "ready\n" {
					return errors.New("not ready")
				}
				return nil
			})
			start := time.Now()
			c.stop(t, tt.grace)
			if took := time.Since(start); took < tt.min || took > tt.max {
				t.Errorf("it took %v, want between %v and %v", took, tt.min, tt.max)
			}
			if s := c.status(t); s.State != runtimev1.ContainerState_CONTAINER_EXITED || s.ExitCode != tt.code {
				t.Errorf("state %v, code %d, want exited, %d", s.State, s.ExitCode, tt.code)
			}
			c.stop(t, tt.grace) // again: no error
			c.remove(t)
		})
	}
}

// TestRestart replaces a container in a pod that lives on, as kubelet does after a crash.
func TestRestart(t *testing.T) {
	n := sharedNode(t)
	p := n.runPod(t)
	ip := p.ip(t)
	for attempt := range uint32(3) {
		c := p.run(t, shell("echo attempt; exit 1"), func(c *runtimev1.ContainerConfig) {
			c.Metadata.Name, c.Metadata.Attempt = "again", attempt
			c.LogPath = fmt.Sprintf("again-%d.log", attempt)
		})
		if s := c.wait(t, 20*time.Second); s.ExitCode != 1 || s.Metadata.Attempt != attempt {
			t.Errorf("attempt %d: %v", attempt, s)
		}
	}
	if got := p.ip(t); got != ip {
		t.Errorf("the pod's address changed from %s to %s", ip, got)
	}
}

// TestExecTimeout kills an exec that takes too long, and leaves the container alone.
func TestExecTimeout(t *testing.T) {
	n := sharedNode(t)
	c := n.runPod(t, hostNetwork).run(t, command("sleep", "1000"))
	start := time.Now()
	_, err := c.exec(t.Context(), 1, "sleep", "60")
	if code := status.Code(err); code != codes.DeadlineExceeded {
		t.Errorf("error %v has code %v, want DeadlineExceeded", err, code)
	}
	if took := time.Since(start); took < time.Second || took > 15*time.Second {
		t.Errorf("it took %v, want a little over 1 s", took)
	}
	if out := c.output(t, "echo", "alive"); out != "alive\n" {
		t.Errorf("the next exec answers %q", out)
	}
}

// TestTTY has one stream, a terminal, and the line discipline's carriage returns.
func TestTTY(t *testing.T) {
	n := sharedNode(t)
	c := n.runPod(t, hostNetwork).run(t, tty, shell("test -t 0 && test -t 1 && test -t 2 && tty; echo err >&2"))
	if s := c.wait(t, 20*time.Second); s.ExitCode != 0 {
		t.Fatalf("code %d", s.ExitCode)
	}
	if got := strings.ReplaceAll(c.logText(t, "stdout"), "\r", ""); !strings.HasPrefix(got, "/dev/") || !strings.HasSuffix(got, "\nerr\n") {
		t.Errorf("log %q, want the terminal's name and err", got)
	}
}

// TestLogFormat writes lines that do not fit in one record, and a last one that does not end.
func TestLogFormat(t *testing.T) {
	n := sharedNode(t)
	const long = 50000
	c := n.runPod(t, hostNetwork).run(t, shell(fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x; echo; printf '\\n\\nlast'", long)))
	c.wait(t, 20*time.Second)
	if got, want := c.logText(t, "stdout"), strings.Repeat("x", long)+"\n\n\nlast"; strings.TrimSuffix(got, "\n") != want {
		t.Errorf("log has %d bytes, want %d", len(got), len(want))
	}
	lines := c.readLog(t)
	for i, l := range lines {
		if len(l.text) > 16<<10 {
			t.Errorf("line %d has %d bytes", i+1, len(l.text))
		}
		if i > 0 && l.time.Before(lines[i-1].time) {
			t.Errorf("line %d is older than the one before", i+1)
		}
	}
	if len(lines) < 4 || !lines[0].partial {
		t.Errorf("%d lines, the first partial: %v", len(lines), len(lines) > 0 && lines[0].partial)
	}
}

// TestReopenLog rotates a log as kubelet does.
func TestReopenLog(t *testing.T) {
	n := sharedNode(t)
	c := n.runPod(t, hostNetwork).run(t, helper("role-write", "5ms"))
	eventually(t, 20*time.Second, c.hasLines(t, 10))
	rotated := c.logFile + ".1"
	if err := errors.Join(syscall.Rename(c.logFile, rotated)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := callContext()
	defer cancel()
	if _, err := n.d.Runtime.ReopenContainerLog(ctx, &runtimev1.ReopenContainerLogRequest{ContainerId: c.id}); err != nil {
		t.Fatalf("ReopenContainerLog: %v", err)
	}
	eventually(t, 20*time.Second, c.hasLines(t, 10))
	c.stop(t, 5)
	old := &container{p: c.p, id: c.id, logFile: rotated}
	wantSequence(t, append(old.readLog(t), c.readLog(t)...))
}

// hasLines is for eventually: the log has at least want lines.
func (c *container) hasLines(t testing.TB, want int) func() error {
	return func() error {
		if got := len(c.readLog(t)); got < want {
			return fmt.Errorf("the log has %d lines, want %d", got, want)
		}
		return nil
	}
}

// wantSequence asserts that a log holds the numbers 0, 1, 2, ... without gap or repeat.
func wantSequence(t testing.TB, lines []logLine) {
	t.Helper()
	if len(lines) == 0 {
		t.Error("the log is empty")
	}
	for i, l := range lines {
		if l.text != fmt.Sprint(i) || l.partial {
			t.Errorf("line %d of %d of the log is %q, want %d", i+1, len(lines), l.text, i)
			return
		}
	}
}
