package checkpoint

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/criserver/criserver/engine/spec"
)

// make makes a checkpoint with a few files.
func makeCheckpoint(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	info := Info{Version: Version, Container: spec.Container{Name: "c", ImageID: "sha256:1"}}
	if err := WriteJSON(dir, InfoFile, info); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		RootfsFile: "tar", ImagesDir + "/core-1.img": "core", ImagesDir + "/.hidden": "x", "unknown": "x", "other/file": "x",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(dir, path)
			all = append(all, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

var taken = []string{ImagesDir + "/core-1.img", InfoFile, RootfsFile}

func TestPackAndUnpack(t *testing.T) {
	from := makeCheckpoint(t)
	archive := filepath.Join(t.TempDir(), "c.tar")
	if err := Pack(t.Context(), from, archive); err != nil {
		t.Fatal(err)
	}
	if left := names(t, filepath.Dir(archive)); len(left) != 1 {
		t.Errorf("beside the archive: %v", left)
	}
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	to := t.TempDir()
	if err := Unpack(t.Context(), f, to); err != nil {
		t.Fatal(err)
	}
	if got := names(t, to); !slices.Equal(got, taken) {
		t.Errorf("unpacked %v, want %v", got, taken)
	}
	var info Info
	if err := ReadJSON(to, InfoFile, &info); err != nil || info.Check() != nil || info.Container.Name != "c" {
		t.Errorf("%v, %v", info, err)
	}
}

func TestCopyTakesTheUppermost(t *testing.T) {
	lower, upper := makeCheckpoint(t), t.TempDir()
	if err := os.Mkdir(filepath.Join(upper, ImagesDir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(upper, ImagesDir, "core-1.img"), []byte("newer"), 0o600); err != nil {
		t.Fatal(err)
	}
	to := t.TempDir()
	if err := Copy(t.Context(), []string{upper, lower}, to); err != nil {
		t.Fatal(err)
	}
	if got := names(t, to); !slices.Equal(got, taken) {
		t.Errorf("copied %v, want %v", got, taken)
	}
	if got, _ := os.ReadFile(filepath.Join(to, ImagesDir, "core-1.img")); string(got) != "newer" {
		t.Errorf("the file is %q", got)
	}
}

func TestCopyRefusesWhatIsNoFile(t *testing.T) {
	for name, plant := range map[string]func(string) error{
		"link out": func(dir string) error { return os.Symlink("/etc/passwd", filepath.Join(dir, RootfsFile)) },
		"images elsewhere": func(dir string) error {
			return os.Symlink("/etc", filepath.Join(dir, ImagesDir))
		},
		"directory": func(dir string) error { return os.Mkdir(filepath.Join(dir, InfoFile), 0o700) },
	} {
		dir := t.TempDir()
		if err := plant(dir); err != nil {
			t.Fatal(err)
		}
		to := t.TempDir()
		if err := Copy(t.Context(), []string{dir}, to); err == nil {
			t.Errorf("%s: it was copied: %v", name, names(t, to))
		}
	}
}

func archiveOf(headers ...tar.Header) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		h.Mode = 0o4777
		_ = w.WriteHeader(&h)
		_, _ = w.Write(bytes.Repeat([]byte("x"), int(h.Size)))
	}
	_ = w.Close()
	return b.Bytes()
}

func TestHostileArchives(t *testing.T) {
	file := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name, Size: 3} }
	for name, tt := range map[string]struct {
		archive []byte
		refused string // "": what is wrong is left out
	}{
		"no archive":      {[]byte(strings.Repeat("no archive ", 100)), "not a tar"},
		"cut off":         {archiveOf(file(RootfsFile))[:514], "not a tar"},
		"twice":           {archiveOf(file(InfoFile), file("./"+InfoFile)), "two of"},
		"link":            {archiveOf(tar.Header{Typeflag: tar.TypeSymlink, Name: InfoFile, Linkname: "/etc/passwd"}), "not a regular"},
		"hard link":       {archiveOf(tar.Header{Typeflag: tar.TypeLink, Name: InfoFile, Linkname: "/etc/passwd"}), "not a regular"},
		"device":          {archiveOf(tar.Header{Typeflag: tar.TypeChar, Name: ImagesDir + "/a", Devmajor: 1, Devminor: 3}), "not a regular"},
		"upwards":         {archiveOf(file("../../etc/cron.d/x"), file(ImagesDir+"/../../x")), ""},
		"deep":            {archiveOf(file(ImagesDir + "/a/b")), ""},
		"link as parent":  {archiveOf(tar.Header{Typeflag: tar.TypeSymlink, Name: "a", Linkname: "/etc"}, file("a/x")), ""},
		"images replaced": {archiveOf(tar.Header{Typeflag: tar.TypeSymlink, Name: ImagesDir, Linkname: "/etc"}, file(ImagesDir+"/x")), ""},
	} {
		t.Run(name, func(t *testing.T) {
			parent := t.TempDir()
			dir := filepath.Join(parent, "d")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			err := Unpack(t.Context(), bytes.NewReader(tt.archive), dir)
			switch {
			case tt.refused == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tt.refused != "" && (!errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tt.refused)):
				t.Errorf("%v, want %q", err, tt.refused)
			}
			for _, made := range names(t, parent) {
				if made != "d/"+ImagesDir+"/x" && !slices.Contains([]string{"d/" + InfoFile, "d/" + RootfsFile}, made) {
					t.Errorf("%s was made", made)
				}
			}
		})
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(archiveOf(tar.Header{Typeflag: tar.TypeReg, Name: ImagesDir + "/core.img", Size: 3}))
	f.Add(archiveOf(tar.Header{Typeflag: tar.TypeSymlink, Name: InfoFile, Linkname: "/x"}))
	f.Fuzz(func(t *testing.T, data []byte) {
		parent := t.TempDir()
		dir := filepath.Join(parent, "d")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		_ = Unpack(t.Context(), bytes.NewReader(data), dir)
		for _, name := range names(t, parent) {
			if _, ok := wanted(strings.TrimPrefix(name, "d/")); !ok {
				t.Errorf("%q was made", name)
			}
		}
	})
}

func TestChecks(t *testing.T) {
	for name, bad := range map[string]interface{ Check() error }{
		"version":    &Info{Version: 7, Container: spec.Container{Name: "c", ImageID: "i"}},
		"no name":    &Info{Version: Version, Container: spec.Container{ImageID: "i"}},
		"twice":      &PodInfo{Version: Version, Containers: []PodContainer{{"a", ContainerDir(0)}, {"a", ContainerDir(1)}}},
		"elsewhere":  &PodInfo{Version: Version, Containers: []PodContainer{{"a", "../../etc"}}},
		"no version": &PodInfo{},
	} {
		if err := bad.Check(); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := ReadJSON(t.TempDir(), InfoFile, &Info{}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), InfoFile) {
		t.Errorf("a checkpoint without the document: %v", err)
	}
}
