package main

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
)

// packages are the Debian packages that the images are made of, with the libraries of what is taken from them.
var packages = []string{
	"busybox", "busybox-static", "util-linux", "procps", "nginx", "nginx-common",
	"libc6", "libproc2-0", "libsystemd0", "libcap2", "libgcrypt20", "libgpg-error0", "liblzma5", "libzstd1", "liblz4-1",
	"libcrypt1", "libpcre2-8-0", "libssl3", "zlib1g",
}

// download puts the packages into dir, unless they are there, and gives their files by name. The versions are those that
// apt would install.
func download(ctx context.Context, dir string) (map[string]string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	files, missing := map[string]string{}, []string{}
	for _, name := range packages {
		if found := newest(dir, name); found != "" {
			files[name] = found
		} else {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return files, nil
	}
	temporary, err := os.MkdirTemp(dir, ".download-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(temporary)
	command := exec.CommandContext(ctx, "apt-get", append([]string{"download", "-q"}, missing...)...)
	command.Dir = temporary
	if output, err := command.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("apt-get download: %w (run `apt-get update` when a package is not found)\n%s", err, output)
	}
	for _, name := range missing {
		found := newest(temporary, name)
		if found == "" {
			return nil, fmt.Errorf("apt-get download left no file for package %s", name)
		}
		files[name] = filepath.Join(dir, filepath.Base(found))
		if err := os.Rename(found, files[name]); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// newest is the file of a package in dir, or "".
func newest(dir, name string) string {
	found, _ := filepath.Glob(filepath.Join(dir, name+"_*_"+runtime.GOARCH+".deb"))
	all, _ := filepath.Glob(filepath.Join(dir, name+"_*_all.deb"))
	found = append(found, all...)
	if len(found) == 0 {
		return ""
	}
	sort.Strings(found)
	return found[len(found)-1]
}

// readDeb gives every entry of a package's file system to add, names relative ("usr/bin/ipcs").
func readDeb(ctx context.Context, file string, add func(h *tar.Header, body io.Reader) error) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	command := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", file)
	command.Stderr = os.Stderr
	stream, err := command.StdoutPipe()
	if err != nil {
		return err
	}
	if err := command.Start(); err != nil {
		return fmt.Errorf("dpkg-deb: %w", err)
	}
	defer func() {
		if err != nil {
			cancel()
		}
		if exit := command.Wait(); err == nil && exit != nil {
			err = fmt.Errorf("dpkg-deb --fsys-tarfile %s: %w", file, exit)
		}
	}()
	reader := tar.NewReader(stream)
	for {
		header, err := reader.Next()
		if err == io.EOF {
			_, err = io.Copy(io.Discard, stream)
			return err
		}
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		header.Name = strings.Trim(strings.TrimPrefix(header.Name, "./"), "/")
		if header.Name == "" || header.Name == "." {
			continue
		}
		if err := add(header, reader); err != nil {
			return err
		}
	}
}
