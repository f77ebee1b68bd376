package image

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// verifiers makes a directory of scripts by name.
func verifiers(t *testing.T, scripts map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, script := range scripts {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestVerifiers pulls past verifiers: a refusal ends the pull before any layer, with the program's reason.
func TestVerifiers(t *testing.T) {
	const agree = "exit 0\n"
	for name, test := range map[string]struct {
		scripts map[string]string
		kind    func(error) bool // nil: it may be pulled
		text    string
	}{
		"agree":         {map[string]string{"a": agree, "b": "cat >/dev/null\n"}, nil, ""},
		"refuse":        {map[string]string{"a": agree, "b": "echo 'not signed'\nexit 1\n"}, errdefs.IsPermissionDenied, "image verifier b: refused sha256:"},
		"reason":        {map[string]string{"a": "printf 'two\\nlines\\033[2J'\nexit 7\n"}, errdefs.IsPermissionDenied, "two lines [2J (exit code 7)"},
		"no reason":     {map[string]string{"a": "exit 1\n"}, errdefs.IsPermissionDenied, "gave no reason"},
		"on stderr":     {map[string]string{"a": "echo why >&2; exit 1\n"}, errdefs.IsPermissionDenied, "why (exit code 1)"},
		"much":          {map[string]string{"a": "yes | head -c 1000000\nexit 1\n"}, errdefs.IsPermissionDenied, "(cut)"},
		"late":          {map[string]string{"a": "sleep 60\n"}, errdefs.IsFailedPrecondition, "no answer within 1s"},
		"killed":        {map[string]string{"a": "kill -9 $$\n"}, errdefs.IsPermissionDenied, "exit code 137"},
		"no program":    {map[string]string{}, errdefs.IsFailedPrecondition, "there is none in"},
		"no executable": {map[string]string{"a": agree, "z.txt": agree}, errdefs.IsFailedPrecondition, "z.txt"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := verifiers(t, test.scripts)
			if name == "no executable" {
				if err := os.Chmod(filepath.Join(dir, "z.txt"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			f := newFakeRegistry(t)
			l := makeLayer(t, "gzip", map[string]string{"a": "a"})
			pushed := f.push("app", "1", []testLayer{l})
			s := openStore(t, Config{Verifiers: Verifiers{Dir: dir, Timeout: time.Second}})
			_, err := s.Pull(t.Context(), pushed.ref, PullOptions{})
			if test.kind == nil {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !test.kind(err) || !strings.Contains(err.Error(), test.text) {
				t.Errorf("error: %v", err)
			}
			if n := f.blobGets(l.Digest); n > 0 {
				t.Errorf("the layer was fetched %d times before the verdict", n)
			}
			assertEmpty(t, s)
		})
	}
}

// TestVerifierIsAsked looks at what a verifier gets, and pulls again what is here when it has changed its mind.
func TestVerifierIsAsked(t *testing.T) {
	asked := filepath.Join(t.TempDir(), "asked")
	dir := verifiers(t, map[string]string{"v": "echo \"$@\" >" + asked + "\ncat >>" + asked + "\ntest ! -e " + asked + ".no\n"})
	f := newFakeRegistry(t)
	pushed := f.push("app", "1", []testLayer{makeLayer(t, "gzip", map[string]string{"a": "a"})})
	s := openStore(t, Config{Verifiers: Verifiers{Dir: dir}})
	mustPull(t, s, pushed.ref)
	got, err := os.ReadFile(asked)
	if err != nil {
		t.Fatal(err)
	}
	d := pushed.manifest
	for _, want := range []string{
		"-name " + pushed.ref + " -digest " + d.Digest.String() + " -stdin-media-type " + ocispec.MediaTypeDescriptor + "\n",
		`"mediaType":"` + d.MediaType + `"`, `"digest":"` + d.Digest.String() + `"`, `"size":`,
	} {
		if !strings.Contains(string(got), want) {
			t.Errorf("it was asked %q, without %q", got, want)
		}
	}
	if err := os.WriteFile(asked+".no", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pull(t.Context(), pushed.ref, PullOptions{}); !errdefs.IsPermissionDenied(err) {
		t.Errorf("an image that is here and is refused now: %v", err)
	}
	missing := Verifiers{Dir: filepath.Join(dir, "none")}
	if err := missing.verify(t.Context(), "n", d); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "bin_dir") {
		t.Errorf("without the directory: %v", err)
	}
}
