package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/e2e/rig"
)

// node is a daemon with what the tests need around it, and what it looked like without any pod.
type node struct {
	d        *rig.Daemon
	logs     string // directory for pods' logs
	baseline snapshot
}

// shared is the daemon that most tests use. It is replaced after a test that left something behind.
var shared *node

// sharedNode is the common daemon. After the test it must look as before.
func sharedNode(t *testing.T) *node {
	t.Helper()
	if shared == nil {
		n, err := startNode(t)
		if err != nil {
			t.Fatal(err)
		}
		shared = n
	}
	n := shared
	n.checkAfter(t, func() { shared = nil })
	return n
}

// ownNode is a daemon for one test, which may kill it.
func ownNode(t *testing.T, tables ...string) *node {
	t.Helper()
	// One at a time: the checker looks at everything in the place.
	if shared != nil {
		if err := shared.shutdown(); err != nil {
			t.Errorf("the end of the shared daemon: %v", err)
		}
		shared = nil
	}
	n, err := startNode(t, tables...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.shutdown(); err != nil {
			t.Errorf("the end of the daemon: %v", err)
		}
	})
	n.checkAfter(t, func() {})
	return n
}

func startNode(t *testing.T, tables ...string) (*node, error) {
	d, err := place.NewDaemon(t.Context(), fmt.Sprintf("n%d", sequence.Add(1)), tables...)
	if err != nil {
		return nil, err
	}
	n := &node{d: d, logs: filepath.Join(filepath.Dir(d.RootDir), "logs")}
	for _, name := range []string{busybox} {
		if err := n.pull(name); err != nil {
			return n, errors.Join(err, n.shutdown())
		}
	}
	// What is made once a node, by the first pod (a bridge, tables), is no leftover.
	p, err := n.tryPod(t)
	if err != nil {
		return n, errors.Join(fmt.Errorf("the first pod: %w", err), n.shutdown())
	}
	c, err := p.tryCreate(command("true"))
	if err == nil {
		err = c.tryStart()
	}
	if err = errors.Join(err, p.down()); err != nil {
		return n, errors.Join(fmt.Errorf("the first pod: %w", err), n.shutdown())
	}
	n.baseline, err = n.settled()
	return n, err
}

func (n *node) pull(name string) error {
	ctx, cancel := callContext()
	defer cancel()
	_, err := n.d.Images.PullImage(ctx, &runtimev1.PullImageRequest{Image: &runtimev1.ImageSpec{Image: image(name)}})
	if err != nil {
		return fmt.Errorf("pull %s: %w", name, err)
	}
	return nil
}

// settled is a snapshot that did not change for a while: what is made ahead, or let go of behind, is done.
func (n *node) settled() (snapshot, error) {
	const quiet = 300 * time.Millisecond
	last, err := n.snapshot()
	since := time.Now()
	for deadline := time.Now().Add(30 * time.Second); err == nil && time.Since(since) < quiet; {
		if time.Now().After(deadline) {
			return last, errors.New("the node does not come to rest")
		}
		time.Sleep(50 * time.Millisecond)
		var now snapshot
		if now, err = n.snapshot(); err == nil && len(last.diff(now)) > 0 {
			last, since = now, time.Now()
		}
	}
	return last, err
}

// checkAfter compares the node with its baseline when the test has ended and its own cleanups have run. dirty is
// called when it differs.
func (n *node) checkAfter(t *testing.T, dirty func()) {
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the daemon's log ends with\n%s", n.d.LogTail(40))
		}
		const limit = 15 * time.Second
		var left []string
		for deadline := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
			now, err := n.snapshot()
			if err != nil {
				left = []string{err.Error()}
			} else if left = n.baseline.diff(now); len(left) == 0 {
				return
			}
			if time.Now().After(deadline) {
				break
			}
		}
		dirty()
		t.Errorf("%v after the test this is not as before it:\n  %s", limit, strings.Join(left, "\n  "))
		if err := n.shutdown(); err != nil {
			t.Logf("%v", err)
		}
	})
}

// shutdown ends the daemon by SIGTERM and then kills what it leaves running by design: keeper and shim, and any
// workload that a failed test forgot.
func (n *node) shutdown() error {
	err := n.d.Stop()
	own := os.Getpid()
	for range 100 {
		all, listErr := rig.Processes()
		if listErr != nil {
			return errors.Join(err, listErr)
		}
		left := 0
		for _, p := range all {
			// Everything in the place but its init, this program and the registry.
			if p.PID == 1 || p.PID == own || p.State == 'Z' || p.Exe == place.TestImages || strings.Contains(p.Cmdline, "role-outside") {
				continue
			}
			left++
			_ = syscall.Kill(p.PID, syscall.SIGKILL)
		}
		if left == 0 {
			return errors.Join(err, n.d.Remove())
		}
		time.Sleep(20 * time.Millisecond)
	}
	return errors.Join(err, errors.New("processes survive SIGKILL"))
}
