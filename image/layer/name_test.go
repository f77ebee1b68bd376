package layer

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestCleanName(t *testing.T) {
	deep := strings.Repeat("d/", maxDepth)
	for _, c := range []struct {
		name, want string
		refused    bool
	}{
		{name: "a", want: "a"},
		{name: "a/b", want: "a/b"},
		{name: "./a/b/", want: "a/b"},
		{name: "/a", want: "a"},
		{name: "//a//b", want: "a/b"},
		{name: "a/./b", want: "a/b"},
		{name: ".", want: ""},
		{name: "./", want: ""},
		{name: "/", want: ""},
		{name: "", want: ""},
		{name: "..a", want: "..a"},
		{name: ".hidden/...", want: ".hidden/..."},
		{name: "a/..", refused: true},
		{name: "..", refused: true},
		{name: "a/../../b", refused: true},
		{name: "/../a", refused: true},
		{name: "a\x00b", refused: true},
		{name: strings.Repeat("n", 255), want: strings.Repeat("n", 255)},
		{name: strings.Repeat("n", 256), refused: true},
		{name: "a/" + strings.Repeat("n", 256) + "/b", refused: true},
		{name: strings.Repeat("nnnnnnnnn/", 410), refused: true},
		{name: deep, want: strings.TrimSuffix(deep, "/")},
		{name: deep + "e", refused: true},
	} {
		got, err := cleanName(c.name)
		if c.refused {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%.40q: %v, want it refused", c.name, err)
			}
		} else if err != nil || got != c.want {
			t.Errorf("%.40q: %.40q, %v, want %.40q", c.name, got, err, c.want)
		}
	}
}

func TestClassify(t *testing.T) {
	for _, c := range []struct {
		name, target string
		kind         kind
		refused      bool
	}{
		{name: "a/b", target: "a/b", kind: plain},
		{name: "a.wh.b", target: "a.wh.b", kind: plain},
		{name: ".wh.a", target: "a", kind: whiteout},
		{name: "d/.wh.a", target: "d/a", kind: whiteout},
		{name: "d/.wh..a", target: "d/.a", kind: whiteout},
		{name: "d/.wh..wh..opq", target: "d", kind: opaque},
		{name: ".wh..wh..opq", target: "", kind: opaque},
		{name: ".wh..wh.plnk", kind: ignored},
		{name: ".wh..wh.plnk/1.2", kind: ignored},
		{name: "d/.wh..wh.aufs", kind: ignored},
		{name: ".wh.", refused: true},
		{name: "d/.wh.", refused: true},
		{name: ".wh..", refused: true},
		{name: "d/.wh...", refused: true},
		{name: ".wh.a/b", refused: true},
		{name: "d/.wh.a/.wh.b", refused: true},
	} {
		kind, target, err := classify(c.name)
		if c.refused {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%q: %v, want it refused", c.name, err)
			}
		} else if err != nil || kind != c.kind || target != c.target {
			t.Errorf("%q: %v %q, %v, want %v %q", c.name, kind, target, err, c.kind, c.target)
		}
	}
}

func FuzzCleanName(f *testing.F) {
	for _, name := range []string{"a/b", "/a", "./a", "a//b", "../a", ".wh.a", "a/.wh..wh..opq", "a\x00"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		clean, err := cleanName(name)
		if err != nil {
			return
		}
		again, err := cleanName(clean)
		if err != nil || again != clean {
			t.Fatalf("%q is cleaned to %q, that to %q, %v", name, clean, again, err)
		}
		for component := range strings.SplitSeq(clean, "/") {
			if clean != "" && (component == "" || component == "." || component == "..") || len(component) > maxComponent {
				t.Fatalf("%q is cleaned to %q", name, clean)
			}
		}
		if what, target, err := classify(clean); err == nil && what == whiteout {
			if _, base := splitPath(target); base == "" || base == "." || base == ".." {
				t.Fatalf("%q hides %q", name, target)
			}
		}
	})
}
