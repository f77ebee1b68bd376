package main

import (
	"archive/tar"
	"context"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
)

// epoch is the time of every file and image, so that images do not change when they are made again.
var epoch = time.Unix(1_700_000_000, 0).UTC()

// tree is a layer in the making: entries by name. Parents are added by themselves.
type tree struct {
	entries map[string]*entry
}

type entry struct {
	header tar.Header
	body   []byte
}

func newTree() *tree { return &tree{entries: map[string]*entry{}} }

func (t *tree) put(h tar.Header, body []byte) {
	h.Name = strings.Trim(h.Name, "/")
	for parent := path.Dir(h.Name); parent != "."; parent = path.Dir(parent) {
		if t.entries[parent] == nil {
			t.entries[parent] = &entry{header: tar.Header{Typeflag: tar.TypeDir, Name: parent, Mode: 0o755}}
		}
	}
	h.Size = int64(len(body))
	t.entries[h.Name] = &entry{header: h, body: body}
}

func (t *tree) dir(name string, mode int64) {
	t.put(tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}, nil)
}

func (t *tree) file(name string, mode int64, body string) {
	t.put(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, []byte(body))
}

func (t *tree) hardlink(name, target string) {
	t.put(tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o755}, nil)
}

// deb adds the entries of a package that keep says yes to. Directories come with their entries.
func (t *tree) deb(ctx context.Context, file string, keep func(name string) bool) error {
	return readDeb(ctx, file, func(h *tar.Header, body io.Reader) error {
		if h.Typeflag == tar.TypeDir || !keep(h.Name) {
			return nil
		}
		content, err := io.ReadAll(body)
		if err != nil {
			return err
		}
		t.put(tar.Header{Typeflag: h.Typeflag, Name: h.Name, Linkname: strings.TrimPrefix(h.Linkname, "./"), Mode: h.Mode, Uid: h.Uid, Gid: h.Gid}, content)
		return nil
	})
}

// write writes the tree as tar: in the order of names, so parents come first, but hard links at the end, after their targets.
func (t *tree) write(w *tar.Writer) error {
	names := slices.Sorted(maps.Keys(t.entries))
	slices.SortStableFunc(names, func(a, b string) int { return t.rank(a) - t.rank(b) })
	for _, name := range names {
		e := t.entries[name]
		h := e.header
		h.ModTime, h.Format = epoch, tar.FormatPAX
		if h.Typeflag == tar.TypeDir {
			h.Name += "/"
		}
		if err := w.WriteHeader(&h); err != nil {
			return err
		}
		if _, err := w.Write(e.body); err != nil {
			return err
		}
	}
	return nil
}

func (t *tree) rank(name string) int {
	if t.entries[name].header.Typeflag == tar.TypeLink {
		return 1
	}
	return 0
}
