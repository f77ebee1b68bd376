package image

import (
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const someDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestParseManifestRefuses(t *testing.T) {
	config := `"config":{"mediaType":"` + ocispec.MediaTypeImageConfig + `","digest":"` + someDigest + `","size":2}`
	layer := `{"mediaType":"` + ocispec.MediaTypeImageLayer + `","digest":"` + someDigest + `","size":1}`
	for name, test := range map[string]struct{ document, text string }{
		"no JSON":         {`{`, "not a"},
		"schema 1":        {`{"schemaVersion":1,"fsLayers":[]}`, "schema 1"},
		"both at once":    {`{"schemaVersion":2,"manifests":[],` + config + `}`, "index and a manifest"},
		"another type":    {`{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageIndex + `",` + config + `}`, "the document says"},
		"no config":       {`{"schemaVersion":2,"layers":[]}`, "artifact"},
		"wrong layers":    {`{"schemaVersion":2,"layers":"no",` + config + `}`, "not a"},
		"too many layers": {`{"schemaVersion":2,` + config + `,"layers":[` + strings.Repeat(layer+",", maxLayers) + layer + `]}`, "501 layers"},
		"huge config":     {`{"schemaVersion":2,"config":{"mediaType":"` + ocispec.MediaTypeImageConfig + `","digest":"` + someDigest + `","size":99999999}}`, "size"},
	} {
		if _, err := parseManifest([]byte(test.document), ocispec.MediaTypeImageManifest); err == nil || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := parseManifest([]byte(`{"schemaVersion":2,`+config+`,"layers":[`+layer+`]}`), ocispec.MediaTypeImageManifest); err != nil {
		t.Error(err)
	}
}

func TestParseIndexPrefers(t *testing.T) {
	entry := func(platform, size string) string {
		return `{"mediaType":"` + ocispec.MediaTypeImageManifest + `","digest":"` + someDigest + `","size":` + size + platform + `}`
	}
	arm := func(variant string) string {
		return `,"platform":{"os":"linux","architecture":"arm","variant":"` + variant + `"}`
	}
	for name, test := range map[string]struct {
		entries []string
		want    int64
	}{
		"best variant":           {[]string{entry(arm("v6"), "6"), entry(arm("v7"), "7"), entry(arm("v5"), "5")}, 7},
		"none that is too new":   {[]string{entry(arm("v8"), "8"), entry(arm("v6"), "6")}, 6},
		"a platform before none": {[]string{entry("", "1"), entry(arm("v6"), "6")}, 6},
		"none when nothing fits": {[]string{entry("", "1"), entry(arm("v8"), "8")}, 1},
		"nothing":                {[]string{entry(arm("v8"), "8")}, -1},
	} {
		document := `{"schemaVersion":2,"manifests":[` + strings.Join(test.entries, ",") + `]}`
		got, err := parseIndex([]byte(document), ocispec.MediaTypeImageIndex, platforms.Only(ocispec.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}))
		if test.want < 0 {
			if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "linux/arm/v8") {
				t.Errorf("%s: %v", name, err)
			}
		} else if err != nil || got.Size != test.want {
			t.Errorf("%s: %d, %v", name, got.Size, err)
		}
	}
}

func TestNormalizeAndIDPrefix(t *testing.T) {
	for ref, want := range map[string]string{
		"busybox":                    "docker.io/library/busybox:latest",
		"team/app:1":                 "docker.io/team/app:1",
		"127.0.0.1:5000/a":           "127.0.0.1:5000/a:latest",
		"localhost/a":                "localhost/a:latest",
		"a:1@" + someDigest:          "docker.io/library/a@" + someDigest,
		"registry.k8s.io/pause:3.10": "registry.k8s.io/pause:3.10",
		"UPPER":                      "", "": "", "a b": "", "a:": "", "a@sha256:12": "", "../x": "",
	} {
		got, err := Normalize(ref)
		if got != want || (err != nil) != (want == "") || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q is %q, want %q (%v)", ref, got, want, err)
		}
	}
	for ref, want := range map[string]string{"abc": "sha256:abc", "sha256:abc": "sha256:abc", "busybox": "", "sha256:": "", "sha256:xyz": "", someDigest: someDigest, someDigest + "0": ""} {
		if got, _, ok := idPrefix(ref); got != want || ok != (want != "") {
			t.Errorf("%q is %q, want %q", ref, got, want)
		}
	}
}

func TestSplitUser(t *testing.T) {
	for user, want := range map[string]string{"": "", "www-data:1004": "www-data", "1003:1004": "1003", "0": "0", "a": "a", ":5": ""} {
		uid, name := splitUser(user)
		if uid != nil {
			if name != "" || want != "1003" && want != "0" || want == "0" && *uid != 0 {
				t.Errorf("%q: %d %q", user, *uid, name)
			}
		} else if name != want {
			t.Errorf("%q: %q", user, name)
		}
	}
}

// FuzzDocuments reads a document as everything that a registry may call it: what is accepted can be relied on.
func FuzzDocuments(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"mediaType":"` + ocispec.MediaTypeImageManifest + `","digest":"` + someDigest + `","size":3,"platform":{"os":"linux","architecture":"amd64"}}]}`))
	f.Add([]byte(`{"schemaVersion":2,"config":{"mediaType":"` + ocispec.MediaTypeImageConfig + `","digest":"` + someDigest + `","size":2},"layers":[{"mediaType":"` + ocispec.MediaTypeImageLayerGzip + `","digest":"` + someDigest + `","size":9}]}`))
	f.Add([]byte(`{"architecture":"amd64","os":"linux","config":{"User":"1:2"},"rootfs":{"type":"layers","diff_ids":["` + someDigest + `"]}}`))
	matcher := platforms.Only(ocispec.Platform{OS: "linux", Architecture: "amd64"})
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, mediaType := range []string{ocispec.MediaTypeImageIndex, images.MediaTypeDockerSchema2ManifestList} {
			if d, err := parseIndex(data, mediaType, matcher); err == nil && (d.Digest.Validate() != nil || d.Size < 0 || d.Size > maxDocument) {
				t.Errorf("index led to %+v", d)
			}
		}
		if m, err := parseManifest(data, ocispec.MediaTypeImageManifest); err == nil {
			if len(m.Layers) > maxLayers {
				t.Errorf("%d layers", len(m.Layers))
			}
			for _, d := range append(m.Layers, m.Config) {
				if d.Digest.Validate() != nil || d.Size < 0 {
					t.Errorf("manifest led to %+v", d)
				}
			}
		}
		if c, err := parseConfig(data, 1); err == nil {
			if len(c.RootFS.DiffIDs) != 1 || c.RootFS.DiffIDs[0].Validate() != nil {
				t.Errorf("configuration led to %v", c.RootFS.DiffIDs)
			}
			splitUser(c.Config.User)
		}
		_ = manifestType(data)
	})
}

// FuzzNormalize reads names: what is accepted is full and normal.
func FuzzNormalize(f *testing.F) {
	for _, ref := range []string{"busybox", "a/b:c", "h:5/x@" + someDigest, "sha256:abc"} {
		f.Add(ref)
	}
	f.Fuzz(func(t *testing.T, ref string) {
		_, _, _ = idPrefix(ref)
		name, err := Normalize(ref)
		if err != nil {
			return
		}
		if again, err := Normalize(name); err != nil || again != name || strings.Contains(name, "..") && !strings.Contains(ref, "..") {
			t.Errorf("%q gives %q gives %q (%v)", ref, name, again, err)
		}
	})
}
