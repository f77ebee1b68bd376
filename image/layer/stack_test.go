package layer

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"
)

// threeLayers is a stack, uppermost first, with all that hides and links.
func threeLayers(t *testing.T) []string {
	t.Helper()
	base, _ := mustWrite(t, dir("etc", 0o755), file("etc/passwd", "base"), file("etc/group", "base"), file("etc/shadow", "base"),
		dir("usr", 0o755), dir("usr/lib", 0o755), file("usr/lib/os-release", "base"), symlink("lib", "usr/lib"),
		symlink("etc/os-release", "../usr/lib/os-release"), symlink("etc/abs", "/usr/lib/os-release"),
		symlink("etc/out", "../../../../../../../etc/group"), symlink("etc/loop", "loop"), symlink("etc/dangling", "nothing"),
		dir("opaque", 0o755), file("opaque/f", "base"), dir("replaced", 0o755), file("replaced/f", "base"),
		dir("filed", 0o755), file("filed/f", "base"), tar.Header{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o644},
		tar.Header{Typeflag: tar.TypeChar, Name: "null", Mode: 0o644, Devmajor: 1, Devminor: 3})
	middle, _ := mustWrite(t, dir("etc", 0o755), file("etc/passwd", "middle"), file("etc/.wh.shadow", ""), dir("opaque", 0o755),
		file("opaque/.wh..wh..opq", ""), file("opaque/g", "middle"), file(".wh.replaced", ""), file("filed", "now a file"))
	top, _ := mustWrite(t, dir("etc", 0o755), file("etc/.wh.group", ""), dir("replaced", 0o755), file("replaced/h", "top"),
		dir("filed", 0o755), file("filed/i", "top"), symlink("dir", "usr"))
	return []string{top, middle, base}
}

var stackPaths = []string{
	"/etc/passwd", "etc/passwd", "/etc/group", "/etc/shadow", "/etc/os-release", "/etc/abs", "/etc/out", "/etc/loop", "/etc/dangling",
	"/opaque/f", "/opaque/g", "/replaced/f", "/replaced/h", "/filed", "/filed/f", "/filed/i", "/lib/os-release", "/dir/lib/os-release",
	"/dir/../lib/os-release", "/lib/../../etc/passwd", "/../../etc/passwd", "/etc", "/", "", "/etc/passwd/x", "/nothing/x",
	"/dir/lib/./os-release",
}

// TestReadFileIsWhatOverlayShows compares with a mount of the kernel.
func TestReadFileIsWhatOverlayShows(t *testing.T) {
	requireRoot(t)
	dirs := threeLayers(t)
	target := t.TempDir()
	if err := unix.Mount("overlay", target, "overlay", unix.MS_RDONLY, "index=off,lowerdir="+strings.Join(dirs, ":")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, 0); err != nil {
			t.Error(err)
		}
	})
	root, err := os.Open(target)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, path := range stackPaths {
		want, wantErr := readInRoot(root, path)
		got, err := ReadFile(dirs, path, 1000)
		if string(got) != want || (err == nil) != (wantErr == nil) {
			t.Errorf("%s: %q, %v; overlayfs has %q, %v", path, got, err, want, wantErr)
		}
	}
}

