package checkpoint

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/internal/ctxio"
)

// Limits of what is taken from a checkpoint that comes from outside. Its size is bounded by the filesystem alone, as that
// of an image is: it is the memory of a container.
const (
	maxFiles   = 100_000
	maxEntries = 200_000
)

// known are the files that a checkpoint has beside criu's images.
var known = []string{ConfigFile, SpecFile, InfoFile, RootfsFile, ShmFile, LogFile, StatsFile}

// wanted says whether a name in a checkpoint is one that is taken, and its clean form.
func wanted(name string) (string, bool) {
	name = path.Clean("/" + name)[1:]
	if slices.Contains(known, name) {
		return name, true
	}
	file, ok := strings.CutPrefix(name, ImagesDir+"/")
	return name, ok && plainName(file)
}

// plainName accepts what criu and we call files.
func plainName(name string) bool {
	if name == "" || len(name) > 200 || name[0] == '.' {
		return false
	}
	for i := range len(name) {
		b := name[i]
		if !(b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || b == '.' || b == '_' || b == '-') {
			return false
		}
	}
	return true
}

// Pack writes the checkpoint in dir as an archive at path, which is replaced once the archive is whole.
func Pack(ctx context.Context, dir, path string) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	w := tar.NewWriter(f)
	if err := pack(ctx, dir, w); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	// Whoever asked for the archive may lose power, or copy it, at once.
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func pack(ctx context.Context, dir string, w *tar.Writer) error {
	return filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil || rel == "." {
			return err
		}
		if d.IsDir() {
			return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: rel + "/", Mode: 0o700, ModTime: time.Now()})
		}
		info, err := d.Info()
		if err != nil || !info.Mode().IsRegular() {
			return err
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		h := &tar.Header{Typeflag: tar.TypeReg, Name: rel, Mode: 0o600, Size: info.Size(), ModTime: info.ModTime()}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		_, err = io.Copy(w, ctxio.Reader(ctx, f))
		return err
	})
}

// Unpack reads an archive into the empty directory dir.
func Unpack(ctx context.Context, archive io.Reader, dir string) error {
	root, err := target(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	r := tar.NewReader(ctxio.Reader(ctx, archive))
	for n := 0; ; n++ {
		h, err := r.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF):
			return fmt.Errorf("the checkpoint is not a tar archive, or is cut off: %w: %w", err, errdefs.ErrInvalidArgument)
		case err != nil:
			return err
		case n > maxEntries:
			return fmt.Errorf("the checkpoint has more than %d entries: %w", maxEntries, errdefs.ErrInvalidArgument)
		}
		name, ok := wanted(h.Name)
		if !ok {
			continue
		}
		if h.Typeflag != tar.TypeReg {
			return fmt.Errorf("the checkpoint's %s is not a regular file: %w", name, errdefs.ErrInvalidArgument)
		}
		if err := take(root, name, r); err != nil {
			return err
		}
	}
}

// target opens the directory that a checkpoint is taken into.
func target(dir string) (*os.Root, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	if err := root.Mkdir(ImagesDir, 0o700); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return root, nil
}

// take copies one file. A name that occurs twice is refused: readers could mean different ones.
func take(root *os.Root, name string, r io.Reader) error {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("the checkpoint has two of %s: %w", name, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	err = errors.Join(err, f.Close())
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("the checkpoint is not a tar archive, or is cut off: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("%w: free space on the filesystem of the root directory: %w", err, errdefs.ErrResourceExhausted)
	}
	return err
}

// Copy takes a checkpoint from directories, uppermost first, into the empty directory dir: the layers of an image, or
// one directory. Where several have a file, the uppermost one counts.
func Copy(ctx context.Context, from []string, dir string) error {
	root, err := target(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	taken := map[string]bool{}
	for _, source := range from {
		if err := copyFrom(ctx, source, root, taken); err != nil {
			return err
		}
	}
	return nil
}

func copyFrom(ctx context.Context, source string, to *os.Root, taken map[string]bool) error {
	from, err := os.OpenRoot(source)
	if err != nil {
		return err
	}
	defer from.Close()
	names := slices.Clone(known)
	images, err := from.OpenFile(ImagesDir, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_DIRECTORY, 0)
	if err == nil {
		var files []string
		files, err = images.Readdirnames(maxFiles + 1)
		_ = images.Close()
		if len(files) > maxFiles {
			return fmt.Errorf("the checkpoint has more than %d files: %w", maxFiles, errdefs.ErrInvalidArgument)
		}
		for _, file := range files {
			names = append(names, ImagesDir+"/"+file)
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, io.EOF) {
		return fmt.Errorf("the checkpoint's %s: %w", ImagesDir, err)
	}
	for _, name := range names {
		clean, ok := wanted(name)
		if !ok || taken[clean] {
			continue
		}
		f, err := openRegular(from, clean)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("the checkpoint's %s: %w", clean, err)
		}
		taken[clean] = true
		err = take(to, clean, ctxio.Reader(ctx, f))
		_ = f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}
