package layer

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestWriteTarsOfGNUTar packs a tree with tar(1) in its formats and compares what Write makes of it with the tree.
func TestWriteTarsOfGNUTar(t *testing.T) {
	requireRoot(t)
	source := filepath.Join(t.TempDir(), "source")
	makeTree(t, source)
	for _, format := range []string{"--format=gnu", "--format=posix --xattrs --xattrs-include=*", "--format=gnu -S", "--format=posix -S --sparse-version=0.0",
		"--format=posix -S --sparse-version=0.1", "--format=posix -S --sparse-version=1.0"} {
		t.Run(format, func(t *testing.T) {
			args := append(strings.Fields(format), "--numeric-owner", "-C", source, "-cf", "-", ".")
			stream, err := exec.Command("tar", args...).Output()
			if err != nil {
				t.Fatalf("tar %q: %v", args, err)
			}
			root, result, err := write(t, stream, Options{})
			if err != nil {
				t.Fatal(err)
			}
			wantTree(t, root, describe(t, source)...)
			if result.NeedsParents() || result.RootImplied {
				t.Errorf("result is %+v, want a layer that stands alone", result)
			}
			checkUsage(t, root, result)
			sparse := strings.Contains(format, "-S")
			compareContent(t, source, root, strings.Contains(format, "posix"), sparse)
			if strings.Contains(format, "xattrs") {
				if got := xattr(t, filepath.Join(root, "bin/cap"), "security.capability"); got == "" {
					t.Error("the capability of bin/cap is lost")
				}
			}
		})
	}
}

// makeTree makes files of all types, long names, hard links and holes.
func makeTree(t *testing.T, root string) {
	t.Helper()
	long := strings.Repeat("long-name-", 20)
	for _, dir := range []string{"bin", "dev", "empty", long + "/" + long} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, content string, mode uint32, uid int) {
		path := filepath.Join(root, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, uid, uid+1); err != nil {
			t.Fatal(err)
		}
		if err := unix.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	write("bin/su", "ELF", 0o4755, 0)
	write("bin/cap", "ELF", 0o755, 3_000_000)
	write(long+"/"+long+"/ümläut", "x", 0o640, 65534)
	for i := range 50 {
		write(fmt.Sprintf("bin/f%d", i), strings.Repeat("content ", i*i), 0o644, i)
	}
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	steps := []error{
		unix.Setxattr(filepath.Join(root, "bin/cap"), "security.capability", []byte(capability), 0),
		os.Link(filepath.Join(root, "bin/su"), filepath.Join(root, "bin/su2")),
		os.Symlink("../"+long+"/"+long, filepath.Join(root, "bin/link")),
		unix.Mkfifo(filepath.Join(root, "dev/fifo"), 0o622),
		unix.Mknod(filepath.Join(root, "dev/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		unix.Chmod(filepath.Join(root, "empty"), 0o1777),
		unix.Chmod(root, 0o755),
	}
	for _, err := range steps {
		if err != nil {
			t.Fatal(err)
		}
	}
	holes, err := os.Create(filepath.Join(root, "holes"))
	if err != nil {
		t.Fatal(err)
	}
	defer holes.Close()
	for _, at := range []int64{0, 1 << 20, 3<<20 + 123, 8<<20 - 3} {
		if _, err := holes.WriteAt([]byte("abc"), at); err != nil {
			t.Fatal(err)
		}
	}
}

// compareContent compares bytes, times and holes, which describe does not show.
func compareContent(t *testing.T, source, root string, nanoseconds, sparse bool) {
	t.Helper()
	for _, name := range []string{"holes", "bin/f49", "bin", ".", "bin/link", "dev/null"} {
		var want, got unix.Stat_t
		if err := unix.Lstat(filepath.Join(source, name), &want); err != nil {
			t.Fatal(err)
		}
		if err := unix.Lstat(filepath.Join(root, name), &got); err != nil {
			t.Fatal(err)
		}
		if want.Mtim.Sec != got.Mtim.Sec || nanoseconds && want.Mtim.Nsec != got.Mtim.Nsec {
			t.Errorf("%s was changed at %v, want %v", name, got.Mtim, want.Mtim)
		}
		if name == "holes" && sparse && got.Blocks > want.Blocks {
			t.Errorf("the file with holes takes %d blocks, the source %d", got.Blocks, want.Blocks)
		}
		if want.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		a, errA := os.ReadFile(filepath.Join(source, name))
		b, errB := os.ReadFile(filepath.Join(root, name))
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			t.Errorf("%s differs: %v, %v", name, errA, errB)
		}
	}
}
