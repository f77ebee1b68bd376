package bounded

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

func sh(script string) Command {
	return Command{Path: "/bin/sh", Args: []string{"-c", script}, MaxOutput: 10}
}

func TestRun(t *testing.T) {
	for name, tt := range map[string]struct {
		command Command
		want    Output
	}{
		"output and code": {sh("echo out; echo err >&2; exit 3"), Output{Code: 3, Stdout: []byte("out\n"), Stderr: []byte("err\n")}},
		"input":           {Command{Path: "/bin/cat", Stdin: []byte("in"), MaxOutput: 10}, Output{Stdout: []byte("in")}},
		"too much":        {sh("echo 0123456789abc; echo more"), Output{Stdout: []byte("0123456789"), Cut: true}},
		"signal":          {sh("kill -9 $$"), Output{Code: 137}},
		"reads no input":  {Command{Path: "/bin/true", Stdin: make([]byte, 1<<20)}, Output{}},
		"leaves a child":  {sh("sleep 2 & exit 0"), Output{}},
	} {
		began := time.Now()
		got, err := Run(t.Context(), tt.command)
		if err != nil || got.Code != tt.want.Code || string(got.Stdout) != string(tt.want.Stdout) || string(got.Stderr) != string(tt.want.Stderr) || got.Cut != tt.want.Cut {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("%s: took %s", name, took)
		}
	}
	if _, err := Run(t.Context(), Command{Path: "/none"}); err == nil || !strings.Contains(err.Error(), "/none") {
		t.Errorf("a missing program: %v", err)
	}
}

// TestRunIsKilled ends the context of a program whose child would hold its output for long.
func TestRunIsKilled(t *testing.T) {
	why := errors.New("why")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, why)
	defer cancel()
	began := time.Now()
	_, err := Run(ctx, sh("sleep 60 & sleep 60"))
	if !errors.Is(err, why) || time.Since(began) > 30*time.Second {
		t.Errorf("%v after %s", err, time.Since(began))
	}
}
