package shim_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/criserver/criserver/shim/api"
)

// frozen waits until a counter does not count any more, or with false until it does.
func (n *node) frozen(c *container, want bool) {
	n.t.Helper()
	lines := func() int {
		text, _ := os.ReadFile(c.log)
		return bytes.Count(text, []byte("\n"))
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		before := lines()
		time.Sleep(100 * time.Millisecond)
		if (lines() == before) == want {
			return
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("container %s: frozen is not %v", c.id, want)
		}
	}
}

func TestFreeze(t *testing.T) {
	n := newNode(t)
	a, b := n.container("count", "100000", "5"), n.container("count", "100000", "5")
	n.start(a)
	n.start(b)
	ids := []string{a.id, b.id}
	release, err := n.Freeze(n.context(), ids)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*container{a, b} {
		n.frozen(c, true)
	}
	if _, err := n.Freeze(n.context(), ids[:1]); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("freeze of what is frozen: %v", err)
	}
	for range 2 {
		if err := n.Thaw(n.context(), ids); err != nil {
			t.Fatal(err)
		}
	}
	release()
	for _, c := range []*container{a, b} {
		n.frozen(c, false)
		if _, err := os.Stat(filepath.Join(c.dir, "frozen")); !os.IsNotExist(err) {
			t.Errorf("the mark of a freeze is left: %v", err)
		}
	}

	if release, err = n.Freeze(n.context(), ids); err != nil {
		t.Fatal(err)
	}
	n.frozen(a, true)
	release() // as the death of the caller does
	n.frozen(a, false)

	if _, err = n.Freeze(n.context(), ids); err != nil {
		t.Fatal(err)
	}
	n.frozen(b, true)
	n.kill(n.info().Pid)
	n.frozen(a, false)
	n.frozen(b, false)

	// What is frozen can be ended.
	if _, err = n.Freeze(n.context(), ids); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if err := n.Delete(n.context(), &api.DeleteRequest{Id: id, CgroupsPath: n.cgroup(id)}); err != nil {
			t.Errorf("delete of a frozen container: %v", err)
		}
	}
}

func TestFreezeAndCheckpointRefuse(t *testing.T) {
	n := newNode(t)
	c := n.container("sleep")
	n.start(c)
	for _, ids := range [][]string{nil, {c.id, c.id}} {
		if _, err := n.Freeze(n.context(), ids); !errdefs.IsInvalidArgument(err) {
			t.Errorf("freeze %q: %v", ids, err)
		}
	}
	if _, err := n.Freeze(n.context(), []string{"nobody"}); !errdefs.IsNotFound(err) {
		t.Errorf("freeze of an unknown container: %v", err)
	}
	dir := t.TempDir()
	r := &api.CheckpointRequest{Id: c.id, Images: dir, Work: dir, Criu: "/bin/false"}
	if err := n.Checkpoint(n.context(), r); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("checkpoint of what is not frozen: %v", err)
	}
	release, err := n.Freeze(n.context(), []string{c.id})
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	r.Criu = "criu"
	if err := n.Checkpoint(n.context(), r); !errdefs.IsInvalidArgument(err) {
		t.Errorf("checkpoint by a name: %v", err)
	}
	r.Criu = "/bin/false" // a criu that fails
	if err := n.Checkpoint(n.context(), r); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("checkpoint by /bin/false: %v", err)
	}
}