// readInRoot reads a regular file as a process would whose root directory this is.
func readInRoot(root *os.File, path string) (string, error) {
	if path == "" {
		path = "/"
	}
	fd, err := unix.Openat2(int(root.Fd()), path, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return "", err
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	data := make([]byte, 1000)
	n, err := f.Read(data)
	return string(data[:n]), err
}

func TestReadFileErrors(t *testing.T) {
	requireRoot(t)
	dirs := threeLayers(t)
	for _, path := range []string{"/etc/shadow", "/etc/dangling", "/etc", "/", "/fifo", "/null", "/etc/passwd/x", "/opaque/f", "/replaced/f"} {
		if _, err := ReadFile(dirs, path, 1000); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v, want that it does not exist", path, err)
		}
	}
	if _, err := ReadFile(dirs, "/etc/loop", 1000); !errors.Is(err, unix.ELOOP) {
		t.Errorf("loop: %v", err)
	}
	if _, err := ReadFile(dirs, "/etc/passwd", 5); !errdefs.IsResourceExhausted(err) {
		t.Errorf("a file of 6 bytes with a limit of 5: %v", err)
	}
	if data, err := ReadFile(dirs, "/etc/passwd", 6); err != nil || string(data) != "middle" {
		t.Errorf("a file of 6 bytes with a limit of 6: %q, %v", data, err)
	}
	if _, err := ReadFile([]string{filepath.Join(dirs[0], "missing")}, "/x", 5); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("a layer that is not there: %v", err)
	}
	opaqueRoot, _ := mustWrite(t, file(".wh..wh..opq", ""), file("f", "x"))
	if _, err := ReadFile([]string{opaqueRoot, dirs[2]}, "/etc/passwd", 1000); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("below an opaque root: %v, want that it does not exist", err)
	}
}

func FuzzReadFile(f *testing.F) {
	requireRoot(f)
	top := f.TempDir()
	for _, dir := range []string{"upper/a/b", "lower/a/c"} {
		if err := os.MkdirAll(filepath.Join(top, dir), 0o755); err != nil {
			f.Fatal(err)
		}
	}
	for name, target := range map[string]string{"upper/l": "../..", "upper/a/up": "..", "lower/a/c/abs": "/a", "lower/m": "l/../a/b"} {
		if err := os.Symlink(target, filepath.Join(top, name)); err != nil {
			f.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(top, "secret"), []byte("secret"), 0o600); err != nil {
		f.Fatal(err)
	}
	for _, path := range append(stackPaths, "l/secret", "a/up/../secret", "a/c/abs/up/l/secret", "m/x") {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		data, err := ReadFile([]string{filepath.Join(top, "upper"), filepath.Join(top, "lower")}, path, 100)
		if err == nil {
			t.Fatalf("%q reads %q; the layers hold no file", path, data)
		}
	})
}

