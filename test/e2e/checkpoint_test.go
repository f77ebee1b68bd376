package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// counter prints numbers, holds one in memory and writes it to a file that it keeps open.
const counter = `exec 3>/tmp/open; i=0; while :; do i=$((i+1)); echo $i; echo $i >&3; sleep 0.05; done`

func (c *container) checkpoint(location string) error {
	ctx, cancel := callContext()
	defer cancel()
	_, err := c.p.n.d.Runtime.CheckpointContainer(ctx, &runtimev1.CheckpointContainerRequest{ContainerId: c.id, Location: location})
	return err
}

// numbers are the counter's lines so far.
func (c *container) numbers(t testing.TB) []int {
	t.Helper()
	var all []int
	for line := range strings.Lines(c.logText(t, "stdout")) {
		n, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			t.Fatalf("line %q is not a number", line)
		}
		all = append(all, n)
	}
	return all
}

// counts waits until the counter has printed n more numbers, each one more than the one before.
func (c *container) counts(t testing.TB, n int) []int {
	t.Helper()
	var all []int
	start := -1
	eventually(t, 60*time.Second, func() error {
		all = c.numbers(t)
		if start < 0 {
			start = len(all)
		}
		if len(all) < start+n {
			return fmt.Errorf("%d numbers, want %d more than %d", len(all), n, start)
		}
		return nil
	})
	for i := 1; i < len(all); i++ {
		if all[i] != all[i-1]+1 {
			t.Fatalf("number %d follows %d", all[i], all[i-1])
		}
	}
	return all
}

// envCriu says that criu must work: the virtual machine has it, and a kernel that it knows.
const envCriu = "E2E_CRIU"

// criuMissing says whether a checkpoint failed for want of a criu that works on this kernel; that must be said as it should
// be. Any other error ends the test.
func criuMissing(t testing.TB, err error) bool {
	t.Helper()
	if err == nil {
		return false
	}
	if os.Getenv(envCriu) != "" {
		t.Fatal(err)
	}
	wantCode(t, err, codes.FailedPrecondition, "criu")
	t.Logf("criu cannot be used here, so no more than this is tested: %v", err)
	return true
}

func TestCheckpointContainer(t *testing.T) {
	n := sharedNode(t)
	p := n.runPod(t)
	c := p.run(t, shell(counter))
	c.counts(t, 3)
	archive := filepath.Join(t.TempDir(), "checkpoint.tar")
	err := c.checkpoint(archive)
	c.counts(t, 3) // it runs on, whatever came of it
	if criuMissing(t, err) {
		return
	}
	before := c.counts(t, 3)
	q := n.runPod(t)
	d := q.create(t, shell(counter), func(c *runtimev1.ContainerConfig) { c.Image.Image = archive })
	if s := d.status(t).State; s != runtimev1.ContainerState_CONTAINER_CREATED {
		t.Errorf("the restored container is %v before it is started", s)
	}
	d.start(t)
	after := d.counts(t, 3)
	if after[0] <= 1 || after[0] > before[len(before)-1]+1 {
		t.Errorf("the restored counter goes on with %d, the old one was at %d", after[0], before[len(before)-1])
	}
}
