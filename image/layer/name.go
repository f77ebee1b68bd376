package layer

import (
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
)

// Limits of names, in bytes and components. The first two are Linux's; the depth keeps recursion over a layer shallow.
const (
	maxComponent = 255
	maxPath      = 4095
	maxDepth     = 512
)

// Names of image-spec's layer.md, "Representing Changes".
const (
	whiteoutPrefix = ".wh."
	metaPrefix     = ".wh..wh."
	opaqueName     = ".wh..wh..opq"
)

// kind says what the name of an entry means.
type kind int

const (
	plain    kind = iota
	whiteout      // hides target in the layers below
	opaque        // hides all that the layers below have in directory target
	ignored       // bookkeeping of a storage driver of old; not content
)

// cleanName makes name relative to the root of the layer: no leading slash, no "." and no empty component; "" is the root.
func cleanName(name string) (string, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return "", refuse("its name holds a NUL byte")
	}
	clean := name
	if !isClean(clean) {
		for component := range strings.SplitSeq(clean, "/") {
			if component == ".." {
				return "", refuse("its name holds a .. component")
			}
		}
		clean = strings.TrimPrefix(path.Clean("/"+clean), "/")
	}
	return clean, checkLengths(clean)
}

// isClean spares nearly all names the work of cleaning.
func isClean(name string) bool {
	if name == "" || name[0] == '/' || name[0] == '.' || name[len(name)-1] == '/' {
		return false
	}
	return !strings.Contains(name, "/.") && !strings.Contains(name, "//")
}

func checkLengths(clean string) error {
	if len(clean) > maxPath {
		return refuse("its path is longer than %d bytes", maxPath)
	}
	depth, start := 1, 0
	for i := 0; i <= len(clean); i++ {
		if i < len(clean) && clean[i] != '/' {
			continue
		}
		if i-start > maxComponent {
			return refuse("a component of its name is longer than %d bytes", maxComponent)
		}
		if i < len(clean) {
			depth++
		}
		start = i + 1
	}
	if depth > maxDepth {
		return refuse("it lies deeper than %d directories", maxDepth)
	}
	return nil
}

// classify says what a clean name means; target is the path that a whiteout or an opaque marker is about.
func classify(clean string) (kind, string, error) {
	if !strings.Contains(clean, whiteoutPrefix) {
		return plain, clean, nil
	}
	parent, base := splitPath(clean)
	for component := range strings.SplitSeq(parent, "/") {
		switch {
		case strings.HasPrefix(component, metaPrefix):
			return ignored, "", nil
		case strings.HasPrefix(component, whiteoutPrefix):
			return plain, "", refuse("it lies in a whiteout, %q", component)
		}
	}
	switch {
	case base == opaqueName:
		return opaque, parent, nil
	case strings.HasPrefix(base, metaPrefix):
		return ignored, "", nil
	case strings.HasPrefix(base, whiteoutPrefix):
		hidden := base[len(whiteoutPrefix):]
		if hidden == "" || hidden == "." || hidden == ".." {
			return plain, "", refuse("it is a whiteout of no file")
		}
		return whiteout, joinPath(parent, hidden), nil
	}
	return plain, clean, nil
}

// splitPath cuts a clean path into its directory ("" for the root) and its last component.
func splitPath(clean string) (parent, base string) {
	if i := strings.LastIndexByte(clean, '/'); i >= 0 {
		return clean[:i], clean[i+1:]
	}
	return "", clean
}

func joinPath(parent, base string) string {
	if parent == "" {
		return base
	}
	return parent + "/" + base
}

func refuse(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
}
