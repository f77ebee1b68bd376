// Command critest runs the suite of cri-tools against a daemon of its own, with images from a registry on loopback, and
// says what passed, what failed and what was skipped, with the reason of each. It fails when a spec fails, and when one is
// skipped for a reason that is not on the list of those that this machine gives.
//
//	critest [-handler NAME] [-focus REGEXP] [-timeout DURATION] [-o FILE]
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/criserver/criserver/test/e2e/rig"
)

// digestSpec pulls an image whose digest is a constant in the suite, which only the public registry can serve.
const digestSpec = "public image with digest"

func main() {
	if filepath.Base(os.Args[0]) == sudo {
		fail(asRoot(os.Args[1:]))
	}
	o := options{}
	flag.StringVar(&o.program, "critest", "hack/cache/bin/critest", "the critest `program`")
	flag.StringVar(&o.handler, "handler", "", "RuntimeClass `handler` of the pods; empty is native")
	flag.StringVar(&o.focus, "focus", "", "run only the specs that match this `regexp`")
	flag.StringVar(&o.config, "config", "", "`file` whose TOML tables are added to the daemon's configuration")
	flag.StringVar(&o.out, "o", "", "write the list of specs as Markdown to this `file`")
	flag.BoolVar(&o.nri, "nri", false, "tell the suite where NRI plugins connect, which releases of it up to v1.36.0 do not know")
	timeout := flag.Duration("timeout", 20*time.Minute, "time limit of the suite")
	flag.BoolVar(&o.verbose, "v", false, "print the suite's own output")
	flag.Parse()
	for _, path := range []*string{&o.program, &o.config, &o.out} {
		if *path == "" {
			continue
		}
		absolute, err := filepath.Abs(*path)
		if err != nil {
			fail(err)
		}
		*path = absolute
	}
	place := rig.Isolate()
	ctx, cancel := context.WithTimeout(context.Background(), *timeout)
	defer cancel()
	ok, err := run(ctx, place, o)
	if err != nil {
		fail(err)
	}
	if !ok {
		os.Exit(1)
	}
}

func fail(err error) {
	fmt.Fprintf(os.Stderr, "critest: %v\n", err)
	os.Exit(1)
}

type options struct {
	program, handler, focus, config, out string
	verbose, nri                         bool
}

func run(ctx context.Context, place *rig.Place, o options) (ok bool, err error) {
	registry, err := place.StartRegistry()
	if err != nil {
		return false, err
	}
	dir := filepath.Join(place.Dir, "critest")
	hosts, err := mirrors(dir, registry)
	if err != nil {
		return false, err
	}
	tables := []string{fmt.Sprintf("[image]\nhosts_dir = %q\n", hosts)}
	if o.config != "" {
		text, err := os.ReadFile(o.config)
		if err != nil {
			return false, err
		}
		tables = append(tables, string(text))
	}
	d, err := place.NewDaemon(ctx, "critest", tables...)
	if err != nil {
		return false, err
	}
	report := filepath.Join(dir, "report.json")
	// Specs that no image made here can satisfy are left out by name.
	args := []string{
		"-ginkgo.skip", digestSpec, "-runtime-endpoint", "unix://" + d.Socket(), "-image-endpoint", "unix://" + d.Socket(),
		"-test-images-file", filepath.Join(dir, "images.yaml"), "-runtime-handler", o.handler, "-ginkgo.json-report", report,
		"-ginkgo.no-color", "-ginkgo.focus", o.focus, "-ginkgo.timeout", "2h",
	}
	if o.nri {
		args = append(args, "-nri-socket", d.NRISocket)
	}
	bin, err := makeSudo(dir)
	if err != nil {
		return false, err
	}
	cmd := exec.CommandContext(ctx, o.program, args...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":"+bin)
	cmd.Dir = dir
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return false, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if o.verbose {
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	runErr := cmd.Run()
	specs, err := readReport(report)
	if err != nil {
		return false, fmt.Errorf("the suite: %w, and no report: %w\n%s", runErr, err, rig.Tail(log.Name(), 40))
	}
	r := judge(specs)
	fmt.Print(r.text())
	if r.failed > 0 {
		fmt.Printf("the daemon's log ends with\n%s\n", d.LogTail(20))
	}
	if err := d.Stop(); err != nil {
		return false, err
	}
	if o.out != "" {
		if err := os.WriteFile(o.out, r.page(o.handler), 0o644); err != nil {
			return false, err
		}
	}
	return r.failed == 0 && r.passed > 0 && len(r.unexplained) == 0, nil
}

// mirrors writes what sends pulls of the suite's registries to ours, and the names of its images.
func mirrors(dir, registry string) (hosts string, err error) {
	hosts = filepath.Join(dir, "hosts")
	for _, host := range []string{"registry.k8s.io", "gcr.io", "k8s.gcr.io"} {
		if err := os.MkdirAll(filepath.Join(hosts, host), 0o755); err != nil {
			return "", err
		}
		text := fmt.Sprintf("server = \"http://%s\"\n[host.\"http://%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", registry, registry)
		if err := os.WriteFile(filepath.Join(hosts, host, "hosts.toml"), []byte(text), 0o644); err != nil {
			return "", err
		}
	}
	images := "defaultTestContainerImage: registry.k8s.io/e2e-test-images/busybox:1.29-2\n" +
		"webServerTestImage: registry.k8s.io/e2e-test-images/nginx:1.14-2\n"
	return hosts, os.WriteFile(filepath.Join(dir, "images.yaml"), []byte(images), 0o644)
}

// spec is one spec of the suite as the report of Ginkgo has it.
type spec struct {
	ContainerHierarchyTexts []string
	LeafNodeText            string
	LeafNodeType            string
	State                   string
	Failure                 struct{ Message string }
	RunTime                 time.Duration
}

func (s spec) name() string {
	return strings.Join(append(s.ContainerHierarchyTexts, s.LeafNodeText), " / ")
}

func readReport(path string) ([]spec, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var suites []struct{ SpecReports []spec }
	if err := json.Unmarshal(text, &suites); err != nil {
		return nil, err
	}
	var all []spec
	for _, suite := range suites {
		all = append(all, suite.SpecReports...)
	}
	return all, nil
}
