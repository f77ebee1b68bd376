package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestPlan(t *testing.T) {
	dir := t.TempDir()
	spec := specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: dir},
		Process: &specs.Process{Args: []string{"/bin/true"}, Cwd: "/"},
		Linux:   &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}}},
	}
	b, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "config.json")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := plan([]string{path}, &out); err != nil {
		t.Fatal(err)
	}
	for _, call := range []string{"pivot_root", "execve"} {
		if !strings.Contains(out.String(), call) {
			t.Errorf("no %s in the plan:\n%s", call, out.String())
		}
	}
	for name, content := range map[string]string{"empty": "", "other": "{}"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := plan([]string{path}, &out); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := plan(nil, &out); err == nil {
		t.Error("no path, and no error")
	}
}

// TestUsage: what is not known is not guessed.
func TestUsage(t *testing.T) {
	if code := oci([]string{"nothing"}); code != 2 {
		t.Errorf("an unknown command answers %d", code)
	}
}
