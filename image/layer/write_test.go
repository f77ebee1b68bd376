package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"
)

func TestWriteEveryType(t *testing.T) {
	requireRoot(t)
	device := tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Mode: 0o666, Devmajor: 1, Devminor: 3}
	disk := tar.Header{Typeflag: tar.TypeBlock, Name: "dev/sda", Mode: 0o660, Gid: 6, Devmajor: 8, Devminor: 300}
	fifo := tar.Header{Typeflag: tar.TypeFifo, Name: "dev/fifo", Mode: 0o600}
	setuid := file("bin/su", "ELF")
	setuid.Mode, setuid.Uid, setuid.Gid = 0o6755, 1000, 70000
	root, result := mustWrite(t, dir("./", 0o555), dir("bin/", 0o1777), setuid, hardlink("bin/su2", "/bin/su"),
		symlink("bin/link", "/bin/su"), dir("dev", 0o755), device, disk, fifo, file("empty", ""))
	wantTree(t, root,
		"d0555 0:0 .", "d1777 0:0 bin", `-6755 1000:70000 bin/su "ELF" x2`, `-6755 1000:70000 bin/su2 "ELF" x2`,
		"l0777 0:0 bin/link -> /bin/su", "d0755 0:0 dev", "c0666 0:0 dev/null 1,3", "b0660 0:6 dev/sda 8,300",
		"p0600 0:0 dev/fifo", `-0644 0:0 empty ""`)
	if result.RootImplied || result.NeedsParents() {
		t.Errorf("result is %+v, want a layer that stands alone", result)
	}
	if result.Entries != 10 || result.Inodes != 9 {
		t.Errorf("%d entries and %d inodes, want 10 and 9", result.Entries, result.Inodes)
	}
}

func TestWriteTimes(t *testing.T) {
	requireRoot(t)
	when := time.Unix(1_234_567_890, 123_456_789)
	header := func(h tar.Header) tar.Header {
		h.ModTime, h.AccessTime, h.Format = when, when.Add(time.Hour), tar.FormatPAX
		return h
	}
	f := file("d/f", "x")
	f.Header = header(f.Header)
	root, _ := mustWrite(t, header(dir("d", 0o755)), f, header(symlink("d/l", "f")), header(dir("d/e", 0o755)), file("d/e/late", "x"))
	for _, name := range []string{"d", "d/f", "d/l", "d/e"} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(root, name), &st); err != nil {
			t.Fatal(err)
		}
		if got := time.Unix(st.Mtim.Unix()); !got.Equal(when) {
			t.Errorf("%s was changed at %v, want %v", name, got, when)
		}
		if got := time.Unix(st.Atim.Unix()); name == "d/f" && !got.Equal(when.Add(time.Hour)) {
			t.Errorf("%s was read at %v, want %v", name, got, when.Add(time.Hour))
		}
	}
}

