package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// configure restarts the daemon with keys of [workload] and further tables.
func (n *node) configure(t *testing.T, workload, tables string) {
	t.Helper()
	text, err := os.ReadFile(n.d.Config)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(text), "[workload]\n", "[workload]\n"+workload+"\n", 1) + "\n" + tables
	if err := n.d.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(n.d.Config, []byte(changed), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := n.d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

const blockIOClasses = `Classes:
  slow:
  - Weight: 200
  none:
  - Devices: [/dev/no-such-device]
    ThrottleReadBps: 1M
`

const baseSpec = `{
  "process": {"env": ["FROM_BASE=1"], "user": {"umask": 63}, "scheduler": {"policy": "SCHED_BATCH", "nice": 3}},
  "mounts": [{"destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m", "nodev"]}],
  "linux": {"resources": {"pids": {"limit": 123}}}
}`

// TestOperatorSettings configures a daemon as an operator does and looks at a container from inside.
func TestOperatorSettings(t *testing.T) {
	n := ownNode(t)
	dir := t.TempDir()
	base, classes := filepath.Join(dir, "base.json"), filepath.Join(dir, "blockio.yaml")
	for file, text := range map[string]string{base: baseSpec, classes: blockIOClasses} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n.configure(t, fmt.Sprintf(`default_ulimits = ["nofile=300:400", "core=0"]
default_sysctls = ["net.core.somaxconn=321"]
unprivileged_ports = false
blockio_config = %q`, classes),
		fmt.Sprintf("[runtimes.native]\nbase_spec = %q\npod_annotations = ['pod.example/*']\ncontainer_annotations = ['c*']\ncgroup_writable = true\n", base))

	p := n.runPod(t, func(c *runtimev1.PodSandboxConfig) {
		c.Annotations = map[string]string{"pod.example/a": "1", "other.example/b": "2"}
	})
	c := p.run(t, command("sleep", "1000"), func(c *runtimev1.ContainerConfig) {
		c.Annotations = map[string]string{"c1": "3", "d1": "4", "io.kubernetes.cri.blockio-class": "slow"}
	})
	for want, script := range map[string]string{
		"300":  "ulimit -Sn",
		"400":  "ulimit -Hn",
		"0":    "ulimit -c",
		"321":  "cat /proc/sys/net/core/somaxconn",
		"1024": "cat /proc/sys/net/ipv4/ip_unprivileged_port_start",
		"1":    "echo $FROM_BASE",
		"0077": "umask",
		"made": "mkdir /scratch/a && echo made",
		"rw":   "grep ' /sys/fs/cgroup ' /proc/mounts | head -n 1 | cut -d' ' -f4 | cut -d, -f1",
		"3 3":  "awk '{print $19, 3}' /proc/self/stat",
	} {
		if got := strings.TrimSpace(c.output(t, "sh", "-c", script)); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	if got := cgroupFile(t, c.cgroup(t), "pids.max", "pids.max"); got != "123" {
		t.Errorf("pids.max is %s", got)
	}
	var dirOf string
	c.info(t, "runDir", &dirOf)
	var s struct {
		Annotations map[string]string
		Linux       struct {
			Resources struct{ BlockIO struct{ Weight int } }
		}
	}
	text, err := os.ReadFile(filepath.Join(dirOf, "config.json"))
	if err == nil {
		err = json.Unmarshal(text, &s)
	}
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Annotations) != 2 || s.Annotations["pod.example/a"] != "1" || s.Annotations["c1"] != "3" {
		t.Errorf("the spec's annotations are %v", s.Annotations)
	}
	if s.Linux.Resources.BlockIO.Weight != 200 {
		t.Errorf("the spec's I/O weight is %d", s.Linux.Resources.BlockIO.Weight)
	}
	for annotation, mentions := range map[string]string{"io.kubernetes.cri.blockio-class": "fast", "io.kubernetes.cri.rdt-class": "resctrl"} {
		if _, err := os.Stat("/sys/fs/resctrl/schemata"); err == nil && strings.Contains(annotation, "rdt") {
			continue
		}
		_, err := p.tryCreate(command("true"), func(c *runtimev1.ContainerConfig) { c.Annotations = map[string]string{annotation: "fast"} })
		wantCode(t, err, codes.FailedPrecondition, mentions)
	}
}
