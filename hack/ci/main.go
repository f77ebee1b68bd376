// Command ci runs the steps of `make test`: each named, timed and counted, with the output of what failed.
//
//	go run ./hack/ci [-fuzztime 10s] STEP...      steps: lint unit e2e crictl-walk critest critest-runc kubelet fuzz vm-test
//	vm-systemd critest-vm pull-kills
//
// A step that fails does not stop the ones after it. The last line is "N passed, N failed"; the exit code is 1 when
// anything failed. The number counts tests; a step without tests (lint) counts its commands.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// result is what a step, or a part of it, has counted.
type result struct {
	passed, failed int
	skipped        []string // "test: why"
}

func (r *result) add(other result) {
	r.passed += other.passed
	r.failed += other.failed
	r.skipped = append(r.skipped, other.skipped...)
}

// count adds one command that is its own test.
func (r *result) count(err error, out io.Writer) {
	if err != nil {
		fmt.Fprintln(out, "FAIL", err)
		r.failed++
		return
	}
	r.passed++
}

type step func(ctx context.Context, out io.Writer) result

func main() {
	fuzzTime := flag.Duration("fuzztime", 10*time.Second, "how long each fuzz target runs")
	flag.Parse()
	steps := map[string]step{
		"lint":         lint,
		"unit":         unit,
		"e2e":          endToEnd,
		"e2e-runc":     endToEndThrough("runc"),
		"crictl-walk":  program("hack/crictl-walk/run"),
		"critest":      critest(""),
		"critest-runc": critest("runc"),
		"pull-kills":   pullKills,
		"fuzz":         fuzz(*fuzzTime),
		"kubelet":      withKubelet,
		"vm-test":      virtualMachine,
		"vm-systemd":   systemdInMachine,
		"critest-vm":   critestInMachine,
	}
	for _, name := range flag.Args() {
		if steps[name] == nil {
			fmt.Fprintf(os.Stderr, "ci: unknown step %q\n", name)
			os.Exit(2)
		}
	}
	// Everything that is shipped is static, and tests put themselves into containers that have no libraries.
	_ = os.Setenv("CGO_ENABLED", "0")
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := run(ctx, steps, flag.Args(), os.Stdout)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, steps map[string]step, names []string, out io.Writer) int {
	var total result
	var summary []string
	for _, name := range names {
		fmt.Fprintf(out, "\n== %s\n", name)
		start := time.Now()
		r := steps[name](ctx, out)
		if ctx.Err() != nil {
			r.failed++
		}
		line := fmt.Sprintf("%-12s %5d passed %3d failed %3d skipped %6.0f s", name, r.passed, r.failed, len(r.skipped), time.Since(start).Seconds())
		fmt.Fprintln(out, "--", line)
		summary = append(summary, line)
		total.add(r)
		if ctx.Err() != nil {
			break
		}
	}
	slices.Sort(total.skipped)
	if len(total.skipped) > 0 {
		fmt.Fprintf(out, "\nskipped:\n  %s\n", strings.Join(slices.Compact(total.skipped), "\n  "))
	}
	fmt.Fprintf(out, "\n%s\n%d passed, %d failed\n", strings.Join(summary, "\n"), total.passed, total.failed)
	if total.failed > 0 {
		return 1
	}
	return 0
}
