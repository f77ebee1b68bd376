package main

import (
	"context"
	"errors"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// addBench makes the image of hack/bench: a static busybox and nothing else, so that the time of an exec is the runtime's
// and not the dynamic loader's.
func addBench(ctx context.Context, l *layout, debs map[string]string, _ layer) error {
	t := newTree()
	for _, dir := range []string{"dev", "etc", "proc", "sys"} {
		t.dir(dir, 0o755)
	}
	t.dir("tmp", 0o1777)
	t.file("etc/passwd", 0o644, passwd)
	t.file("etc/group", 0o644, group)
	if err := t.deb(ctx, debs["busybox-static"], func(name string) bool { return name == "bin/busybox" }); err != nil {
		return err
	}
	busybox := t.entries["bin/busybox"]
	if busybox == nil {
		return errors.New("package busybox-static has no bin/busybox")
	}
	names, err := applets(ctx, string(busybox.body))
	if err != nil {
		return err
	}
	for _, name := range names {
		if t.entries[name] == nil {
			t.hardlink(name, "bin/busybox")
		}
	}
	base, err := l.layer("gzip", t.write)
	if err != nil {
		return err
	}
	return l.add(image{layers: []layer{base}, config: ocispec.ImageConfig{Env: []string{searchPath}, Cmd: []string{"sh"}}}, "criserver/bench:latest")
}
