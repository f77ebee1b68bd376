package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"time"
)

// event is a line of `go test -json` (go doc test2json).
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
	Elapsed float64
}

// counter follows the events of a test run: it keeps the output of tests until it is known whether they fail.
type counter struct {
	result
	out  io.Writer
	logs map[string]*strings.Builder // by package and test; "" is the package's own
}

// goTest runs go test and counts its tests.
func goTest(ctx context.Context, out io.Writer, args ...string) result {
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	c := &counter{out: out, logs: map[string]*strings.Builder{}}
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		c.count(err, out)
		return c.result
	}
	c.read(stdout)
	if err := cmd.Wait(); err != nil && c.failed == 0 {
		c.count(fmt.Errorf("go test: %w", err), out)
	}
	return c.result
}

func (c *counter) read(r io.Reader) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			fmt.Fprintln(c.out, lines.Text()) // not of test2json
			continue
		}
		c.see(e)
	}
}

func (c *counter) see(e event) {
	key := e.Package + "\x00" + e.Test
	switch e.Action {
	case "output", "build-output":
		if c.logs[key] == nil {
			c.logs[key] = &strings.Builder{}
		}
		c.logs[key].WriteString(e.Output)
		return
	case "pass":
		if e.Test != "" {
			c.passed++
		} else {
			fmt.Fprintf(c.out, "ok   %s %.1f s\n", e.Package, e.Elapsed)
		}
	case "skip":
		if e.Test != "" {
			c.skipped = append(c.skipped, e.Test+": "+reason(c.text(key)))
		}
	case "fail", "build-fail":
		c.failed++
		fmt.Fprintf(c.out, "FAIL %s %s\n%s", e.Package, e.Test, c.text(key))
	default:
		return
	}
	delete(c.logs, key)
}

func (c *counter) text(key string) string {
	if log := c.logs[key]; log != nil {
		return log.String()
	}
	return ""
}

var skipReason = regexp.MustCompile(`(?m)^\s+\S+\.go:\d+: (.*)$`)

func reason(log string) string {
	if match := skipReason.FindStringSubmatch(log); match != nil {
		return match[1]
	}
	return "no reason given"
}

var verdict = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): (\S+)`)

// verbose runs a program that prints what a test binary prints with -test.v, and counts it.
func verbose(ctx context.Context, out io.Writer, name string, args ...string) result {
	var r result
	reader, writer := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := command(ctx, writer, nil, name, args...)
		writer.Close()
		done <- err
	}()
	lines := bufio.NewScanner(reader)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fmt.Fprintln(out, lines.Text())
		match := verdict.FindStringSubmatch(strings.TrimRight(lines.Text(), "\r"))
		if match == nil {
			continue
		}
		switch match[1] {
		case "PASS":
			r.passed++
		case "FAIL":
			r.failed++
		case "SKIP":
			r.skipped = append(r.skipped, match[2]+": not in this virtual machine run")
		}
	}
	reader.CloseWithError(lines.Err())
	if err := <-done; err != nil && r.failed == 0 || err == nil && r.passed == 0 {
		r.count(fmt.Errorf("%s: no verdict of the tests: %v", name, err), out)
	}
	return r
}
