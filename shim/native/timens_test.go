package native

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func uptime(t *testing.T, text string) float64 {
	t.Helper()
	var seconds float64
	if _, err := fmt.Sscan(text, &seconds); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return seconds
}

// The clocks of a time namespace are ahead by what the spec says, for the container's process and for what is executed beside it.
func TestTimeNamespace(t *testing.T) {
	r := newRuntime(t)
	spec := baseSpec("view", "/proc/uptime")
	spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
	spec.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1e9}, "monotonic": {Secs: 1e6}}
	p, out, w := create(t, r, Config{ID: "x", Spec: spec, Rootfs: rootfs(t)})
	text, code := finish(t, p, out, w)
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, text)
	}
	if got := uptime(t, look(t, text).Files["/proc/uptime"]); got < 1e9 {
		t.Errorf("up for %v s", got)
	}
	own, err := os.ReadFile("/proc/uptime")
	if err != nil || uptime(t, string(own)) > 1e9 {
		t.Errorf("ours: %s %v", own, err)
	}

	spec.Process.Args = []string{"inside", "sleep"}
	p = running(t, r, Config{ID: "y", Spec: spec, Rootfs: rootfs(t)})
	er, ew, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer er.Close()
	process := *spec.Process
	process.Args = []string{"inside", "view", "/proc/uptime"}
	e, err := r.Exec(t.Context(), ExecConfig{Spec: spec, Process: &process, Target: p.Pidfd, Stdout: ew, Stderr: ew})
	if err != nil {
		t.Fatal(err)
	}
	e.run = nil
	if text, code = finish(t, e, er, ew); code != 0 {
		t.Fatalf("exec: exit code %d: %s", code, text)
	}
	if got := uptime(t, look(t, text).Files["/proc/uptime"]); got < 1e9 {
		t.Errorf("exec: up for %v s", got)
	}
}

func TestTimeOffsetsNeedTheirNamespace(t *testing.T) {
	spec := baseSpec("x")
	spec.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1}}
	if err := validate(goldenInput(spec, newKernel)); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "timeOffsets") {
		t.Errorf("%v", err)
	}
}
