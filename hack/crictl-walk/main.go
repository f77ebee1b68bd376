// Command crictl-walk drives crictl against a daemon of its own through the life of a pod, asserts each answer, and
// writes commands and answers to docs/crictl.md. What differs between runs (identifiers, digests, sizes, times) is
// written as a placeholder, so that the page changes only when the answers do.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/criserver/criserver/test/e2e/rig"
)

// stepTimeout bounds each command.
const stepTimeout = time.Minute

func main() {
	crictl := flag.String("crictl", "hack/cache/bin/crictl", "the crictl `program`")
	out := flag.String("o", "docs/crictl.md", "`file` to write")
	flag.Parse()
	place := rig.Isolate()
	program, err := filepath.Abs(*crictl)
	if err == nil {
		err = run(context.Background(), place, program, *out)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "crictl-walk: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, place *rig.Place, crictl, out string) error {
	registry, err := place.StartRegistry()
	if err != nil {
		return err
	}
	d, err := place.NewDaemon(ctx, "walk")
	if err != nil {
		return err
	}
	w := &walk{crictl: crictl, socket: d.Socket(), dir: filepath.Join(place.Dir, "walk-files"), image: registry + "/e2e-test-images/busybox:1.29-2"}
	if err := w.writeConfigs(); err != nil {
		return err
	}
	for _, s := range w.steps() {
		if err := w.do(ctx, s); err != nil {
			return fmt.Errorf("%w\nthe daemon's log ends with\n%s", err, d.LogTail(20))
		}
	}
	if err := d.Stop(); err != nil {
		return err
	}
	fmt.Printf("%d commands, each answer as expected; written to %s\n", w.count, out)
	return os.WriteFile(out, w.page(), 0o644)
}

// walk is the state of the run.
type walk struct {
	crictl, socket, dir, image string
	podID, containerID, catID  string
	count                      int
	body                       bytes.Buffer
}

// step is one command and what is expected of its answer.
type step struct {
	text string // said before it on the page; may be empty
	args func() []string
	// check asserts the answer and returns what the page shows of it.
	check func(answer string) (string, error)
	// by runs the command; nil: it is only waited for.
	by *runner
}

func (w *walk) do(ctx context.Context, s step) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	args := s.args()
	// Its configuration is ours, not the user's.
	cmd := exec.CommandContext(ctx, w.crictl, append([]string{"--config", filepath.Join(w.dir, "crictl.yaml")}, args...)...)
	cmd.Dir = w.dir
	cmd.Env = []string{"HOME=" + w.dir, "PATH=/usr/bin:/bin"}
	line, run := "crictl "+shown(args), output
	if s.by != nil {
		line = s.by.before + line
		run = func(cmd *exec.Cmd) (string, error) { return s.by.run(ctx, cmd) }
	}
	answer, err := run(cmd)
	if err != nil {
		return fmt.Errorf("%s: %w", line, err)
	}
	shown, err := s.check(answer)
	if err != nil {
		return fmt.Errorf("%s: %w; the answer was\n%s", line, err, answer)
	}
	w.count++
	fmt.Printf("ok  %s\n", w.hide(line))
	if s.text != "" {
		fmt.Fprintf(&w.body, "%s\n\n", s.text)
	}
	fmt.Fprintf(&w.body, "```console\n# %s\n%s```\n\n", w.hide(line), w.hide(shown))
	return nil
}

// shown is a command line as one types it.
func shown(args []string) string {
	words := make([]string, len(args))
	for i, arg := range args {
		if words[i] = arg; strings.ContainsAny(arg, " $;&|'") {
			words[i] = "'" + arg + "'"
		}
	}
	return strings.Join(words, " ")
}

// writeConfigs writes the files that crictl reads.
func (w *walk) writeConfigs() error {
	if err := os.MkdirAll(filepath.Join(w.dir, "logs"), 0o755); err != nil {
		return err
	}
	endpoint := "unix://" + w.socket
	yaml := "runtime-endpoint: " + endpoint + "\nimage-endpoint: " + endpoint + "\n"
	if err := os.WriteFile(filepath.Join(w.dir, "crictl.yaml"), []byte(yaml), 0o644); err != nil {
		return err
	}
	pod := map[string]any{
		"metadata":      map[string]any{"name": "walk", "namespace": "default", "uid": "0001", "attempt": 0},
		"hostname":      "walk",
		"log_directory": filepath.Join(w.dir, "logs"),
		"linux":         map[string]any{},
	}
	container := map[string]any{
		"metadata": map[string]any{"name": "shell", "attempt": 0},
		"image":    map[string]any{"image": w.image},
		"command":  []string{"sh", "-c", "trap 'exit 3' TERM; echo hello; while :; do sleep 0.1; done"},
		"log_path": "shell.log",
		// As kubelet sets them; crictl takes the pod's name in its table from here.
		"labels": map[string]any{"io.kubernetes.pod.name": "walk", "io.kubernetes.pod.namespace": "default"},
		"linux":  map[string]any{},
	}
	cat := map[string]any{
		"metadata":   map[string]any{"name": "cat", "attempt": 0},
		"image":      map[string]any{"image": w.image},
		"command":    []string{"cat"},
		"log_path":   "cat.log",
		"stdin":      true,
		"stdin_once": true,
		"linux":      map[string]any{},
	}
	for name, content := range map[string]any{"pod.json": pod, "container.json": container, "cat.json": cat} {
		text, err := json.MarshalIndent(content, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(w.dir, name), append(text, '\n'), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (w *walk) page() []byte {
	var b bytes.Buffer
	b.WriteString(`# crictl

` + "`hack/crictl-walk/run`" + ` wrote this page: it runs these commands against a daemon of its own and checks every answer.
Identifiers, digests, sizes and times are placeholders. The endpoint is set once, in /etc/crictl.yaml:

` + "```yaml\nruntime-endpoint: unix:///run/criserver/criserver.sock\nimage-endpoint: unix:///run/criserver/criserver.sock\n```\n\n")
	for _, name := range []string{"pod.json", "container.json", "cat.json"} {
		text, err := os.ReadFile(filepath.Join(w.dir, name))
		if err == nil {
			fmt.Fprintf(&b, "`%s`:\n\n```json\n%s```\n\n", name, w.hide(string(text)))
		}
	}
	b.Write(w.body.Bytes())
	return append(bytes.TrimRight(b.Bytes(), "\n"), '\n')
}
