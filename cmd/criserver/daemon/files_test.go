package daemon

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLock(t *testing.T) {
	dir := t.TempDir()
	first, err := lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, err = lock(dir)
	if err == nil || !strings.Contains(err.Error(), "process "+strconv.Itoa(os.Getpid())) || !strings.Contains(err.Error(), dir) {
		t.Errorf("the second lock gives %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	if _, err := lock(filepath.Join(dir, "missing")); err == nil {
		t.Error("a directory that is missing was locked")
	}
}

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.sock")
	listener, err := listen(path, "7")
	if err != nil {
		t.Fatal(err)
	}
	var stat unix.Stat_t
	if err := unix.Lstat(path, &stat); err != nil {
		t.Fatal(err)
	}
	if stat.Mode != unix.S_IFSOCK|0o660 || stat.Gid != 7 || stat.Uid != 0 {
		t.Errorf("mode %o, owner %d:%d", stat.Mode, stat.Uid, stat.Gid)
	}
	if _, err := listen(path, ""); err == nil || !strings.Contains(err.Error(), "another server answers") {
		t.Errorf("a socket that answers gives %v", err)
	}
	// A process that was killed leaves its socket behind.
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Fatalf("the stale socket of this test is gone: %v", err)
	}
	again, err := listen(path, "root")
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	connection, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	connection.Close()
	if err := removeSocket(again, path); err != nil {
		t.Fatal(err)
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 0 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestListenErrors(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listen(file, ""); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("a file gives %v", err)
	}
	if data, _ := os.ReadFile(file); string(data) != "precious" {
		t.Error("the file was changed")
	}
	if _, err := listen(filepath.Join(dir, "s"), "no-such-group"); err == nil || !strings.Contains(err.Error(), "no-such-group") {
		t.Errorf("an unknown group gives %v", err)
	}
	if _, err := listen(filepath.Join(dir, "missing", "s"), ""); err == nil {
		t.Error("a directory that is missing was listened in")
	}
}

func TestOnTmpfs(t *testing.T) {
	if onTmpfs("/proc") {
		t.Error("/proc is not tmpfs")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	if !onTmpfs(dir) {
		t.Error("a tmpfs is not recognised")
	}
}
