// Command ocivalidate runs the validation suite of OCI runtime-tools with two runtimes, and writes a table of what each passes.
// It fails when a test that the first passes does not pass with the second.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"go/build"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

const suite = "github.com/opencontainers/runtime-tools"

// testLimit bounds one test with one runtime. The longest takes 20 s on an idle machine.
const testLimit = 3 * time.Minute

func main() {
	var o options
	flag.StringVar(&o.reference, "reference", "", "program of the runtime to compare with")
	flag.StringVar(&o.ours, "ours", "", "program of the runtime under test")
	flag.StringVar(&o.title, "title", "", "what the reference is, for the report")
	flag.StringVar(&o.cache, "cache", "", "directory for the built tests")
	flag.StringVar(&o.report, "report", "", "file to write the table to")
	flag.StringVar(&o.only, "run", "", "tests to run, a regular expression; no report is written then")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "ocivalidate:", err)
		os.Exit(1)
	}
}

type options struct{ reference, ours, title, cache, report, only string }

func run(ctx context.Context, o options) error {
	for _, p := range []*string{&o.reference, &o.ours, &o.cache} {
		if *p == "" {
			return errors.New("-reference, -ours and -cache are needed")
		}
		absolute, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		*p = absolute
	}
	only, err := regexp.Compile(o.only)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	tests, err := prepare(ctx, o.cache)
	if err != nil {
		return err
	}
	var rows []row
	for _, name := range tests {
		if !only.MatchString(name) {
			continue
		}
		r := row{name: name}
		for i, runtime := range []string{o.reference, o.ours} {
			if r.verdicts[i], err = validate(ctx, o.cache, name, runtime); err != nil {
				return err
			}
		}
		fmt.Printf("%-32s %-28s %s\n", r.name, r.verdicts[0], r.verdicts[1])
		rows = append(rows, r)
	}
	if o.report != "" && o.only == "" {
		if err := write(o, rows); err != nil {
			return err
		}
	}
	var worse []string
	for _, r := range rows {
		if r.worse() {
			worse = append(worse, r.name)
		}
	}
	if len(worse) > 0 {
		return fmt.Errorf("%s passes and we do not: %s", o.title, strings.Join(worse, ", "))
	}
	return nil
}

// prepare builds the tests and lays beside them what they look for in the working directory.
func prepare(ctx context.Context, cache string) ([]string, error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	out, err := command(ctx, "go", "list", "-f", "{{.Name}} {{.ImportPath}}", suite+"/validation/...").Output()
	if err != nil {
		return nil, fmt.Errorf("list the tests: %w", err)
	}
	var names []string
	packages := []string{suite + "/cmd/runtimetest"}
	for line := range strings.Lines(string(out)) {
		if p, ok := strings.CutPrefix(strings.TrimSpace(line), "main "); ok {
			packages, names = append(packages, p), append(names, path.Base(p))
		}
	}
	cmd := command(ctx, "go", append([]string{"build", "-o", cache + "/"}, packages...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the tests: %w\n%s", err, out)
	}
	dir, err := command(ctx, "go", "list", "-m", "-f", "{{.Dir}}", suite).Output()
	if err != nil {
		return nil, err
	}
	image := "rootfs-" + build.Default.GOARCH + ".tar.gz"
	b, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), image))
	if err != nil {
		return nil, fmt.Errorf("the suite has no root filesystem for this architecture: %w", err)
	}
	slices.Sort(names)
	return names, os.WriteFile(filepath.Join(cache, image), b, 0o644)
}

func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	return cmd
}

// verdict is what a test says of a runtime.
type verdict struct {
	ok, failed, skipped int
	code                int // of the test program: it is not 0 when it gave up
}

func (v verdict) passed() bool { return v.code == 0 && v.failed == 0 }

func (v verdict) String() string {
	text := "passed"
	switch {
	case v.code != 0:
		text = fmt.Sprintf("gave up (exit code %d)", v.code)
	case v.failed > 0:
		text = fmt.Sprintf("%d failed", v.failed)
	}
	return fmt.Sprintf("%s, %d ok", text, v.ok)
}

type row struct {
	name     string
	verdicts [2]verdict // the reference's, ours
}

func (r row) worse() bool { return r.verdicts[0].passed() && !r.verdicts[1].passed() }

// validate runs one test with one runtime.
func validate(ctx context.Context, cache, name, runtime string) (verdict, error) {
	limited, cancel := context.WithTimeout(ctx, testLimit)
	defer cancel()
	cmd := exec.CommandContext(limited, filepath.Join(cache, name))
	cmd.Dir = cache
	// What a runtime leaves, mounts or files, goes with the namespace and the directory.
	dir, err := os.MkdirTemp("", "ocivalidate")
	if err != nil {
		return verdict{}, err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // containers' users look in here
		return verdict{}, err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	cmd.Env = append(os.Environ(), "RUNTIME="+runtime, "TMPDIR="+dir)
	cmd.WaitDelay = 5 * time.Second
	out, err := os.CreateTemp("", "tap") // a pipe would be held open by containers
	if err != nil {
		return verdict{}, err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd.Stdout = out
	err = cmd.Run()
	if ctx.Err() != nil {
		return verdict{}, ctx.Err()
	}
	var exited *exec.ExitError
	if err != nil && !errors.As(err, &exited) {
		return verdict{}, err
	}
	if _, err := out.Seek(0, io.SeekStart); err != nil {
		return verdict{}, err
	}
	tap, err := io.ReadAll(out)
	if err != nil {
		return verdict{}, err
	}
	v := count(string(tap))
	v.code = cmd.ProcessState.ExitCode()
	return v, nil
}

// count reads TAP (testanything.org). What is marked TODO or SKIP does not count as failed.
func count(tap string) verdict {
	var v verdict
	for line := range strings.Lines(tap) {
		upper := strings.ToUpper(line)
		marked := strings.Contains(upper, "# TODO") || strings.Contains(upper, "# SKIP")
		switch {
		case marked:
			v.skipped++
		case strings.HasPrefix(line, "ok "):
			v.ok++
		case strings.HasPrefix(line, "not ok "):
			v.failed++
		}
	}
	return v
}

func write(o options, rows []row) error {
	var b strings.Builder
	passed, both, better := 0, 0, 0
	for _, r := range rows {
		switch {
		case r.verdicts[0].passed() && r.verdicts[1].passed():
			both++
			passed++
		case r.verdicts[0].passed():
			passed++
		case r.verdicts[1].passed():
			better++
		}
	}
	fmt.Fprintf(&b, "# What OCI's validation suite finds\n\n`make oci-test` writes this page. It runs the validation tests of OCI runtime-tools with %s and with\n`criserver-oci`, on the same machine.\n\n", o.title)
	fmt.Fprintf(&b, "%d tests. %s passes %d of them, of which criserver-oci passes %d; criserver-oci passes %d that %s does not.\n\n", len(rows), o.title, passed, both, better, o.title)
	fmt.Fprintf(&b, "| test | %s | criserver-oci |\n|---|---|---|\n", o.title)
	for _, r := range rows {
		name := r.name
		if r.worse() {
			name = "**" + name + "**"
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", name, r.verdicts[0], r.verdicts[1])
	}
	return os.WriteFile(o.report, []byte(b.String()), 0o644)
}
