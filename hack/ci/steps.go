package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// command runs a program with its output on out, and more environment.
func command(ctx context.Context, out io.Writer, env []string, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = append(os.Environ(), env...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", strings.Join(append([]string{name}, args...), " "), err)
	}
	return nil
}

// program is a step that a program of the tree does; it counts as one test.
func program(path string, args ...string) step {
	return func(ctx context.Context, out io.Writer) result {
		var r result
		r.count(command(ctx, out, nil, path, args...), out)
		return r
	}
}

// critest runs the suite of cri-tools, whose last line has the counts.
func critest(handler string) step { return suite("hack/critest/run", "-handler", handler) }

// suite runs what prints what hack/critest does, and reads the counts.
func suite(name string, args ...string) step {
	return func(ctx context.Context, out io.Writer) result {
		var r result
		var log bytes.Buffer
		err := command(ctx, io.MultiWriter(out, &log), nil, name, args...)
		counts := suiteCounts.FindStringSubmatch(log.String())
		if counts == nil {
			r.count(fmt.Errorf("critest did not run to its end: %v", err), out)
			return r
		}
		r.passed, _ = strconv.Atoi(counts[1])
		r.failed, _ = strconv.Atoi(counts[2])
		for _, skipped := range suiteSkips.FindAllStringSubmatch(log.String(), -1) {
			r.skipped = append(r.skipped, skipped[1])
		}
		if err != nil && r.failed == 0 {
			r.count(err, out)
		}
		return r
	}
}

var (
	suiteCounts = regexp.MustCompile(`(?m)^critest: (\d+) passed, (\d+) failed, \d+ skipped$`)
	suiteSkips  = regexp.MustCompile(`(?m)^skipped (.*: .*)$`)
)

func lint(ctx context.Context, out io.Writer) result {
	var r result
	r.count(formatted(ctx), out)
	staticcheck := []string{"tool", "-modfile=hack/tools/lint/go.mod", "staticcheck", "./..."}
	arm := []string{"GOARCH=arm64", "CGO_ENABLED=0"}
	for _, one := range []struct {
		env  []string
		args []string
	}{
		{nil, []string{"vet", "./..."}},
		{nil, staticcheck},
		{arm, []string{"build", "-o", os.DevNull, "./cmd/..."}},
		{arm, []string{"vet", "./..."}},
	} {
		r.count(command(ctx, out, one.env, "go", one.args...), out)
	}
	return r
}

func formatted(ctx context.Context) error {
	files, err := exec.CommandContext(ctx, "git", "ls-files", "*.go").Output()
	if err != nil { // a tree without git, from an archive
		files = []byte(".")
	}
	names, err := exec.CommandContext(ctx, "gofmt", append([]string{"-l"}, strings.Fields(string(files))...)...).Output()
	if err != nil {
		return fmt.Errorf("gofmt: %w", err)
	}
	if len(names) > 0 {
		return fmt.Errorf("gofmt -w is missing: %s", strings.Join(strings.Fields(string(names)), " "))
	}
	return nil
}

func packages(ctx context.Context) ([]string, error) {
	list, err := exec.CommandContext(ctx, "go", "list", "./...").Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	return strings.Fields(string(list)), nil
}

// unit runs every test that is not end to end and not with a kubelet. Many of them work on the kernel, as root, each in namespaces and cgroups
// of its own.
func unit(ctx context.Context, out io.Writer) result {
	all, err := packages(ctx)
	if err != nil {
		var r result
		r.count(err, out)
		return r
	}
	args := []string{"-timeout", "15m"}
	for _, p := range all {
		if !strings.Contains(p, "/test/e2e") && !strings.HasSuffix(p, "/test/kubelet") {
			args = append(args, p)
		}
	}
	return goTest(ctx, out, args...)
}

// endToEnd fails as well when no test uses a call or a field of CRI. It writes the page that says which test uses which.
func endToEnd(ctx context.Context, out io.Writer) result {
	page, err := filepath.Abs("docs/cri-conformance.md")
	if err != nil {
		var r result
		r.count(err, out)
		return r
	}
	return goTest(ctx, out, "-count=1", "-timeout", "20m", "./test/e2e", "-conformance", page)
}

// pullKills kills the daemon amid pulls a hundred times; the end-to-end tests do it ten times.
func pullKills(ctx context.Context, out io.Writer) result {
	return goTest(ctx, out, "-count=1", "-timeout", "40m", "-run", "^TestKillPull$", "./test/e2e", "-pull-kills", "100")
}

// withKubelet runs the real kubelet on the real daemon.
func withKubelet(ctx context.Context, out io.Writer) result {
	var r result
	if err := command(ctx, out, nil, "hack/tools/kubelet/build"); err != nil {
		r.count(err, out)
		return r
	}
	kubelet, err := filepath.Abs("hack/cache/bin/kubelet")
	if err != nil {
		r.count(err, out)
		return r
	}
	return goTest(ctx, out, "-count=1", "-timeout", "40m", "./test/kubelet", "-short", "-kubelet", kubelet)
}

var fuzzTarget = regexp.MustCompile(`(?m)^func (Fuzz\w+)\(`)

// fuzz runs each target by itself, as go test wants it. Minimising is kept short: it would take the whole time whenever
// coverage depends on the order of a map.
func fuzz(duration time.Duration) step {
	return func(ctx context.Context, out io.Writer) result {
		var r result
		files, err := filepath.Glob("*/*_test.go")
		for _, pattern := range []string{"*/*/*_test.go", "*/*/*/*_test.go"} {
			more, _ := filepath.Glob(pattern)
			files = append(files, more...)
		}
		if err != nil || len(files) == 0 {
			r.count(fmt.Errorf("no test files found: %v", err), out)
			return r
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				r.count(err, out)
			}
			for _, match := range fuzzTarget.FindAllSubmatch(text, -1) {
				r.count(fuzzOne(ctx, out, "./"+filepath.Dir(file), string(match[1]), duration), out)
			}
		}
		return r
	}
}

// fuzzOne runs one target. Go's fuzzing engine at times reports its own deadline as a failure, when a worker is amid a call
// as the time ends; it then has no failing input to show. Such a run says nothing of the target and is made once more.
func fuzzOne(ctx context.Context, out io.Writer, dir, name string, duration time.Duration) error {
	for again := false; ; again = true {
		var log bytes.Buffer
		err := command(ctx, &log, nil, "go", "test", "-run", "^$", "-fuzz", "^"+name+"$",
			"-fuzztime", duration.String(), "-fuzzminimizetime", "20x", dir)
		if err == nil {
			fmt.Fprintf(out, "ok   %s %s\n", dir, name)
			return nil
		}
		fmt.Fprint(out, log.String())
		if again || !deadlineOnly.Match(log.Bytes()) {
			return err
		}
		fmt.Fprintf(out, "the engine's own deadline, no failing input: %s runs once more\n", name)
	}
}

// deadlineOnly matches a failed target whose only message is the engine's deadline.
var deadlineOnly = regexp.MustCompile(`(?m)^--- FAIL: Fuzz\w+ \([0-9.]+s\)\n    context deadline exceeded\nFAIL$`)
