package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseResult(t *testing.T) {
	for text, want := range map[string]int{"exit 0\n": 0, "exit 7\r\n": 7, "exit 137": 137} {
		if got, err := parseResult(text); err != nil || got != want {
			t.Errorf("%q: %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "exit", "exit x", "Kernel panic"} {
		if got, err := parseResult(text); err == nil {
			t.Errorf("%q: %d, want an error", text, got)
		}
	}
}

// TestCPIO unpacks an archive with the machine's own cpio, where there is one; its layout is checked in any case.
func TestCPIO(t *testing.T) {
	dir := t.TempDir()
	source := filepath.Join(dir, "source")
	if err := os.WriteFile(source, []byte("from a file"), 0o644); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	w := &cpioWriter{w: &archive}
	w.dir("d")
	w.bytes("d/odd", []byte("12345"), 0o644)
	w.file("d/file", source, 0o755)
	w.trailer()
	if w.err != nil {
		t.Fatal(w.err)
	}
	if archive.Len()%4 != 0 || !strings.HasPrefix(archive.String(), "070701") || !strings.Contains(archive.String(), "TRAILER!!!") {
		t.Errorf("not an archive: %d bytes, beginning %q", archive.Len(), archive.String()[:20])
	}
	if _, err := exec.LookPath("cpio"); err != nil {
		return
	}
	out := t.TempDir()
	cmd := exec.Command("cpio", "-i", "--quiet")
	cmd.Dir, cmd.Stdin = out, &archive
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v: %s", err, text)
	}
	for name, want := range map[string]string{"d/odd": "12345", "d/file": "from a file"} {
		if got, err := os.ReadFile(filepath.Join(out, name)); err != nil || string(got) != want {
			t.Errorf("%s reads %q, %v, want %q", name, got, err, want)
		}
	}
}

// TestLoadOrder wants dependencies first. It needs a kernel package, which hack/vm/run keeps in hack/cache.
func TestLoadOrder(t *testing.T) {
	k, err := findKernel("../cache/vm/kernel")
	if err != nil {
		t.Skipf("no kernel package is unpacked here (hack/vm/run does it): %v", err)
	}
	order, err := loadOrder(k.modules, modules)
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]int{}
	for i, path := range order {
		name := moduleName(strings.TrimSuffix(filepath.Base(path), ".ko"))
		if _, twice := at[name]; twice {
			t.Errorf("%s is loaded twice", name)
		}
		at[name] = i
		deps, err := moduleDeps(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, dep := range deps {
			if before, ok := at[moduleName(dep)]; !ok || before >= i {
				t.Errorf("%s is loaded before %s, which it needs", name, dep)
			}
		}
	}
	if _, err := loadOrder(k.modules, []string{"no_such_module"}); err == nil || !strings.Contains(err.Error(), "no_such_module") {
		t.Errorf("a module that is not there: %v, want an error that names it", err)
	}
}
