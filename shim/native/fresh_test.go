package native

import (
	"os"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestMountsCoverThoseBefore has mounts over a tmpfs of the spec, and over one in it, by its path and by a link of the image: what
// comes after them lies in them, and what came before is covered.
func TestMountsCoverThoseBefore(t *testing.T) {
	r := newRuntime(t)
	m := rootfs(t)
	lower := strings.TrimPrefix(strings.Split(m.Options[0], ":")[0], "lowerdir=")
	if err := os.Symlink("linked", lower+"/alias"); err != nil {
		t.Fatal(err)
	}
	data := t.TempDir()
	if err := os.WriteFile(data+"/file", []byte("mounted"), 0o644); err != nil {
		t.Fatal(err)
	}
	tmpfs := func(at string, options ...string) specs.Mount {
		return specs.Mount{Destination: at, Type: "tmpfs", Source: "tmpfs", Options: options}
	}
	bind := func(at string) specs.Mount {
		return specs.Mount{Destination: at, Type: "bind", Source: data, Options: []string{"rbind"}}
	}
	covered := []string{"/linked/before/file", "/again/before/file", "/outer/in/before/file"}
	seen := []string{"/linked/after/file", "/again/after/file", "/outer/in/after/file", "/closed/in/file", "/outer/in/deep/est/file"}
	spec := baseSpec(append(append([]string{"view"}, covered...), seen...)...)
	spec.Mounts = append(spec.Mounts,
		tmpfs("/linked"), bind("/linked/before"), tmpfs("/alias"), bind("/linked/after"),
		tmpfs("/again"), bind("/again/before"), tmpfs("/again"), bind("/again/after"),
		tmpfs("/outer"), tmpfs("/outer/in"), bind("/outer/in/before"), tmpfs("/outer"), bind("/outer/in/after"), bind("/outer/in/deep/est"),
		tmpfs("/closed", "ro"), bind("/closed/in"))
	p, out, w := create(t, r, Config{ID: "x", Spec: spec, Rootfs: m})
	text, code := finish(t, p, out, w)
	files := look(t, text).Files
	if code != 0 {
		t.Fatalf("exit code %d", code)
	}
	for _, f := range covered {
		if files[f] == "mounted" {
			t.Errorf("%s is seen, a later mount covers it", f)
		}
	}
	for _, f := range seen {
		if files[f] != "mounted" {
			t.Errorf("%s: %q, a bind mount has it", f, files[f])
		}
	}
}
