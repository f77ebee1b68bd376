package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// member is an entry of an archive; one without a type is a regular file.
type member struct {
	name, link string
	kind       byte
	body       []byte
	size       int64 // instead of the body's
}

func makeArchive(t testing.TB, members ...member) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, m := range members {
		h := &tar.Header{Typeflag: m.kind, Name: m.name, Linkname: m.link, Mode: 0o644, Size: int64(len(m.body))}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if m.size != 0 {
			h.Size = m.size
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(m.body); err != nil {
			t.Fatal(err)
		}
	}
	_ = w.Close() // fails where a size is a lie
	return out.Bytes()
}

// sparseArchive has a file with holes, as GNU tar says it in PAX records, which Go's writer does not write.
func sparseArchive(t testing.TB) []byte {
	data := makeArchive(t, member{name: "x", body: []byte("22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n")}, member{name: "h", body: append([]byte("0\n"), make([]byte, 510)...)})
	sum, err := strconv.ParseUint(strings.Trim(string(data[148:156]), " \x00"), 8, 32)
	if err != nil {
		t.Fatal(err)
	}
	data[156] = tar.TypeXHeader
	copy(data[148:], fmt.Sprintf("%06o\x00 ", sum+tar.TypeXHeader-tar.TypeReg))
	return data
}

func asJSON(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func blobMember(data []byte) member {
	return member{name: blobPath(digest.FromBytes(data)), body: data}
}

func layoutMember() member {
	return member{name: "oci-layout", body: []byte(`{"imageLayoutVersion":"1.0.0"}`)}
}

// savedImage is what docker saved of old: layers as plain tars in directories, one of them by a link, manifest.json last.
func savedImage(t *testing.T, tags ...string) (members []member, id string) {
	t.Helper()
	one, two := makeLayer(t, "", map[string]string{"a": "1"}), makeLayer(t, "gzip", map[string]string{"b": "2"})
	config := asJSON(t, ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{one.diffID, two.diffID, one.diffID}},
	})
	id = digest.FromBytes(config).String()
	name := strings.TrimPrefix(id, "sha256:") + ".json"
	return []member{
		{name: "1/", kind: tar.TypeDir}, {name: "1/VERSION", body: []byte("1.0")}, {name: "1/layer.tar", body: one.blob},
		{name: "2/layer.tar", body: two.blob}, {name: "3/layer.tar", kind: tar.TypeSymlink, link: "../1/layer.tar"},
		{name: name, body: config},
		{name: "manifest.json", body: asJSON(t, []dockerImage{{Config: name, RepoTags: tags, Layers: []string{"1/layer.tar", "2/layer.tar", "3/layer.tar"}}})},
		{name: "repositories", body: []byte("{}")},
	}, id
}

