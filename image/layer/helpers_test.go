package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var epoch = time.Unix(1_600_000_000, 0)

func requireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs CAP_CHOWN, CAP_MKNOD and CAP_SYS_ADMIN (trusted.* attributes)")
	}
}

// The entries of tests.
func dir(name string, mode int64) tar.Header {
	return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode, ModTime: epoch}
}

func file(name, content string) item {
	return item{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, ModTime: epoch, Size: int64(len(content))}, content}
}

func symlink(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, ModTime: epoch}
}

func hardlink(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, ModTime: epoch}
}

type item struct {
	tar.Header
	content string
}

// tarOf builds a tar of headers and items.
func tarOf(t testing.TB, entries ...any) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, entry := range entries {
		var e item
		switch v := entry.(type) {
		case tar.Header:
			e.Header = v
		case item:
			e = v
		}
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatalf("header %q: %v", e.Name, err)
		}
		if _, err := w.Write([]byte(e.content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// write unpacks into a new directory.
func write(t testing.TB, stream []byte, o Options) (string, Result, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "layer")
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	result, err := writeTo(t, path, stream, o)
	return path, result, err
}

func writeTo(t testing.TB, path string, stream []byte, o Options) (Result, error) {
	t.Helper()
	d, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	return Write(context.Background(), d, bytes.NewReader(stream), o)
}

func mustWrite(t testing.TB, entries ...any) (string, Result) {
	t.Helper()
	path, result, err := write(t, tarOf(t, entries...), Options{})
	if err != nil {
		t.Fatal(err)
	}
	return path, result
}

// describe lists a tree, one line a file: type and mode, owner, path, and what it holds.
func describe(t testing.TB, root string) []string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		line := fmt.Sprintf("%s%04o %d:%d %s", kindOf(&st), st.Mode&0o7777, st.Uid, st.Gid, rel)
		lines = append(lines, line+holds(t, path, &st))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(lines)
	return lines
}

func kindOf(st *unix.Stat_t) string {
	return map[uint32]string{
		unix.S_IFREG: "-", unix.S_IFDIR: "d", unix.S_IFLNK: "l", unix.S_IFCHR: "c", unix.S_IFBLK: "b", unix.S_IFIFO: "p",
	}[st.Mode&unix.S_IFMT]
}

func holds(t testing.TB, path string, st *unix.Stat_t) string {
	t.Helper()
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(data) > 64 {
			data = []byte(fmt.Sprintf("(%d bytes)", len(data)))
		}
		if st.Nlink > 1 {
			return fmt.Sprintf(" %q x%d", data, st.Nlink)
		}
		return fmt.Sprintf(" %q", data)
	case unix.S_IFLNK:
		target, _ := os.Readlink(path)
		return " -> " + target
	case unix.S_IFCHR, unix.S_IFBLK:
		return fmt.Sprintf(" %d,%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	case unix.S_IFDIR:
		if xattr(t, path, opaqueXattr) != "" {
			return " opaque"
		}
	}
	return ""
}

// xattr answers an attribute, "" when there is none.
func xattr(t testing.TB, path, name string) string {
	t.Helper()
	buf := make([]byte, 64<<10)
	n, err := unix.Lgetxattr(path, name, buf)
	if errors.Is(err, unix.ENODATA) {
		return ""
	}
	if err != nil {
		t.Fatalf("%s of %s: %v", name, path, err)
	}
	return string(buf[:n])
}

func wantTree(t testing.TB, root string, want ...string) {
	t.Helper()
	got := describe(t, root)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("tree is\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}
