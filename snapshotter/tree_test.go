package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"golang.org/x/sys/unix"
)

// deepTree nests directories further than any path can say, as a container may.
func deepTree(t *testing.T, dir string, depth int, name string) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range depth {
		if err := unix.Mkdirat(fd, name, 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)
}

func TestDeepTreesAreMeasuredAndRemoved(t *testing.T) {
	var limit, low unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	low = unix.Rlimit{Cur: 400, Max: limit.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) })
	s := oneLayer(t)
	mustPrepare(t, s, "key", "base")
	upper := filepath.Join(s.activePath(2), "fs")
	deepTree(t, upper, 3000, "d")
	deepTree(t, upper, 400, strings.Repeat("n", 200))
	writeFiles(t, upper, "d/d/d/f", "d/d/g")
	usage, err := s.Usage(t.Context(), "key")
	if err != nil || usage.Inodes != 1+3000+400+2 {
		t.Errorf("%d inodes, %v, want %d", usage.Inodes, err, 1+3000+400+2)
	}
	if err := s.Remove(t.Context(), "key"); err != nil {
		t.Fatal(err)
	}
	wantEntries(t, s, trashDir)
}

// TestRemovalThatIsCutOffGoesOn cancels a removal at several places.
func TestRemovalThatIsCutOffGoesOn(t *testing.T) {
	trash := t.TempDir()
	deepTree(t, trash, 300, "layers-7")
	ctx := &countdown{Context: context.Background(), left: 150}
	if err := removeTree(ctx, trash, "layers-7"); !errors.Is(err, context.Canceled) {
		t.Fatalf("%v, want it cancelled", err)
	}
	s := open(t, t.TempDir())
	if err := os.Remove(s.path(trashDir)); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(trash, s.path(trashDir)); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(trash, 0o755); err != nil {
		t.Fatal(err)
	}
	if len(entries(t, s, trashDir)) == 0 {
		t.Fatal("the removal was not cut off")
	}
	if err := s.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantEntries(t, s, trashDir)
}

// countdown is a context that ends when it was asked so often.
type countdown struct {
	context.Context
	left int
}

func (c *countdown) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

// TestUsageIsThatOfDu compares with du(1), of a tree with hard links, holes and all types of files.
func TestUsageIsThatOfDu(t *testing.T) {
	requireRoot(t)
	s := oneLayer(t)
	path, unmount := mounted(t, mustPrepare(t, s, "key", "base"))
	for i := range 200 {
		writeFiles(t, path, fmt.Sprintf("d%d/e/f%d", i%7, i))
		if err := os.WriteFile(filepath.Join(path, fmt.Sprintf("big%d", i)), make([]byte, i*500), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 50 {
		if err := os.Link(filepath.Join(path, "big199"), filepath.Join(path, fmt.Sprintf("link%d", i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Truncate(filepath.Join(path, "big0"), 1<<30); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(strings.Repeat("x", 200), filepath.Join(path, "symlink")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(path, "f")); err != nil {
		t.Fatal(err)
	}
	unmount()
	compare := func(key, dir string) {
		t.Helper()
		got, err := s.Usage(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		want := snapshots.Usage{Size: du(t, "--block-size=1", dir), Inodes: du(t, "--inodes", dir)}
		if got.Inodes != want.Inodes || got.Size < want.Size*99/100 || got.Size > want.Size*101/100 {
			t.Errorf("%s takes %+v, du says %+v", key, got, want)
		}
	}
	compare("key", filepath.Join(s.activePath(2), "fs"))
	if err := s.Commit(t.Context(), "committed", "key"); err != nil {
		t.Fatal(err)
	}
	compare("committed", s.layerPath(2))
	compare("base", s.layerPath(1))
	if _, err := s.View(t.Context(), "view", "base"); err != nil {
		t.Fatal(err)
	}
	if usage, err := s.Usage(t.Context(), "view"); err != nil || usage != (snapshots.Usage{}) {
		t.Errorf("a view takes %+v, %v", usage, err)
	}
}

func du(t *testing.T, option, dir string) int64 {
	t.Helper()
	out, err := exec.Command("du", "-s", option, dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.Fields(string(out))[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
