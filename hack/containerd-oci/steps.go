package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// step is one command of crictl and what is expected of it.
type step struct {
	args  func() []string
	fails bool                      // it is to fail, and check looks at what it says
	check func(answer string) error // nil: whatever it says
	until bool                      // asked again until check is content
}

func (w *walk) do(ctx context.Context, s step) error {
	args := s.args()
	for deadline := time.Now().Add(stepTimeout); ; time.Sleep(100 * time.Millisecond) {
		answer, err := w.crictl(ctx, args...)
		if s.fails != (err != nil) {
			return fmt.Errorf("crictl %s: it was to fail: %v, and: %w", strings.Join(args, " "), s.fails, err)
		}
		err = nil
		if s.check != nil {
			err = s.check(answer)
		}
		if err != nil && s.until && time.Now().Before(deadline) {
			continue
		}
		if err != nil {
			return fmt.Errorf("crictl %s: %w; the answer was\n%s", strings.Join(args, " "), err, answer)
		}
		fmt.Printf("ok  crictl %s\n", strings.Join(args, " "))
		return nil
	}
}

// says wants an answer to contain a text.
func says(want string) func(string) error {
	return func(answer string) error {
		if !strings.Contains(answer, want) {
			return fmt.Errorf("%q is not in it", want)
		}
		return nil
	}
}

func keep(to *string) func(string) error {
	return func(answer string) error {
		*to = strings.TrimSpace(answer)
		if *to == "" {
			return fmt.Errorf("no id")
		}
		return nil
	}
}

// plain is a step whose arguments are known.
func plain(check func(string) error, args ...string) step {
	return step{args: func() []string { return args }, check: check}
}

// on is a step for the container.
func (w *walk) on(check func(string) error, before []string, after ...string) step {
	return step{check: check, args: func() []string { return append(append(append([]string{}, before...), w.container), after...) }}
}

func (w *walk) steps() []step {
	fails := w.on(says("exit code 7"), []string{"exec"}, "sh", "-c", "exit 7")
	fails.fails = true
	started := w.on(says("started"), []string{"logs"})
	started.until = true
	return []step{
		plain(nil, "pull", w.image),
		plain(keep(&w.pod), "runp", "pod.json"),
		{args: func() []string { return []string{"create", w.pod, "container.json", "pod.json"} }, check: keep(&w.container)},
		w.on(nil, []string{"start"}),
		w.on(w.isOurs, []string{"inspect"}),
		started,
		w.on(says("uid=1000"), []string{"exec"}, "id"),
		w.on(says("uid=1000"), []string{"exec", "--sync"}, "id"),
		fails,
		w.on(nil, []string{"update", "--memory", "33554432"}),
		w.on(nil, []string{"stats"}),
		w.on(nil, []string{"stop", "--timeout", "5"}),
		w.on(says(`"exitCode": 3`), []string{"inspect"}),
		w.on(nil, []string{"rm"}),
		{args: func() []string { return []string{"stopp", w.pod} }},
		{args: func() []string { return []string{"rmp", w.pod} }},
		plain(w.isGone, "pods"),
	}
}

// listed are the containers that our runtime knows.
func (w *walk) listed() (map[string]string, error) {
	out, err := exec.Command(w.oci, "--root", filepath.Join(w.root, "k8s.io"), "list", "--format", "json").Output()
	if err != nil {
		return nil, fmt.Errorf("criserver-oci list: %w", err)
	}
	var all []struct{ ID, Status string }
	if err := json.Unmarshal(out, &all); err != nil {
		return nil, err
	}
	known := map[string]string{}
	for _, c := range all {
		known[c.ID] = c.Status
	}
	return known, nil
}

// isOurs wants pod and container to run by our runtime.
func (w *walk) isOurs(string) error {
	known, err := w.listed()
	if err != nil {
		return err
	}
	if known[w.pod] != "running" || known[w.container] != "running" {
		return fmt.Errorf("criserver-oci knows %v", known)
	}
	return nil
}

// isGone wants nothing to be left.
func (w *walk) isGone(string) error {
	known, err := w.listed()
	if err != nil {
		return err
	}
	left, err := os.ReadDir(filepath.Join(w.root, "k8s.io"))
	if len(known) > 0 || len(left) > 0 || err != nil {
		return fmt.Errorf("left: %v %v %v", known, left, err)
	}
	return nil
}
