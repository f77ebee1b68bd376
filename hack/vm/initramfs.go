package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// makeInitramfs writes an archive with the guest's init (hack/vm/init, built static) and the modules it loads.
func makeInitramfs(ctx context.Context, k kernel, path string) error {
	init := path + ".init"
	build := exec.CommandContext(ctx, "go", "build", "-o", init, "./hack/vm/init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build of the guest's init: %w: %s", err, out)
	}
	defer os.Remove(init)
	order, err := loadOrder(k.modules, modules)
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := bufio.NewWriterSize(f, 1<<20)
	w := &cpioWriter{w: buf}
	for _, dir := range []string{"dev", "proc", "sys", "root", "modules"} {
		w.dir(dir)
	}
	w.file("init", init, 0o755)
	var names strings.Builder
	for i, file := range order {
		name := fmt.Sprintf("modules/%03d-%s", i, filepath.Base(file))
		w.file(name, file, 0o644)
		fmt.Fprintln(&names, name)
	}
	w.bytes("modules.list", []byte(names.String()), 0o644)
	w.trailer()
	if w.err != nil {
		return w.err
	}
	if err := buf.Flush(); err != nil {
		return err
	}
	return f.Close()
}

// cpioWriter writes the "newc" format that the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format).
// The first error is kept in err and ends all writing.
type cpioWriter struct {
	w   io.Writer
	ino int
	n   int64
	err error
}

func (c *cpioWriter) write(p []byte) {
	if c.err != nil {
		return
	}
	n, err := c.w.Write(p)
	c.n += int64(n)
	c.err = err
}

// pad fills up to a multiple of four bytes.
func (c *cpioWriter) pad() { c.write(make([]byte, (4-c.n%4)%4)) }

func (c *cpioWriter) header(name string, mode, size int) {
	c.ino++
	c.write(fmt.Appendf(nil, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		c.ino, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name)+1, 0))
	c.write(append([]byte(name), 0))
	c.pad()
}

func (c *cpioWriter) dir(name string) { c.header(name, 0o040755, 0) }

func (c *cpioWriter) bytes(name string, data []byte, perm int) {
	c.header(name, 0o100000|perm, len(data))
	c.write(data)
	c.pad()
}

func (c *cpioWriter) file(name, path string, perm int) {
	if c.err != nil {
		return
	}
	data, err := os.ReadFile(path)
	if err != nil {
		c.err = err
		return
	}
	c.bytes(name, data, perm)
}

func (c *cpioWriter) trailer() { c.header("TRAILER!!!", 0, 0) }
