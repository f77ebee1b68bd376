package layer_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/image/layer"
)

func TestLocate(t *testing.T) {
	base := t.TempDir()
	upper, middle, lower := base+"/3", base+"/2", base+"/1"
	for _, dir := range []string{upper + "/data/sub", middle + "/data", lower + "/data/sub", lower + "/gone", middle + "/opaque", lower + "/opaque/x"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(lower+"/data/file", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{middle + "/link": "/data/../data/sub", upper + "/out": "../../../data"} {
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(unix.Mknod(middle+"/gone", unix.S_IFCHR, 0), unix.Setxattr(middle+"/opaque", "trusted.overlay.opaque", []byte("y"), 0)); err != nil {
		t.Fatal(err)
	}
	dirs := []string{upper, middle, lower}
	for path, want := range map[string][]string{
		"":         dirs,
		"data":     {upper + "/data", middle + "/data", lower + "/data"},
		"/link":    {upper + "/data/sub", lower + "/data/sub"},
		"out":      {upper + "/data", middle + "/data", lower + "/data"},
		"opaque":   {middle + "/opaque"},
		"gone":     nil,
		"opaque/x": nil,
	} {
		got, err := layer.Locate(dirs, path)
		if !slices.Equal(got.Dirs, want) || (want == nil) != errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v, %v, want %v", path, got, err, want)
		}
	}
	if got, err := layer.Locate(dirs, "data/file"); err != nil || got.File != filepath.Join(lower, "data/file") {
		t.Errorf("a file: %+v, %v", got, err)
	}
}
