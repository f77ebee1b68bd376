package arrows

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/criserver/criserver"

// maxImports is how many packages of ours one may import, outside cmd, test and hack and the leaves in internal not counted: a
// package that needs more does too much.
const maxImports = 6

// rules says what a directory's packages may import of ours. The longest matching directory counts; a directory in
// the list stands for everything beneath it.
var rules = map[string][]string{
	"cmd":               {""},
	"test":              {""},
	"hack":              {""},
	"cri":               {"cri", "engine", "image", "internal"},
	"admin":             {"admin", "image", "internal"},
	"docker":            {"docker", "engine", "image", "internal"},
	"build":             {"build", "engine", "image", "snapshotter", "internal"},
	"engine":            {"engine/cdi", "engine/checkpoint", "engine/spec", "shim/api", "cni", "internal"},
	"engine/cdi":        {"internal"},
	"engine/spec":       {"internal"},
	"engine/checkpoint": {"engine/spec", "internal"},
	"nri":               {"engine", "internal"},
	"image":             {"image", "snapshotter", "internal"},
	"snapshotter":       {"snapshotter", "internal"},
	"cni":               {"cni", "internal"},
	"shim":              {"shim", "internal"},
	"internal":          {"internal"},
}

// foreign says which of our directories alone may import a module of others directly.
var foreign = map[string][]string{
	"k8s.io/cri-api/":       {"cri", "test", "hack"},
	"k8s.io/cri-streaming/": {"cri"},
}

type listed struct {
	ImportPath string
	Imports    []string
}

// directory is the path of a package within the module; false for packages of others.
func directory(path string) (string, bool) {
	if path == module {
		return "", true
	}
	return strings.CutPrefix(path, module+"/")
}

func beneath(dir, parent string) bool {
	return parent == "" || dir == parent || strings.HasPrefix(dir, parent+"/")
}

func ruleOf(dir string) ([]string, bool) {
	best, found := "", false
	for parent := range rules {
		if beneath(dir, parent) && len(parent) >= len(best) {
			best, found = parent, true
		}
	}
	return rules[best], found
}

func allowed(dir string, parents []string) bool {
	return slices.ContainsFunc(parents, func(parent string) bool { return beneath(dir, parent) })
}

// violations checks one package's direct imports.
func violations(p listed) []string {
	dir, ours := directory(p.ImportPath)
	if !ours {
		return nil
	}
	may, known := ruleOf(dir)
	if !known {
		return []string{dir + ": no rule says what it may import; add one to the list in internal/arrows"}
	}
	var found []string
	internal := 0
	for _, path := range p.Imports {
		if target, ours := directory(path); ours {
			if !beneath(target, "internal") { // leaves, which bring nothing along
				internal++
			}
			if !allowed(target, may) {
				found = append(found, dir+" must not import "+target)
			}
			continue
		}
		for prefix, dirs := range foreign {
			if strings.HasPrefix(path, prefix) && !allowed(dir, dirs) {
				found = append(found, dir+" must not import "+path+": only "+strings.Join(dirs, ", ")+" may")
			}
		}
	}
	if internal > maxImports && !allowed(dir, []string{"cmd", "test", "hack"}) {
		found = append(found, dir+" imports too many packages of this module")
	}
	return found
}

func goList(t *testing.T, args ...string) []listed {
	t.Helper()
	command := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports"}, args...)...)
	command.Dir = "../.."
	var stderr bytes.Buffer
	command.Stderr = &stderr
	out, err := command.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, stderr.String())
	}
	var all []listed
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		err := decoder.Decode(&p)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func TestArrows(t *testing.T) {
	packages := goList(t, "./...")
	if len(packages) == 0 {
		t.Fatal("go list found no package")
	}
	for _, p := range packages {
		for _, violation := range violations(p) {
			t.Error(violation)
		}
	}
}

// TestShimIsSmall keeps the long-lived helpers free of what costs memory: every container's fate hangs on them.
func TestShimIsSmall(t *testing.T) {
	// ttrpc uses the codes and the status of gRPC; what those are made of comes with them.
	grpc := map[string]bool{}
	for _, p := range goList(t, "-deps", "google.golang.org/grpc/codes", "google.golang.org/grpc/status") {
		grpc[p.ImportPath] = true
	}
	for program, forbidden := range map[string]func(path string) bool{
		"criserver-shim": func(path string) bool {
			return strings.HasPrefix(path, "k8s.io/") || path == "net/http" ||
				strings.HasPrefix(path, "google.golang.org/grpc") && !grpc[path]
		},
		"criserver-keeper": func(path string) bool {
			return strings.HasPrefix(path, "k8s.io/") || path == "net" || path == "net/http" ||
				path == "encoding/json" || strings.HasPrefix(path, "google.golang.org/")
		},
	} {
		for _, p := range goList(t, "-deps", "./cmd/"+program) {
			if forbidden(p.ImportPath) {
				t.Errorf("%s must not link %s", program, p.ImportPath)
			}
		}
	}
}

func TestViolations(t *testing.T) {
	for name, tt := range map[string]struct {
		dir     string
		imports []string
		want    string // a substring of the one violation; "" for none
	}{
		"cmd imports all":        {"cmd/criserver", []string{"cri", "engine", "shim/shimd"}, ""},
		"cri to engine":          {"cri", []string{"engine", "engine/spec", "image", "internal/fsx"}, ""},
		"cri to shim":            {"cri", []string{"shim/api"}, "cri must not import shim/api"},
		"cri to docker":          {"cri", []string{"docker"}, "cri must not import docker"},
		"engine to image":        {"engine", []string{"image"}, "engine must not import image"},
		"engine to the client":   {"engine", []string{"shim"}, "engine must not import shim"},
		"engine to shim's types": {"engine", []string{"shim/api", "cni", "engine/spec"}, ""},
		"spec is pure":           {"engine/spec", []string{"engine"}, "engine/spec must not import engine"},
		"cni to shim":            {"cni/builtin", []string{"shim/api"}, "cni/builtin must not import shim/api"},
		"snapshotter to image":   {"snapshotter", []string{"image/layer"}, "must not import image/layer"},
		"internal to engine":     {"internal/x", []string{"engine"}, "must not import engine"},
		"name with our prefix":   {"cri", []string{"imagery"}, "must not import imagery"},
		"unknown directory":      {"misc", nil, "no rule"},
		"cri-api outside":        {"engine", []string{"!k8s.io/cri-api/pkg/apis/runtime/v1"}, "only cri"},
		"cri-api in cri":         {"cri", []string{"!k8s.io/cri-api/pkg/apis/runtime/v1"}, ""},
		"too many":               {"image", []string{"image/a", "image/b", "image/c", "image/d", "image/e", "image/f", "snapshotter"}, "too many"},
		"many leaves":            {"image", []string{"internal/a", "internal/b", "internal/c", "internal/d", "internal/e", "internal/f", "internal/g"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := listed{ImportPath: module + "/" + tt.dir}
			for _, path := range tt.imports {
				if outside, found := strings.CutPrefix(path, "!"); found {
					p.Imports = append(p.Imports, outside)
				} else {
					p.Imports = append(p.Imports, module+"/"+path)
				}
			}
			got := violations(p)
			if tt.want == "" && len(got) > 0 || tt.want != "" && (len(got) != 1 || !strings.Contains(got[0], tt.want)) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
