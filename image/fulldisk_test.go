package image

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// smallDisk mounts a fresh ext4 of so many MiB and answers where.
func smallDisk(t *testing.T, mib int64) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root may mount a filesystem")
	}
	file, dir := filepath.Join(t.TempDir(), "disk"), filepath.Join(t.TempDir(), "mnt")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, command := range [][]string{
		{"truncate", "-s", fmt.Sprintf("%dM", mib), file}, {"mkfs.ext4", "-q", "-m", "0", file}, {"mount", "-o", "loop", file, dir},
	} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", command, err, out)
		}
	}
	t.Cleanup(func() {
		// The content store looks for fs-verity when it is opened, and leaves the file to the garbage collector.
		var err error
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			runtime.GC()
			if err = unix.Unmount(dir, 0); err == nil {
				return
			}
		}
		t.Error("unmount the disk:", err)
	})
	return dir
}

// fillDisk leaves so many KiB of the disk free, and answers the file that does it.
func fillDisk(t *testing.T, dir string, leave int64) string {
	t.Helper()
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	file, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for size := int64(fs.Bavail)*fs.Bsize - leave<<10; size > 0; size -= 64 << 10 { // it takes space for itself, too
		if err = unix.Fallocate(int(file.Fd()), 0, 0, size); err == nil {
			return file.Name()
		}
	}
	t.Fatal("no space to fill: ", err)
	return ""
}

// TestFullDisk runs out of space at each stage of a pull: the error says so, nothing half-made is left, and with space again
// the same pull succeeds.
func TestFullDisk(t *testing.T) {
	f := newFakeRegistry(t)
	pushed := f.push("app", "1", []testLayer{
		makeLayer(t, "gzip", map[string]string{"a": noise(6 << 20)}), makeLayer(t, "zstd", map[string]string{"b": noise(5 << 20), "c": noise(5 << 20)}),
	})
	dir := smallDisk(t, 64)
	failed := 0
	for _, leave := range []int64{0, 100, 2000, 5000, 8000, 12_000, 17_000} {
		t.Run(fmt.Sprintf("%d KiB free", leave), func(t *testing.T) {
			s := openStore(t, Config{Root: filepath.Join(dir, "root")})
			defer func() {
				if err := s.Remove(t.Context(), pushed.ref); err != nil {
					t.Error(err)
				}
				assertEmpty(t, s)
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}()
			filler := fillDisk(t, dir, leave)
			_, err := s.Pull(t.Context(), pushed.ref, PullOptions{})
			if err != nil {
				failed++
				if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "no space left on device") {
					t.Errorf("error: %v", err)
				}
				assertNothingHalfMade(t, s)
			}
			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
			mustPull(t, s, pushed.ref)
			assertNothingHalfMade(t, s)
		})
	}
	if failed < 5 {
		t.Errorf("the disk was full %d times of 7", failed)
	}
}
