package rig

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// build makes what the environment does not name: the daemon's programs, the image builder, and the images. The
// images are kept in hack/cache, which makes a second build quick.
func (p *Place) build(ctx context.Context) error {
	if p.BinDir != "" && p.TestImages != "" && p.ImagesDir != "" {
		return nil
	}
	root, err := moduleRoot(ctx)
	if err != nil {
		return err
	}
	if p.BinDir == "" {
		p.BinDir = filepath.Join(p.Dir, "bin")
		if err := os.Mkdir(p.BinDir, 0o755); err != nil {
			return err
		}
		err := run(ctx, root, "go", "build", "-o", p.BinDir+"/", "./cmd/criserver", "./cmd/criserver-shim", "./cmd/criserver-keeper")
		if err != nil {
			return err
		}
	}
	if p.TestImages == "" {
		p.TestImages = filepath.Join(p.Dir, "testimages")
		if err := run(ctx, root, "go", "build", "-o", p.TestImages, "./hack/testimages"); err != nil {
			return err
		}
	}
	if p.ImagesDir == "" {
		p.ImagesDir = filepath.Join(root, "hack", "cache", "images")
		if err := run(ctx, root, p.TestImages, "build", "-o", p.ImagesDir); err != nil {
			return err
		}
	}
	if p.Runtimes == "" {
		p.Runtimes = "runc=" + filepath.Join(root, "hack", "cache", "bin", "runc")
		return run(ctx, root, filepath.Join(root, "hack", "tools", "runc", "build"))
	}
	return nil
}

func moduleRoot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("find the module's directory (set %s, %s and %s where there is no compiler): %w",
			EnvBinDir, EnvTestImages, EnvImagesDir, err)
	}
	return strings.TrimSpace(string(out)), nil
}

func run(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", strings.Join(cmd.Args, " "), err)
	}
	return nil
}