func TestImportSaved(t *testing.T) {
	s := openStore(t, Config{})
	members, id := savedImage(t, "team/app:1", "example.com/app:2")
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(makeArchive(t, members...)); err != nil || z.Close() != nil {
		t.Fatal(err)
	}
	for _, archive := range [][]byte{makeArchive(t, members...), packed.Bytes()} {
		imported, err := s.Import(t.Context(), bytes.NewReader(archive), ImportOptions{})
		want := []string{"docker.io/team/app:1", "example.com/app:2"}
		if err != nil || len(imported) != 1 || imported[0].ID != id || !slices.Equal(imported[0].Names, want) {
			t.Fatalf("imported %+v, %v", imported, err)
		}
	}
	assertNothingHalfMade(t, s)
	mounts, err := s.Prepare(t.Context(), "c", "team/app:1")
	if err != nil {
		t.Fatal(err)
	}
	if got := readMounted(t, mounts, "a", "b"); got != "12" {
		t.Errorf("the container sees %q", got)
	}
	if err := s.gc.run(s.storeContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	f := newFakeRegistry(t)
	if pushed, err := s.Push(t.Context(), id, PushOptions{To: f.host + "/app:1"}); err != nil || pushed.Uploaded != 4 {
		t.Errorf("pushed %+v, %v", pushed, err)
	}
	other := openStore(t, Config{})
	if got := mustPull(t, other, f.host+"/app:1"); got.ID != id {
		t.Errorf("pulled %s", got.ID)
	}
	if err := errors.Join(s.Release(t.Context(), "c"), s.Remove(t.Context(), id)); err != nil {
		t.Fatal(err)
	}
	assertEmpty(t, s)
}

func TestExportImport(t *testing.T) {
	f, to := newFakeRegistry(t), newFakeRegistry(t)
	index, _ := f.pushIndex("team/multi", "1")
	ref := f.host + "/team/multi:1"
	s := openStore(t, Config{})
	own := mustPull(t, s, ref)
	plain := f.push("team/plain", "1", []testLayer{makeLayer(t, "gzip", map[string]string{"bin/run": "own"})})
	mustPull(t, s, plain.ref)

	var whole, again bytes.Buffer
	exported, err := s.Export(t.Context(), &whole, []string{ref, plain.ref}, ExportOptions{SendOptions: SendOptions{All: true}, Docker: true})
	if err != nil || len(exported) != 2 || exported[0].Digest != index.Digest || exported[0].Name != ref || len(exported[0].Missing) > 0 {
		t.Fatalf("exported %+v, %v", exported, err)
	}
	if _, err := s.Export(t.Context(), &again, []string{ref, plain.ref}, ExportOptions{SendOptions: SendOptions{All: true}, Docker: true}); err != nil || !bytes.Equal(whole.Bytes(), again.Bytes()) {
		t.Errorf("the second archive differs: %v", err)
	}
	assertNothingHalfMade(t, s)

	other := openStore(t, Config{})
	imported, err := other.Import(t.Context(), bytes.NewReader(whole.Bytes()), ImportOptions{})
	if err != nil || len(imported) != 2 || imported[0].ID != own.ID || imported[0].Digest != index.Digest || len(imported[0].Missing) > 0 {
		t.Fatalf("imported %+v, %v", imported, err)
	}
	if err := other.gc.run(other.storeContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	pushed, err := other.Push(t.Context(), ref, PushOptions{To: to.host + "/back:1"})
	if err != nil || pushed.Digest != index.Digest {
		t.Fatalf("pushed %+v, %v", pushed, err)
	}
	assertSame(t, f, "team/multi:1", to, "back:1")

	var partly bytes.Buffer
	exported, err = s.Export(t.Context(), &partly, []string{ref}, ExportOptions{})
	if err != nil || len(exported[0].Missing) != 2 || exported[0].Digest == index.Digest {
		t.Errorf("exported %+v, %v", exported, err)
	}
	for _, image := range []string{own.ID, plain.id} {
		if err := other.Remove(t.Context(), image); err != nil {
			t.Fatal(err)
		}
	}
	assertEmpty(t, other)
	imported, err = other.Import(t.Context(), bytes.NewReader(partly.Bytes()), ImportOptions{Name: "example.com/renamed"})
	if err != nil || imported[0].ID != own.ID || !slices.Equal(imported[0].Names, []string{"example.com/renamed:1"}) {
		t.Errorf("imported %+v, %v", imported, err)
	}
}

// TestImportSparse reads a layout whose index names a platform that is not there, as tools write it for one platform.
func TestImportSparse(t *testing.T) {
	f := newFakeRegistry(t)
	_, other := f.pushIndex("team/multi", "1")
	s := openStore(t, Config{})
	mustPull(t, s, f.host+"/team/multi:1")
	var whole, sparse bytes.Buffer
	if _, err := s.Export(t.Context(), &whole, []string{f.host + "/team/multi:1"}, ExportOptions{SendOptions: SendOptions{All: true}}); err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(&sparse)
	for r := tar.NewReader(&whole); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if strings.HasSuffix(h.Name, other.manifest.Digest.Encoded()) {
			continue
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(w, r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	fresh := openStore(t, Config{})
	imported, err := fresh.Import(t.Context(), &sparse, ImportOptions{})
	if err != nil || len(imported) != 1 || len(imported[0].Missing) != 1 || !strings.Contains(imported[0].Missing[0], other.manifest.Digest.String()) {
		t.Errorf("imported %+v, %v", imported, err)
	}
}

func TestImportHostile(t *testing.T) {
	s := openStore(t, Config{})
	saved, _ := savedImage(t, "app:1")
	without := func(name string) []member {
		return slices.DeleteFunc(slices.Clone(saved), func(m member) bool { return m.name == name })
	}
	with := func(more ...member) []member { return append(more, saved...) }
	index := func(d ocispec.Descriptor, annotations map[string]string) member {
		d.Annotations = annotations
		return member{name: "index.json", body: asJSON(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{d}})}
	}
	missing := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("gone"), Size: 4}
	artifact := asJSON(t, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{MediaType: "application/vnd.example", Digest: digest.FromString("{}"), Size: 2}, Layers: []ocispec.Descriptor{},
	})
	bomb := makeArchive(t, member{name: "a", body: []byte("x"), size: 1 << 50})
	for name, tt := range map[string]struct {
		archive []byte
		kind    func(error) bool
		says    string
	}{
		"nothing":             {nil, errdefs.IsInvalidArgument, "not a tar"},
		"no tar":              {[]byte(strings.Repeat("garbage ", 200)), errdefs.IsInvalidArgument, "not a tar"},
		"no image archive":    {makeArchive(t, member{name: "a"}), errdefs.IsInvalidArgument, "neither an OCI layout"},
		"cut off":             {makeArchive(t, saved...)[:3000], errdefs.IsInvalidArgument, "EOF"},
		"an absolute name":    {makeArchive(t, with(member{name: "/etc/passwd"})...), errdefs.IsInvalidArgument, "absolute"},
		"a name that leaves":  {makeArchive(t, with(member{name: "a/../../b"})...), errdefs.IsInvalidArgument, "leaves the archive"},
		"a directory leaves":  {makeArchive(t, with(member{name: "../b/", kind: tar.TypeDir})...), errdefs.IsInvalidArgument, "leaves the archive"},
		"an absolute link":    {makeArchive(t, with(member{name: "l", kind: tar.TypeSymlink, link: "/etc/shadow"})...), errdefs.IsInvalidArgument, "out of the archive"},
		"a link that leaves":  {makeArchive(t, with(member{name: "a/l", kind: tar.TypeSymlink, link: "../../x"})...), errdefs.IsInvalidArgument, "out of the archive"},
		"a hard link":         {makeArchive(t, with(member{name: "l", kind: tar.TypeLink, link: "1/layer.tar"})...), errdefs.IsInvalidArgument, "has no place"},
		"a device":            {makeArchive(t, with(member{name: "d", kind: tar.TypeChar})...), errdefs.IsInvalidArgument, "has no place"},
		"a fifo":              {makeArchive(t, with(member{name: "d", kind: tar.TypeFifo})...), errdefs.IsInvalidArgument, "has no place"},
		"twice":               {makeArchive(t, append(slices.Clone(saved), member{name: "./1/layer.tar", body: []byte("other")})...), errdefs.IsInvalidArgument, "twice"},
		"an index twice":      {makeArchive(t, member{name: "index.json", body: []byte("{}")}, member{name: "index.json"}), errdefs.IsInvalidArgument, "twice"},
		"a file over a link":  {makeArchive(t, with(member{name: "3/layer.tar", body: []byte("x")})...), errdefs.IsInvalidArgument, "twice"},
		"a large size":        {bomb, errdefs.IsInvalidArgument, "larger than"},
		"a large document":    {makeArchive(t, member{name: "index.json", body: make([]byte, maxDocument+1)}), errdefs.IsInvalidArgument, "at most"},
		"a blob with no hash": {makeArchive(t, with(member{name: "blobs/sha256/abc"})...), errdefs.IsInvalidArgument, "no digest"},
		"another's content":   {makeArchive(t, member{name: blobPath(digest.FromString("a")), body: []byte("b")}), errdefs.IsDataLoss, "its content has the digest"},
		"no configuration":    {makeArchive(t, without(saved[5].name)...), errdefs.IsInvalidArgument, "is not in the archive"},
		"no layer":            {makeArchive(t, without("2/layer.tar")...), errdefs.IsInvalidArgument, "is not in the archive"},
		"a link to nothing":   {makeArchive(t, without("1/layer.tar")...), errdefs.IsInvalidArgument, "is not in the archive"},
		"no JSON":             {makeArchive(t, member{name: "manifest.json", body: []byte("{")}), errdefs.IsInvalidArgument, "manifest.json"},
		"no image in it":      {makeArchive(t, member{name: "manifest.json", body: []byte("[]")}), errdefs.IsInvalidArgument, "no image"},
		"a layer outside":     {makeArchive(t, with()[:6:6]...), errdefs.IsInvalidArgument, "neither"},
		"no layout version":   {makeArchive(t, index(missing, nil)), errdefs.IsInvalidArgument, "oci-layout"},
		"another version":     {makeArchive(t, index(missing, nil), member{name: "oci-layout", body: []byte(`{"imageLayoutVersion":"2.0"}`)}), errdefs.IsNotImplemented, "2.0"},
		"no name":             {makeArchive(t, layoutMember(), index(missing, nil)), errdefs.IsInvalidArgument, "no name"},
		"a tag alone":         {makeArchive(t, layoutMember(), index(missing, map[string]string{ocispec.AnnotationRefName: "1.0"})), errdefs.IsInvalidArgument, "nothing but the tag"},
		"another's digest": {makeArchive(t, layoutMember(), index(missing, map[string]string{annotationName: "example.com/a@" + digest.FromString("b").String()})),
			errdefs.IsInvalidArgument, "something else"},
		"no manifest": {makeArchive(t, layoutMember(), index(missing, map[string]string{annotationName: "example.com/a:1"})), errdefs.IsNotFound, "not in the archive"},
		"no document": {makeArchive(t, layoutMember(), index(ocispec.Descriptor{MediaType: "text/plain", Digest: missing.Digest, Size: 4}, nil)), errdefs.IsInvalidArgument, "neither an image nor an index"},
		"an artifact": {makeArchive(t, layoutMember(), blobMember(artifact),
			index(ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(artifact), Size: int64(len(artifact))}, map[string]string{annotationName: "example.com/a:1"})),
			errdefs.IsInvalidArgument, "an artifact"},
		"a negative size": {makeArchive(t, layoutMember(), index(ocispec.Descriptor{MediaType: missing.MediaType, Digest: missing.Digest, Size: -1}, nil)), errdefs.IsInvalidArgument, "size"},
		"holes":           {sparseArchive(t), errdefs.IsInvalidArgument, "holes"},
	} {
		imported, err := s.Import(t.Context(), bytes.NewReader(tt.archive), ImportOptions{})
		if !tt.kind(err) || !strings.Contains(err.Error(), tt.says) || len(imported) > 0 {
			t.Errorf("%s: %v, %v", name, imported, err)
		}
	}
	assertEmpty(t, s)
	if _, err := s.Import(t.Context(), bytes.NewReader(makeArchive(t, saved...)), ImportOptions{}); err != nil {
		t.Error("the good one:", err)
	}
}

