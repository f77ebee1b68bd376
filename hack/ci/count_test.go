package main

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
)

func TestCounter(t *testing.T) {
	var out bytes.Buffer
	c := &counter{out: &out, logs: map[string]*strings.Builder{}}
	c.read(strings.NewReader(`{"Action":"output","Package":"p","Test":"TestA","Output":"quiet\n"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestB","Output":"    b_test.go:3: the kernel lacks it\n"}
{"Action":"skip","Package":"p","Test":"TestB"}
{"Action":"output","Package":"p","Test":"TestC","Output":"    c_test.go:9: broken\n"}
{"Action":"fail","Package":"p","Test":"TestC"}
not json
{"Action":"pass","Package":"q","Elapsed":0.5}
`))
	if c.passed != 1 || c.failed != 1 || len(c.skipped) != 1 || c.skipped[0] != "TestB: the kernel lacks it" {
		t.Errorf("counted %+v", c.result)
	}
	text := out.String()
	if strings.Contains(text, "quiet") || !strings.Contains(text, "broken") || !strings.Contains(text, "not json") {
		t.Errorf("printed %q", text)
	}
}

func TestRun(t *testing.T) {
	steps := map[string]step{
		"good": func(context.Context, io.Writer) result { return result{passed: 3, skipped: []string{"T: why"}} },
		"bad":  func(context.Context, io.Writer) result { return result{failed: 1} },
	}
	var out bytes.Buffer
	if code := run(t.Context(), steps, []string{"bad", "good"}, &out); code != 1 {
		t.Errorf("code %d", code)
	}
	if !strings.HasSuffix(out.String(), "\n3 passed, 1 failed\n") || !strings.Contains(out.String(), "T: why") {
		t.Errorf("printed %q", out.String())
	}
	if code := run(t.Context(), steps, []string{"good"}, io.Discard); code != 0 {
		t.Errorf("code %d", code)
	}
}

func TestVerbose(t *testing.T) {
	r := verbose(t.Context(), io.Discard, "printf", "--- PASS: TestA (0.1s)\r\n    --- FAIL: TestB/x\n--- SKIP: TestC\n")
	if r.passed != 1 || r.failed != 1 || len(r.skipped) != 1 {
		t.Errorf("counted %+v", r)
	}
	if r = verbose(t.Context(), io.Discard, "true"); r.failed != 1 {
		t.Errorf("no verdict counts as %+v", r)
	}
	if r = verbose(t.Context(), io.Discard, "false"); r.failed != 1 {
		t.Errorf("a failing program counts as %+v", r)
	}
}