func TestWriteXattrs(t *testing.T) {
	requireRoot(t)
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	f := file("ping", "ELF")
	f.Uid, f.Mode = 1000, 0o4755
	f.PAXRecords = map[string]string{
		paxXattr + "security.capability":      capability,
		paxXattr + "user.note":                "hello",
		paxXattr + "trusted.overlay.opaque":   "y",
		paxXattr + "trusted.overlay.origin":   "x",
		paxXattr + "user.overlay.redirect":    "/etc",
		paxXattr + "security.selinux":         "system_u:object_r:bin_t:s0",
		paxXattr + "security.SMACK64EXEC":     "_",
		paxXattr + "trusted.overlay.metacopy": "",
	}
	d := dir("d", 0o755)
	d.PAXRecords = map[string]string{paxXattr + "trusted.overlay.opaque": "y", paxXattr + "user.d": "1"}
	l := symlink("l", "ping")
	l.PAXRecords = map[string]string{paxXattr + "user.l": "Linux has no user attributes of links"}
	root, _ := mustWrite(t, f, d, l)
	for name, want := range map[string]string{
		"ping security.capability": capability, "ping user.note": "hello", "d user.d": "1",
		"ping trusted.overlay.opaque": "", "ping trusted.overlay.origin": "", "ping user.overlay.redirect": "",
		"ping security.selinux": "", "ping security.SMACK64EXEC": "", "d trusted.overlay.opaque": "",
	} {
		path, attr, _ := strings.Cut(name, " ")
		if got := xattr(t, filepath.Join(root, path), attr); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	wantTree(t, root, "d0755 0:0 .", "d0755 0:0 d", "l0777 0:0 l -> ping", `-4755 1000:0 ping "ELF"`)
}

func TestWriteWhiteouts(t *testing.T) {
	requireRoot(t)
	for name, c := range map[string]struct {
		entries []any
		want    []string
		implied []string
	}{
		"a file of below": {
			[]any{dir("d", 0o755), file("d/.wh.gone", "")},
			[]string{"d0755 0:0 d", "c0000 0:0 d/gone 0,0"}, nil,
		},
		"an opaque directory, before and after its files": {
			[]any{dir("d", 0o755), file("d/before", ""), file("d/.wh..wh..opq", ""), file("d/after", "")},
			[]string{"d0755 0:0 d opaque", `-0644 0:0 d/after ""`, `-0644 0:0 d/before ""`}, nil,
		},
		"a file of this layer stays": {
			[]any{file("f", "mine"), file(".wh.f", "")}, []string{`-0644 0:0 f "mine"`}, nil,
		},
		"a file of this layer comes later": {
			[]any{file(".wh.f", ""), file("f", "mine")}, []string{`-0644 0:0 f "mine"`}, nil,
		},
		"a directory of this layer becomes opaque": {
			[]any{dir("d", 0o700), file("d/f", "x"), file(".wh.d", "")},
			[]string{"d0700 0:0 d opaque", `-0644 0:0 d/f "x"`}, nil,
		},
		"a directory comes after its whiteout": {
			[]any{file(".wh.d", ""), dir("d", 0o700), file("d/f", "x")},
			[]string{"d0700 0:0 d opaque", `-0644 0:0 d/f "x"`}, nil,
		},
		"a directory without an entry comes after its whiteout": {
			[]any{file(".wh.d", ""), file("d/f", "x")}, []string{"d0755 0:0 d opaque", `-0644 0:0 d/f "x"`}, nil,
		},
		"in a directory without an entry": {
			[]any{file("usr/.wh.f", "")}, []string{"d0755 0:0 usr", "c0000 0:0 usr/f 0,0"}, []string{"usr"},
		},
		"a directory where a file was": {
			[]any{file("d", "x"), dir("d", 0o755)}, []string{"d0755 0:0 d opaque"}, nil,
		},
		"the root's content": {
			[]any{file(".wh..wh..opq", "")}, nil, nil,
		},
		"names of a driver of old": {
			[]any{file(".wh..wh.aufs", ""), dir(".wh..wh.plnk", 0o700), hardlink(".wh..wh.plnk/1", "x"), file("f", "x")},
			[]string{`-0644 0:0 f "x"`}, nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			root, result := mustWrite(t, c.entries...)
			rootLine := "d0755 0:0 ."
			if name == "the root's content" {
				rootLine += " opaque"
			}
			wantTree(t, root, append(c.want, rootLine)...)
			if !slices.Equal(result.Implied, c.implied) {
				t.Errorf("implied are %q, want %q", result.Implied, c.implied)
			}
			checkUsage(t, root, result)
		})
	}
}

