package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// figures are the verbs that tell what is used and what happens.
func (w *walk) figures() []step {
	args := func(args ...string) func() []string { return func() []string { return args } }
	happening := w.whileAContainerComesAndGoes()
	return []step{
		{text: "## Figures", args: args("stats"), check: mentions("CONTAINER", "shell")},
		{args: args("statsp"), check: mentions("POD", "walk")},
		{text: "Metrics have cAdvisor's names and labels.", args: args("metricdescs"), check: mentions("container_cpu_usage_seconds_total", "container_pressure_memory_waiting_seconds_total")},
		{args: args("metricsp"), check: mentions("container_memory_working_set_bytes", "container_network_receive_bytes_total")},
		{text: "Here another container is made and removed meanwhile.",
			args: args("events", "--output", "go-template", "--template", "{{.containerEventType}}"), check: exactly("CONTAINER_CREATED_EVENT\nCONTAINER_DELETED_EVENT\n"), by: &happening},
		{text: "What kubelet says when its node is given a range.", args: args("update-runtime-config", "--pod-cidr", "10.88.0.0/16,fd88:1e5a:c0de:88::/64"), check: anyAnswer},
	}
}

// mentions expects all of these in the answer, and shows no more than them: the rest differs between runs.
func mentions(words ...string) func(string) (string, error) {
	return func(answer string) (string, error) {
		for _, word := range words {
			if !strings.Contains(answer, word) {
				return "", fmt.Errorf("want %q in it", word)
			}
		}
		return "... " + strings.Join(words, " ... ") + " ...\n", nil
	}
}

func anyAnswer(string) (string, error) { return "", nil }

// whileAContainerComesAndGoes makes and removes a container until the command, which tells of events, has told of both.
func (w *walk) whileAContainerComesAndGoes() runner {
	return runner{run: func(ctx context.Context, cmd *exec.Cmd) (string, error) {
		config, err := json.Marshal(map[string]any{"metadata": map[string]any{"name": "brief"}, "image": map[string]any{"image": w.image}, "linux": map[string]any{}})
		if err == nil {
			err = os.WriteFile(filepath.Join(w.dir, "brief.json"), config, 0o644)
		}
		if err != nil {
			return "", err
		}
		var printed shared
		cmd.Stdout, cmd.Stderr = &printed, &printed
		if err := cmd.Start(); err != nil {
			return "", err
		}
		defer func() {
			_ = cmd.Process.Signal(os.Interrupt)
			_ = cmd.Wait() // it was interrupted
		}()
		const want = "CONTAINER_CREATED_EVENT\nCONTAINER_DELETED_EVENT\n"
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
			id, err := w.crictlOnce(ctx, "create", w.podID, "brief.json", "pod.json")
			if err == nil {
				_, err = w.crictlOnce(ctx, "rm", id)
			}
			if err != nil {
				return "", err
			}
			if strings.Contains(printed.String(), want) {
				return want, nil
			}
		}
		return "", errors.New("no events were told: " + printed.String())
	}}
}

func (w *walk) crictlOnce(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, w.crictl, append([]string{"--config", filepath.Join(w.dir, "crictl.yaml")}, args...)...)
	cmd.Dir = w.dir
	cmd.Env = []string{"HOME=" + w.dir, "PATH=/usr/bin:/bin"}
	answer, err := output(cmd)
	if err != nil {
		return "", fmt.Errorf("crictl %s: %w", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(answer), nil
}

// shared is a buffer that is read while a command writes to it.
type shared struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *shared) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *shared) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
