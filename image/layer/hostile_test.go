package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"
)

// outside is what lies around a layer directory and must not change.
type outside struct {
	top    string
	before string
}

// newOutside makes a directory with files that hostile layers try to reach, and an empty layer directory in it.
func newOutside(t testing.TB) *outside {
	t.Helper()
	o := &outside{top: t.TempDir()}
	for _, dir := range []string{"layer", "victim/dir", "etc"} {
		if err := os.MkdirAll(filepath.Join(o.top, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"victim/file", "victim/dir/deep", "etc/passwd", "file"} {
		if err := os.WriteFile(filepath.Join(o.top, name), []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o.before = o.state(t)
	return o
}

func (o *outside) layer() string { return filepath.Join(o.top, "layer") }

// state lists everything but the layer, with times, owners, links and content.
func (o *outside) state(t testing.TB) string {
	t.Helper()
	var b strings.Builder
	for _, dir := range []string{".", "victim", "etc"} {
		entries, err := os.ReadDir(filepath.Join(o.top, dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range entries {
			path := filepath.Join(o.top, dir, entry.Name())
			if path == o.layer() {
				continue
			}
			var st unix.Stat_t
			if err := unix.Lstat(path, &st); err != nil {
				t.Fatal(err)
			}
			content, _ := os.ReadFile(path)
			fmt.Fprintf(&b, "%s %o %d:%d %d %v %v %q\n", path, st.Mode, st.Uid, st.Gid, st.Nlink, st.Mtim, st.Ctim, content)
		}
	}
	return b.String()
}

func (o *outside) check(t testing.TB) {
	t.Helper()
	if after := o.state(t); after != o.before {
		t.Fatalf("the layer changed what is outside:\n%s\nwas\n%s", after, o.before)
	}
}

// hostile is the corpus: layers that try to get out, with what becomes of them. A nil want means that they are refused.
func hostile(t testing.TB, o *outside) map[string]struct {
	entries []any
	want    []string
} {
	t.Helper()
	victim := filepath.Join(o.top, "victim")
	huge := file("f", "")
	huge.PAXRecords = map[string]string{paxXattr + "user.huge": strings.Repeat("v", 100_000)}
	long := file("f", "")
	long.PAXRecords = map[string]string{paxXattr + "user." + strings.Repeat("n", 300): "v"}
	nobody := file("f", "")
	nobody.Uid = 1<<32 - 1
	d := "d0755 0:0 ."
	return map[string]struct {
		entries []any
		want    []string
	}{
		"name with ..":            {[]any{file("../victim/file", "owned")}, nil},
		"name with .. in between": {[]any{dir("a", 0o755), file("a/../../victim/file", "owned")}, nil},
		"absolute name":           {[]any{file(victim+"/x", "owned")}, []string{"..."}},
		"whiteout with ..":        {[]any{file("../.wh.file", "")}, nil},
		"whiteout of ..":          {[]any{file(".wh...", "")}, nil},
		"whiteout of .":           {[]any{file("a/.wh..", "")}, nil},
		"whiteout of nothing":     {[]any{file(".wh.", "")}, nil},
		"whiteout in a whiteout":  {[]any{file(".wh.a/b", "")}, nil},
		"opaque through a link":   {[]any{symlink("l", victim), file("l/.wh..wh..opq", "")}, []string{"..."}},
		"whiteout through a link": {[]any{symlink("l", "../victim"), file("l/.wh.file", "")},
			[]string{d, "l0777 0:0 l -> ../victim", "d0755 0:0 victim", "c0000 0:0 victim/file 0,0"}},
		"file through an absolute link": {[]any{symlink("l", victim), file("l/file", "owned")}, []string{"..."}},
		"file through a relative link": {[]any{symlink("l", "../../../etc"), file("l/passwd", "root")},
			[]string{d, "l0777 0:0 l -> ../../../etc", "d0755 0:0 etc", `-0644 0:0 etc/passwd "root"`}},
		"file over a link": {[]any{symlink("l", victim+"/file"), file("l", "owned")}, []string{d, `-0644 0:0 l "owned"`}},
		"directory over a link": {[]any{symlink("l", victim), dir("l", 0o777), file("l/file", "owned")},
			[]string{d, "d0777 0:0 l opaque", `-0644 0:0 l/file "owned"`}},
		"a chain of links": {[]any{symlink("a", "b"), symlink("b", "/c/.."), dir("c", 0o755), symlink("c/up", ".."),
			file("a/c/up/x", "x")}, []string{d, "l0777 0:0 a -> b", "l0777 0:0 b -> /c/..", "d0755 0:0 c", "l0777 0:0 c/up -> ..", `-0644 0:0 x "x"`}},
		"a loop of links":      {[]any{symlink("a", "b"), symlink("b", "a"), file("a/x", "")}, nil},
		"a link to itself":     {[]any{symlink("a", "a/b"), file("a/x", "")}, nil},
		"parent is a file":     {[]any{file("a", ""), file("a/b", "")}, nil},
		"parent is a device":   {[]any{tar.Header{Typeflag: tar.TypeChar, Name: "n", Devmajor: 1, Devminor: 3}, file("n/b", "")}, nil},
		"times through a link": {[]any{dir("a", 0o755), dir("a/dir", 0o700), symlink("a", victim)}, []string{d, "l0777 0:0 a -> " + victim}},
		"replace a full tree":  {[]any{file("a/b/c/d", ""), symlink("a/l", victim), file("a", "x")}, []string{d, `-0644 0:0 a "x"`}},
		"replace through a link": {[]any{symlink("l", ".."), dir("l/victim", 0o700), file("l/victim", "x")},
			[]string{d, "l0777 0:0 l -> ..", `-0644 0:0 victim "x"`}},
		"root is a file":           {[]any{file(".", "x")}, nil},
		"root is a link":           {[]any{symlink(".", victim)}, nil},
		"hard link with ..":        {[]any{hardlink("h", "../victim/file")}, nil},
		"hard link of a link":      {[]any{symlink("l", victim+"/file"), hardlink("h", "l"), file("h", "owned")}, []string{d, `-0644 0:0 h "owned"`, "l0777 0:0 l -> " + victim + "/file"}},
		"hard link to a directory": {[]any{dir("d", 0o755), hardlink("h", "d")}, nil},
		"hard link to the root":    {[]any{hardlink("h", "/")}, nil},
		"hard link through a link": {[]any{symlink("l", "../victim"), hardlink("h", "l/file")}, []string{d, "l0777 0:0 l -> ../victim"}},
		"huge attribute":           {[]any{huge}, nil},
		"long attribute name":      {[]any{long}, nil},
		"owner that is none":       {[]any{nobody}, nil},
		"device number":            {[]any{tar.Header{Typeflag: tar.TypeBlock, Name: "b", Devmajor: 1 << 12, Devminor: 1}}, nil},
		"unknown type":             {[]any{tar.Header{Typeflag: 'Z', Name: "z"}}, nil},
		"empty link":               {[]any{symlink("l", "")}, nil},
		"long name":                {[]any{file(strings.Repeat("n", 300), "")}, nil},
		"deep name":                {[]any{file(strings.Repeat("d/", 600)+"f", "")}, nil},
		"deep by links": {[]any{dir(strings.Repeat("d/", 400), 0o755), symlink("l", strings.Repeat("d/", 400)),
			file("l/"+strings.Repeat("e/", 400)+"f", "")}, nil},
	}
}

func TestHostileLayers(t *testing.T) {
	requireRoot(t)
	names := hostile(t, newOutside(t))
	for name := range names {
		t.Run(name, func(t *testing.T) {
			o := newOutside(t)
			c := hostile(t, o)[name]
			_, err := writeTo(t, o.layer(), tarOf(t, c.entries...), Options{})
			o.check(t)
			switch {
			case c.want == nil:
				if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "entry ") {
					t.Errorf("%v, want it refused with the entry's name", err)
				}
			case err != nil:
				t.Error(err)
			case c.want[0] == "...":
				// The layer has the whole path of this test's directory in it.
				if entries, _ := os.ReadDir(filepath.Join(o.layer(), o.top, "victim")); entries == nil && name != "opaque through a link" {
					t.Errorf("nothing is in the layer at %s", o.top)
				}
			default:
				wantTree(t, o.layer(), c.want...)
			}
		})
	}
}

// withChecksums makes the headers of a mutated tar acceptable again, so that what they say is tried.
func withChecksums(stream []byte) []byte {
	stream = bytes.Clone(stream)
	for at := 0; at+512 <= len(stream); {
		header := stream[at : at+512]
		at += 512
		if bytes.Equal(header, make([]byte, 512)) {
			continue
		}
		copy(header[148:156], "        ")
		sum := 0
		for _, b := range header {
			sum += int(b)
		}
		copy(header[148:156], fmt.Sprintf("%06o\x00 ", sum))
		size, err := strconv.ParseUint(strings.Trim(string(header[124:136]), " \x00"), 8, 32)
		if err == nil && header[156] != tar.TypeLink && header[156] != tar.TypeSymlink && header[156] != tar.TypeDir {
			at += int(size+511) / 512 * 512
		}
	}
	return stream
}

// FuzzWrite unpacks arbitrary tars and checks that nothing outside the layer changes, that the account is right, and that what
// was accepted can be adopted and read.
func FuzzWrite(f *testing.F) {
	requireRoot(f)
	o := newOutside(f)
	for _, c := range hostile(f, o) {
		f.Add(tarOf(f, c.entries...))
	}
	f.Add(tarOf(f, dir("usr", 0o755), file("usr/f", "x"), hardlink("usr/g", "usr/f"), file("usr/.wh.x", ""), file("lib/f", "x")))
	f.Fuzz(func(t *testing.T, stream []byte) {
		stream = withChecksums(stream)
		o := newOutside(t)
		lower := filepath.Join(o.top, "layer-below")
		if err := os.MkdirAll(filepath.Join(lower, "usr/lib"), 0o711); err != nil {
			t.Fatal(err)
		}
		for _, link := range [][2]string{{"usr/lib", "lib"}, {"../../victim", "l"}, {"/", "a"}} {
			if err := os.Symlink(link[0], filepath.Join(lower, link[1])); err != nil {
				t.Fatal(err)
			}
		}
		o.before = o.state(t)
		d, err := os.Open(o.layer())
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		result, err := Write(context.Background(), d, bytes.NewReader(stream), Options{MaxSize: 1 << 20, MaxEntries: 1000})
		o.check(t)
		if err != nil {
			return
		}
		u, err := measure(context.Background(), int(d.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		if u.inodes != result.Inodes || u.size != result.Size {
			t.Errorf("%d inodes and %d bytes, a walk finds %d and %d", result.Inodes, result.Size, u.inodes, u.size)
		}
		if result.NeedsParents() {
			_ = Adopt(context.Background(), d, &result, []string{lower})
			o.check(t)
		}
		for _, path := range []string{"/etc/passwd", "l/file", "a/b/c", "../victim/file"} {
			if data, err := ReadFile([]string{o.layer(), lower}, path, 1<<20); err == nil && string(data) == "precious" {
				t.Errorf("%s is read from outside", path)
			}
		}
	})
}
