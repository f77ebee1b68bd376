package main

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// sources are those of this program: what it makes depends on them, and the guests are compiled from them.
//
//go:embed *.go guest/*/main.go
var sources embed.FS

// build makes the layout in out, unless it is there and up to date.
func build(ctx context.Context, out, cache string, big bool) error {
	unlock, err := lock(out)
	if err != nil {
		return err
	}
	defer unlock()
	debs, err := download(ctx, cache)
	if err != nil {
		return err
	}
	want, err := fingerprint(debs)
	if err != nil {
		return err
	}
	// A layout with the big images serves those who do not ask for them, too.
	stamps := []string{want + suffix(true)}
	if !big {
		stamps = append(stamps, want+suffix(false))
	}
	if have, err := os.ReadFile(filepath.Join(out, "stamp")); err == nil && slices.Contains(stamps, string(have)) {
		return nil
	}
	temporary, err := os.MkdirTemp(filepath.Dir(filepath.Clean(out)), ".testimages-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temporary)
	if err := os.Chmod(temporary, 0o755); err != nil {
		return err
	}
	if err := makeLayout(ctx, temporary, debs, big); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(temporary, "stamp"), []byte(want+suffix(big)), 0o644); err != nil {
		return err
	}
	return replace(temporary, out)
}

func suffix(big bool) string {
	if big {
		return " big\n"
	}
	return "\n"
}

// replace puts a finished layout in the place of an older one, and refuses to replace anything else.
func replace(temporary, out string) error {
	if _, err := os.Stat(out); err == nil {
		entries, err := os.ReadDir(out)
		if err != nil {
			return err
		}
		if _, err := os.Stat(filepath.Join(out, "oci-layout")); err != nil && len(entries) > 0 {
			return fmt.Errorf("%s is neither empty nor an image layout: give another directory with -o", out)
		}
		if err := os.RemoveAll(out); err != nil {
			return err
		}
	}
	return os.Rename(temporary, out)
}

// fingerprint identifies what the images are made of: the packages, this program, and what compiled it and the guests. The
// binary would not do, for it changes with every commit.
func fingerprint(debs map[string]string) (string, error) {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(debs)) {
		fmt.Fprintln(h, filepath.Base(debs[name]))
	}
	fmt.Fprintln(h, runtime.Version(), runtime.GOARCH)
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, module := range info.Deps {
			if module.Path == "github.com/klauspost/compress" {
				fmt.Fprintln(h, module.Version)
			}
		}
	}
	err := fs.WalkDir(sources, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || strings.HasSuffix(path, "_test.go") {
			return err
		}
		content, err := sources.ReadFile(path)
		fmt.Fprintf(h, "%s %x\n", path, sha256.Sum256(content))
		return err
	})
	return hex.EncodeToString(h.Sum(nil)), err
}

// lock keeps others from building next to out until it is called off.
func lock(out string) (unlock func(), err error) {
	parent := filepath.Dir(filepath.Clean(out))
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(filepath.Join(parent, ".testimages.lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", file.Name(), err), file.Close())
	}
	return func() { _ = file.Close() }, nil
}

func makeLayout(ctx context.Context, dir string, debs map[string]string, big bool) error {
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		return err
	}
	l := &layout{dir: dir}
	if err := addImages(ctx, l, debs); err != nil {
		return err
	}
	if big {
		if err := addBig(l); err != nil {
			return err
		}
	}
	return l.finish()
}

// guest compiles one of the programs in guest/ to a static binary.
func guest(ctx context.Context, name string) (string, error) {
	source, err := sources.ReadFile("guest/" + name + "/main.go")
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "testimages-guest-*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "main.go"), source, 0o644); err != nil {
		return "", err
	}
	command := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", "out", "main.go")
	command.Dir = dir
	command.Env = append(os.Environ(), "CGO_ENABLED=0", "GO111MODULE=off", "GOFLAGS=", "GOWORK=off")
	if output, err := command.CombinedOutput(); err != nil {
		return "", fmt.Errorf("compile %s: %w\n%s", name, err, output)
	}
	binary, err := os.ReadFile(filepath.Join(dir, "out"))
	return string(binary), err
}

// applets are the paths that busybox can be called by.
func applets(ctx context.Context, busybox string) ([]string, error) {
	dir, err := os.MkdirTemp("", "testimages-busybox-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "busybox") // it looks at its name
	if err := os.WriteFile(file, []byte(busybox), 0o700); err != nil {
		return nil, err
	}
	output, err := exec.CommandContext(ctx, file, "--list-full").Output()
	if err != nil {
		return nil, fmt.Errorf("busybox --list-full: %w (is this machine %s?)", err, runtime.GOARCH)
	}
	return strings.Fields(string(output)), nil
}
