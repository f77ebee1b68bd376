package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/criserver/criserver/cmd/criserver/config"
)

func TestCommands(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.toml")
	if err := os.WriteFile(bad, []byte("rot = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	good := filepath.Join(t.TempDir(), "good.toml")
	for _, tt := range []struct {
		args      []string
		out, fail string // substrings
	}{
		{args: []string{"version"}, out: "criserver " + version},
		{args: []string{"config", "default"}, out: "no_progress_timeout"},
		{args: []string{"config", "check", bad}, fail: bad + ":1:1: rot: unknown key"},
		{args: []string{"config", "check", good}, fail: "no such file"},
		{args: []string{"config"}, fail: "usage"},
		{args: []string{"config", "check", "a", "b"}, fail: "usage"},
		{args: []string{"fly"}, fail: `unknown command "fly"`},
		{args: []string{"--config", bad}, fail: "unknown key"},
		{args: []string{"--root", "relative"}, fail: `root: "relative" is not an absolute path`},
		{args: []string{"--log-level", "loud"}, fail: "log.level"},
		{args: []string{"--root", "/x", "stray"}, fail: `unexpected argument "stray"`},
		{args: []string{"image"}, fail: "usage: criserver image pull"},
		{args: []string{"image", "fly"}, fail: `unknown command "image fly"`},
		{args: []string{"image", "pull"}, fail: "usage: criserver image pull [FLAGS] REF"},
		{args: []string{"image", "list", "a"}, fail: "usage: criserver image list"},
		{args: []string{"image", "list", "--root", "relative"}, fail: "not an absolute path"},
		{args: []string{"image", "list", "--listen", filepath.Join(t.TempDir(), "none.sock")}, fail: "none.sock"},
		{args: []string{"drain", "--listen", filepath.Join(t.TempDir(), "none.sock")}, fail: "none.sock"},
	} {
		var out bytes.Buffer
		err := run(t.Context(), tt.args, &out)
		switch {
		case tt.fail == "" && err != nil:
			t.Errorf("%q: %v", tt.args, err)
		case tt.fail != "" && (err == nil || !strings.Contains(err.Error(), tt.fail)):
			t.Errorf("%q: error %v lacks %q", tt.args, err, tt.fail)
		case !strings.Contains(out.String(), tt.out):
			t.Errorf("%q: %q lacks %q", tt.args, out.String(), tt.out)
		}
	}
}

func TestDefaultConfigIsChecked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(path, config.DefaultText(), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := run(t.Context(), []string{"config", "check", path}, &out); err != nil || out.String() != path+": ok\n" {
		t.Errorf("got %q, %v", out.String(), err)
	}
}

func TestFlagsWin(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(path, []byte("root='/file/root'\nstate='/file/state'\n[log]\nlevel='warn'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := configured(newFlags(), []string{"--config", path, "--state", "/flag/state", "--listen", "unix:///flag/s.sock"})
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Root != "/file/root" || cfg.State != "/flag/state" || cfg.SocketPath() != "/flag/s.sock" || cfg.SlogLevel() != slog.LevelWarn {
		t.Errorf("got %+v", cfg)
	}
}

func TestLogFormats(t *testing.T) {
	for format, want := range map[string]string{"text": "msg=hello", "json": `"msg":"hello"`} {
		cfg := config.Default()
		cfg.Log.Format = format
		var out bytes.Buffer
		log := newLog(cfg, &out)
		log.Info("hello")
		log.Debug("hidden")
		if !strings.Contains(out.String(), want) || strings.Contains(out.String(), "hidden") {
			t.Errorf("%s: %q", format, out.String())
		}
	}
}
