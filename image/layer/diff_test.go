package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// TestDiffAndWrite: what Diff writes of a directory, Write makes the same directory of.
func TestDiffAndWrite(t *testing.T) {
	requireRoot(t)
	from, _ := mustWrite(t,
		dir("./", 0o750), dir("d", 0o1777), file("d/f", "content"), symlink("d/link", "/nowhere"), hardlink("d/second", "d/f"),
		tar.Header{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3, ModTime: epoch},
		tar.Header{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o600, ModTime: epoch},
		file(".wh.gone", ""), dir("opaque", 0o700), file("opaque/.wh..wh..opq", ""), file("opaque/f", "x"))
	if err := unix.Lsetxattr(filepath.Join(from, "d", "f"), "user.note", []byte("kept"), 0); err != nil {
		t.Fatal(err)
	}
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(socket)
	want := describe(t, from)
	if err := unix.Bind(socket, &unix.SockaddrUnix{Name: filepath.Join(from, "socket")}); err != nil {
		t.Fatal(err)
	}
	var stream, again bytes.Buffer
	for _, w := range []*bytes.Buffer{&stream, &again} {
		if err := diff(t, from, w); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(stream.Bytes(), again.Bytes()) {
		t.Error("two tars of one directory differ")
	}
	to, result, err := write(t, stream.Bytes(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if result.NeedsParents() || result.RootImplied {
		t.Errorf("it leaves something open: %+v", result)
	}
	if got := describe(t, to); !slices.Equal(got, want) {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
	if got := xattr(t, filepath.Join(to, "d", "f"), "user.note"); got != "kept" {
		t.Errorf("the attribute is %q", got)
	}
	a, errA := os.Stat(filepath.Join(to, "d", "f"))
	b, errB := os.Stat(filepath.Join(to, "d", "second"))
	if errA != nil || errB != nil || !os.SameFile(a, b) {
		t.Errorf("hard links: %v, %v", errA, errB)
	}
}

func TestDiffRefusesWhatOnlyThisOverlayMeans(t *testing.T) {
	requireRoot(t)
	from, _ := mustWrite(t, dir("moved", 0o700))
	if err := unix.Lsetxattr(filepath.Join(from, "moved"), "trusted.overlay.redirect", []byte("old"), 0); err != nil {
		t.Fatal(err)
	}
	if err := diff(t, from, &bytes.Buffer{}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a moved directory: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	f, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := Diff(ctx, f, &bytes.Buffer{}); err == nil {
		t.Error("a context that has ended does not end it")
	}
}

func diff(t *testing.T, path string, w *bytes.Buffer) error {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return Diff(t.Context(), f, w)
}