func TestAdopt(t *testing.T) {
	requireRoot(t)
	capable := dir("opt", 0o1711)
	capable.Uid, capable.Gid = 7, 8
	capable.PAXRecords = map[string]string{paxXattr + "user.note": "base"}
	below, _ := mustWrite(t, capable, dir("opt/sub", 0o700), dir("usr", 0o755), dir("usr/lib", 0o750), symlink("lib", "usr/lib"),
		symlink("usr/lib/abs", "/opt/sub"), file("usr/lib/libc", "C"), symlink("usr/alias", "lib/libc"), symlink("nowhere", "missing/dir"))
	for name, c := range map[string]struct {
		entries []any
		want    []string
		implied []string
	}{
		"attributes": {
			[]any{file("opt/sub/f", "x")},
			[]string{"d1711 7:8 opt", "d0700 0:0 opt/sub", `-0644 0:0 opt/sub/f "x"`}, []string{"opt", "opt/sub"},
		},
		"a link to a directory": {
			[]any{file("lib/new/f", "x"), file("lib/g", "y")},
			[]string{"d0755 0:0 usr", "d0750 0:0 usr/lib", `-0644 0:0 usr/lib/g "y"`, "d0755 0:0 usr/lib/new", `-0644 0:0 usr/lib/new/f "x"`},
			[]string{"usr", "usr/lib", "usr/lib/new"},
		},
		"a link to a directory that the layer has as well": {
			[]any{dir("usr", 0o711), dir("usr/lib", 0o711), dir("usr/lib/d", 0o700), file("usr/lib/d/e", "e"), file("lib/d/f", "f"), file("lib/.wh.libc", "")},
			[]string{"d0711 0:0 usr", "d0711 0:0 usr/lib", "d0700 0:0 usr/lib/d", `-0644 0:0 usr/lib/d/e "e"`, `-0644 0:0 usr/lib/d/f "f"`, "c0000 0:0 usr/lib/libc 0,0"},
			nil,
		},
		"links on links": {
			[]any{file("lib/abs/f", "x")},
			[]string{"d0755 0:0 usr", "d0750 0:0 usr/lib", "d1711 7:8 opt", "d0700 0:0 opt/sub", `-0644 0:0 opt/sub/f "x"`},
			[]string{"opt", "opt/sub", "usr", "usr/lib"},
		},
		"a link to nowhere": {
			[]any{file("nowhere/f", "x")}, []string{"d0755 0:0 nowhere", `-0644 0:0 nowhere/f "x"`}, []string{"nowhere"},
		},
		"below an opaque directory nothing is inherited": {
			[]any{dir("opt", 0o755), file("opt/.wh..wh..opq", ""), file("opt/sub/f", "x")},
			[]string{"d0755 0:0 opt opaque", "d0755 0:0 opt/sub", `-0644 0:0 opt/sub/f "x"`}, []string{"opt/sub"},
		},
		"an opaque directory without an entry": {
			[]any{file("lib/.wh..wh..opq", ""), file("lib/f", "x")},
			[]string{"d0755 0:0 usr", "d0750 0:0 usr/lib opaque", `-0644 0:0 usr/lib/f "x"`}, []string{"usr", "usr/lib"},
		},
		"hard links to below": {
			[]any{hardlink("libc", "usr/lib/libc"), hardlink("usr/copy", "usr/alias")},
			[]string{`-0644 0:0 libc "C"`, "d0755 0:0 usr", "l0777 0:0 usr/copy -> lib/libc"}, []string{"usr"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			root, result := mustWrite(t, c.entries...)
			if !result.NeedsParents() {
				t.Fatal("want a layer that needs parents")
			}
			d, err := os.Open(root)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if err := Adopt(t.Context(), d, &result, []string{below}); err != nil {
				t.Fatal(err)
			}
			wantTree(t, root, append(c.want, "d0755 0:0 .")...)
			if !slices.Equal(result.Implied, c.implied) {
				t.Errorf("implied are %q, want %q", result.Implied, c.implied)
			}
			checkUsage(t, root, result)
			if name == "attributes" {
				if got := xattr(t, filepath.Join(root, "opt"), "user.note"); got != "base" {
					t.Errorf("user.note is %q, want base", got)
				}
				if info, _ := os.Stat(filepath.Join(root, "opt/sub")); !info.ModTime().Equal(epoch) {
					t.Errorf("opt/sub was changed at %v, want %v", info.ModTime(), epoch)
				}
			}
		})
	}
}

func TestAdoptKeepsTimesOfExplicitDirectories(t *testing.T) {
	requireRoot(t)
	below, _ := mustWrite(t, dir("usr", 0o755), dir("usr/lib", 0o755), symlink("lib", "usr/lib"), file("f", "x"))
	root, result := mustWrite(t, dir("./", 0o755), dir("usr", 0o755), dir("usr/lib", 0o755), file("lib/g", "y"), hardlink("usr/h", "f"))
	d, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := Adopt(t.Context(), d, &result, []string{below}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".", "usr", "usr/lib"} {
		if info, err := os.Stat(filepath.Join(root, name)); err != nil || !info.ModTime().Equal(epoch) {
			t.Errorf("%s was changed at %v, want %v (%v)", name, info.ModTime(), epoch, err)
		}
	}
}

func TestAdoptRefusesLinksToNothing(t *testing.T) {
	requireRoot(t)
	root, result := mustWrite(t, hardlink("h", "missing/file"), hardlink("gone", "missing"), file("gone", "taken by a later entry"))
	if want := []Link{{"h", "missing/file"}}; !slices.Equal(result.Links, want) {
		t.Fatalf("links are %v, want %v", result.Links, want)
	}
	d, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	err = Adopt(t.Context(), d, &result, nil)
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(fmt.Sprint(err), `"h"`) {
		t.Errorf("%v, want it refused with the entry's name", err)
	}
}