func TestRename(t *testing.T) {
	d := ocispec.Descriptor{Digest: digest.FromString("x")}
	full := archived{target: d, names: []string{"docker.io/library/a:1", "docker.io/library/a:2"}}
	tag := archived{target: d, tag: "1"}
	none := archived{target: d}
	for name, tt := range map[string]struct {
		found []archived
		name  string
		want  string // the names of all; "" is an error
	}{
		"as it is":            {[]archived{full}, "", "docker.io/library/a:1 docker.io/library/a:2"},
		"another name":        {[]archived{full}, "b", "docker.io/library/b:1 docker.io/library/b:2"},
		"another tag":         {[]archived{full}, "b:3", "docker.io/library/b:3"},
		"a tag gets a name":   {[]archived{tag}, "example.com/b", "example.com/b:1"},
		"no tag":              {[]archived{none}, "b", "docker.io/library/b:latest"},
		"two with tags":       {[]archived{full, tag}, "b", "docker.io/library/b:1 docker.io/library/b:2 docker.io/library/b:1"},
		"two and one tag":     {[]archived{full, tag}, "b:1", ""},
		"two, one has no tag": {[]archived{full, none}, "b", ""},
		"by digest":           {[]archived{none}, "b@" + d.Digest.String(), ""},
		"no name":             {[]archived{none}, "a b", ""},
		"a bad tag":           {[]archived{{target: d, tag: "a b"}}, "b", ""},
	} {
		err := rename(tt.found, tt.name)
		var got []string
		for _, one := range tt.found {
			got = append(got, one.names...)
		}
		if tt.want == "" && !errdefs.IsInvalidArgument(err) || tt.want != "" && (err != nil || strings.Join(got, " ") != tt.want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestReferences(t *testing.T) {
	a, b := ocispec.Descriptor{Digest: digest.FromString("a")}, ocispec.Descriptor{Digest: digest.FromString("b")}
	for mediaType, want := range map[string]string{
		ocispec.MediaTypeImageIndex:    fmt.Sprintf("m.%.12s m.%.12s", a.Digest.Encoded(), b.Digest.Encoded()),
		ocispec.MediaTypeImageManifest: "config l.0",
	} {
		var keys []string
		labels := references(mediaType, []ocispec.Descriptor{a, b})
		for _, key := range slices.Sorted(maps.Keys(labels)) {
			keys = append(keys, strings.TrimPrefix(key, "containerd.io/gc.ref.content."))
		}
		wanted := strings.Fields(want)
		slices.Sort(wanted)
		if !slices.Equal(keys, wanted) {
			t.Errorf("%s: %v", mediaType, keys)
		}
	}
}

// FuzzImport reads archives that anybody may have written. Whatever it is, nothing half-made stays.
func FuzzImport(f *testing.F) {
	f.Add(makeArchive(f, layoutMember(), member{name: "index.json", body: []byte(`{"schemaVersion":2,"manifests":[]}`)}))
	f.Add(makeArchive(f, member{name: "manifest.json", body: []byte(`[{"Config":"c","Layers":["l"]}]`)}, member{name: "c", body: []byte("{}")}, member{name: "l"}))
	f.Add(makeArchive(f, member{name: "a/l", kind: tar.TypeSymlink, link: "../x"}, blobMember([]byte("{}"))))
	s, err := Open(f.Context(), Config{Root: f.TempDir(), LayerGrace: time.Nanosecond, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = s.Close() })
	f.Fuzz(func(t *testing.T, data []byte) {
		imported, err := s.Import(t.Context(), bytes.NewReader(data), ImportOptions{Name: "example.com/x"})
		if images, _ := s.List(t.Context()); err != nil && len(images) > 0 {
			t.Errorf("%v, and there is an image: %v", err, images)
		}
		for _, one := range imported {
			must(t, s.Remove(t.Context(), one.ID))
		}
		assertNothingHalfMade(t, s)
	})
}

// FuzzChildren reads documents that registries and archives bring.
func FuzzChildren(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}`), ocispec.MediaTypeImageManifest)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"mediaType":"x","digest":"sha256:1","size":-1}]}`), ocispec.MediaTypeImageIndex)
	f.Fuzz(func(t *testing.T, data []byte, mediaType string) {
		below, err := children(data, mediaType)
		if err != nil {
			return
		}
		for _, d := range below {
			if d.Digest.Validate() != nil || d.Size < 0 || isDocument(d) && d.Size > maxDocument {
				t.Errorf("%+v", d)
			}
		}
		references(mediaType, below)
	})
}
