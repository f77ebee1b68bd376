package kubelet

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// images counts the images whose name has this part.
func images(t *testing.T, part string) int {
	t.Helper()
	list, err := daemon.Images.ListImages(background(t), &runtimev1.ListImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, i := range list.GetImages() {
		if strings.Contains(strings.Join(i.GetRepoTags(), " "), part) {
			n++
		}
	}
	return n
}

// TestProbeCost says what exec probes cost our processes: a figure, asserted only against waste of another order.
func TestProbeCost(t *testing.T) {
	for i := range *probedPods {
		name := fmt.Sprintf("probed-%d", i)
		agent.run(t, name, fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %[1]s, uid: %[1]s}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: IMAGE/e2e-test-images/busybox:1.29-2, command: [sleep, "100000"], livenessProbe: {exec: {command: ["true"]}, periodSeconds: 1}}
`, name))
	}
	for i := range *probedPods {
		agent.untilReady(t, fmt.Sprintf("probed-%d", i))
	}
	before, start := ticks(t), time.Now()
	time.Sleep(*probesFor)
	after, took := ticks(t), time.Since(start)
	total := 0.0
	for name, n := range after {
		share := float64(n-before[name]) / 100 / took.Seconds() * 100
		total += share
		t.Logf("%s: %.2f %% of one processor", name, share)
	}
	t.Logf("%d exec probes a second for %v: %.2f %% of one processor in our processes", *probedPods, took.Round(time.Second), total)
	if limit := float64(*probedPods); total > limit {
		t.Errorf("more than %.0f %%", limit)
	}
}

// ticks is the processor time of our processes in this place, in hundredths of a second, without that of their children.
func ticks(t *testing.T) map[string]int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]int{}
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		line := string(text)
		open, end := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')')
		name := line[open+1 : end]
		if fields := strings.Fields(line[end+1:]); strings.HasPrefix(name, "criserver") {
			user, _ := strconv.Atoi(fields[11])
			system, _ := strconv.Atoi(fields[12])
			used[name] += user + system
		}
	}
	if len(used) == 0 {
		t.Fatal("none of our processes was found")
	}
	return used
}