// checkUsage compares the account of Write with what a walk finds.
func checkUsage(t *testing.T, root string, result Result) {
	t.Helper()
	d, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	u, err := measure(context.Background(), int(d.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if u.inodes != result.Inodes || u.size != result.Size {
		t.Errorf("%d inodes and %d bytes, a walk finds %d and %d", result.Inodes, result.Size, u.inodes, u.size)
	}
}

func TestWriteImpliedDirectories(t *testing.T) {
	requireRoot(t)
	_, result := mustWrite(t, file("usr/lib/a-b/f", ""), file("usr/lib/a/b/f", ""), dir("usr/lib", 0o755), file("f", ""))
	if want := []string{"usr", "usr/lib/a", "usr/lib/a-b", "usr/lib/a/b"}; !slices.Equal(result.Implied, want) {
		t.Errorf("implied are %q, want %q", result.Implied, want)
	}
	if !result.RootImplied || !result.NeedsParents() {
		t.Errorf("result is %+v, want the root implied and parents needed", result)
	}
}

func TestWriteDuplicates(t *testing.T) {
	requireRoot(t)
	big := file("f", strings.Repeat("x", 100_000))
	root, result := mustWrite(t, big, file("f", "second"), dir("d", 0o755), file("d/x", "x"), file("d/e/y", "y"),
		file("d", "a file now"), symlink("s", "f"), dir("s", 0o755), file("s/z", "z"), dir("twice", 0o700), dir("twice", 0o711),
		file("h", "h"), hardlink("h", "h"), hardlink("f2", "f"), hardlink("f2", "h"))
	wantTree(t, root, "d0755 0:0 .", `-0644 0:0 f "second"`, `-0644 0:0 d "a file now"`, "d0755 0:0 s opaque", `-0644 0:0 s/z "z"`,
		"d0711 0:0 twice", `-0644 0:0 h "h" x2`, `-0644 0:0 f2 "h" x2`)
	checkUsage(t, root, result)
	if len(result.Implied) != 0 {
		t.Errorf("implied are %q, want none: the directory is gone", result.Implied)
	}
}

func TestWriteKeepsHoles(t *testing.T) {
	requireRoot(t)
	// GNU tar's PAX format 1.0: the map of data comes first in the content.
	size, at := int64(8<<20), int64(4<<20)
	data := bytes.Repeat([]byte("data"), 1024)
	sparseMap := fmt.Sprintf("2\n%d\n%d\n%d\n0\n", at, len(data), size)
	content := sparseMap + strings.Repeat("\x00", 512-len(sparseMap)) + string(data)
	stream := rawPAX(t, "GNUSparseFile.0/disk", map[string]string{
		"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "disk", "GNU.sparse.realsize": fmt.Sprint(size),
	}, content)
	root, result, err := write(t, stream, Options{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(root, "disk"))
	if err != nil || int64(len(got)) != size || !bytes.Equal(got[at:at+int64(len(data))], data) {
		t.Fatalf("content is wrong: %d bytes, %v", len(got), err)
	}
	if n := len(bytes.Trim(got, "\x00")); n != len(data) {
		t.Errorf("%d bytes are not zero, want %d", n, len(data))
	}
	if result.Size > 1<<20 {
		t.Errorf("a file of one block takes %d bytes", result.Size)
	}
	checkUsage(t, root, result)
	if _, _, err := write(t, stream, Options{MaxSize: size - 1}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("over the limit: %v, want it refused", err)
	}
}

// rawPAX makes a tar with PAX records that archive/tar does not write.
func rawPAX(t *testing.T, name string, records map[string]string, content string) []byte {
	t.Helper()
	var pax strings.Builder
	for k, v := range records {
		line := fmt.Sprintf(" %s=%s\n", k, v)
		n := len(line)
		for len(fmt.Sprint(n))+len(line) != n {
			n = len(fmt.Sprint(n)) + len(line)
		}
		fmt.Fprintf(&pax, "%d%s", n, line)
	}
	header := file("PaxHeaders.0/x", pax.String())
	header.Format = tar.FormatUSTAR
	body := file(name, content)
	body.Format = tar.FormatUSTAR
	stream := tarOf(t, header, body)
	stream[156] = tar.TypeXHeader
	copy(stream[148:156], "        ")
	sum := 0
	for _, b := range stream[:512] {
		sum += int(b)
	}
	copy(stream[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return stream
}

func TestWriteReadsToTheEnd(t *testing.T) {
	requireRoot(t)
	stream := append(tarOf(t, file("f", "x")), bytes.Repeat([]byte{7}, 300_000)...)
	path := filepath.Join(t.TempDir(), "layer")
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	d, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	r := bytes.NewReader(stream)
	if _, err := Write(context.Background(), d, r, Options{}); err != nil || r.Len() != 0 {
		t.Fatalf("%d bytes are not read, %v", r.Len(), err)
	}
}

func TestWriteErrors(t *testing.T) {
	requireRoot(t)
	whole := tarOf(t, file("f", strings.Repeat("x", 10_000)))
	for name, c := range map[string]struct {
		stream []byte
		o      Options
		text   string
	}{
		"no tar":           {bytes.Repeat([]byte("garbage"), 300), Options{}, "not a tar stream"},
		"cut off":          {whole[:5000], Options{}, "cut off"},
		"too many entries": {tarOf(t, file("a", ""), file("b", ""), file("c", "")), Options{MaxEntries: 2}, "more than 2 entries"},
		"too large":        {whole, Options{MaxSize: 9_999}, "larger than 9999 bytes"},
	} {
		_, _, err := write(t, c.stream, c.o)
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v, want it refused with %q", name, err, c.text)
		}
	}
	failing := errors.New("connection reset")
	d, _ := os.Open(t.TempDir())
	defer d.Close()
	r := io.MultiReader(bytes.NewReader(whole[:3000]), readerFunc(func([]byte) (int, error) { return 0, failing }))
	if _, err := Write(context.Background(), d, r, Options{}); !errors.Is(err, failing) {
		t.Errorf("%v, want the reader's error", err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestWriteHonoursContext(t *testing.T) {
	requireRoot(t)
	ctx, cancel := context.WithCancel(context.Background())
	d, _ := os.Open(t.TempDir())
	defer d.Close()
	header := tarOf(t, item{tar.Header{Name: "endless", Typeflag: tar.TypeReg, Mode: 0o644, Size: 2 * 512}, strings.Repeat("x", 1024)})[:512]
	reads := 0
	r := io.MultiReader(bytes.NewReader(header), readerFunc(func(p []byte) (int, error) {
		if reads++; reads == 2 {
			cancel()
		}
		return min(len(p), 10), nil
	}))
	if _, err := Write(ctx, d, r, Options{}); !errors.Is(err, context.Canceled) {
		t.Fatalf("%v, want it cancelled", err)
	}
	if reads > 3 {
		t.Errorf("%d reads after the context ended", reads-2)
	}
}

// TestWriteLeavesNoDescriptor also covers layers that fail.
func TestWriteLeavesNoDescriptor(t *testing.T) {
	requireRoot(t)
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	var many []any
	for i := range 100 {
		many = append(many, file(fmt.Sprintf("d%d/e%d/f", i%70, i), "x"))
	}
	many = append(many, symlink("l", "/d1"), file("l/f", "x"), file("d1/e1", "replaces"), hardlink("h", "l/f"))
	good := tarOf(t, many...)
	bad := tarOf(t, append(many, file("l/../x", ""))...)
	before := count()
	for range 3 {
		if _, _, err := write(t, good, Options{}); err != nil {
			t.Fatal(err)
		}
		if _, _, err := write(t, bad, Options{}); err == nil {
			t.Fatal("want an error")
		}
	}
	if after := count(); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func BenchmarkWrite(b *testing.B) {
	requireRoot(b)
	random := rand.New(rand.NewPCG(1, 2))
	var entries []any
	for d := range 100 {
		entries = append(entries, dir(fmt.Sprintf("usr/d%d", d), 0o755))
		for f := range 20 {
			entries = append(entries, file(fmt.Sprintf("usr/d%d/f%d", d, f), strings.Repeat("x", random.IntN(16<<10))))
		}
	}
	stream := tarOf(b, entries...)
	b.SetBytes(int64(len(stream)))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := write(b, stream, Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
