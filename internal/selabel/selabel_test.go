package selabel

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const label = "system_u:object_r:container_file_t:s0:c1,c2"

// labelOf reads the label of a file itself, "" when it has none.
func labelOf(t *testing.T, path string) string {
	t.Helper()
	value := make([]byte, 256)
	n, err := unix.Lgetxattr(path, attribute, value)
	if errors.Is(err, unix.ENODATA) {
		return ""
	}
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return strings.TrimRight(string(value[:n]), "\x00")
}

func mustWrite(t *testing.T, path string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o644)); err != nil {
		t.Fatal(err)
	}
}

// TestTree labels files, directories and links, and nothing that a link leads to.
func TestTree(t *testing.T) {
	base := t.TempDir()
	tree, outside := filepath.Join(base, "tree"), filepath.Join(base, "outside")
	mustWrite(t, outside+"/file")
	mustWrite(t, tree+"/a/b/file")
	for _, name := range []string{"/a/link", "/link"} {
		if err := os.Symlink(outside, tree+name); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(tree+"/fifo", 0o600); err != nil { // would be waited for if it were opened
		t.Fatal(err)
	}
	for range 2 {
		if err := Tree(t.Context(), tree, label); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{tree, tree + "/a", tree + "/a/b", tree + "/a/b/file", tree + "/a/link", tree + "/link", tree + "/fifo"} {
		if got := labelOf(t, path); got != label {
			t.Errorf("%s has the label %q", path, got)
		}
	}
	for _, path := range []string{base, outside, outside + "/file"} {
		if got := labelOf(t, path); got != "" {
			t.Errorf("%s, which is outside, has the label %q", path, got)
		}
	}
}

func TestTreeRefuses(t *testing.T) {
	for _, path := range []string{"/", "/etc/", "/var/lib", "/proc/self", "/sys/fs"} {
		if err := Tree(t.Context(), path, label); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "the node's") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := Tree(t.Context(), "/no/such", label); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what is not there: %v", err)
	}
	dir := t.TempDir()
	mustWrite(t, dir+"/file")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Tree(ended, dir, label); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
	deep := t.TempDir()
	if err := os.MkdirAll(deep+strings.Repeat("/d", maxDepth+1), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Tree(t.Context(), deep, label); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "deep") {
		t.Errorf("too deep a tree: %v", err)
	}
}

func TestFile(t *testing.T) {
	dir := t.TempDir()
	mustWrite(t, dir+"/file")
	if err := os.Symlink("file", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	if err := File(dir+"/link", label); err != nil {
		t.Fatal(err)
	}
	if labelOf(t, dir+"/link") != label || labelOf(t, dir+"/file") != "" {
		t.Errorf("link: %q, file: %q", labelOf(t, dir+"/link"), labelOf(t, dir+"/file"))
	}
}
