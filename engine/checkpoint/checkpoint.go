// Package checkpoint knows how a container's checkpoint lies in a directory, an archive and an image, and reads it from
// there. A checkpoint that comes from outside is hostile: names are taken from a list, nothing is opened by a path of its
// own, and what is not known is left out.
//
// The layout is the one that engines have agreed on, so that their tools (checkpointctl) know ours:
//
//	config.dump            what container it is of, JSON
//	spec.dump              its OCI spec, JSON
//	criserver.dump         what the engine needs beyond that, JSON: Info
//	checkpoint/            criu's images, and criserver.json (shim/criu)
//	rootfs-diff.tar        the changes of its writable layer, as a layer of an image
//	devshm-checkpoint.tar  its pod's shared memory, if it has any
//	dump.log, stats-dump   what criu wrote
package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/engine/spec"
)

// Names in a checkpoint.
const (
	ConfigFile = "config.dump"
	SpecFile   = "spec.dump"
	InfoFile   = "criserver.dump"
	ImagesDir  = "checkpoint"
	RootfsFile = "rootfs-diff.tar"
	ShmFile    = "devshm-checkpoint.tar"
	LogFile    = "dump.log"
	StatsFile  = "stats-dump"
)

// Version is that of Info and PodInfo.
const Version = 1

// maxDocument is the largest JSON document that is read, in bytes.
const maxDocument = 8 << 20

// Config is config.dump. The field names are those of the other engines.
type Config struct {
	ID              string    `json:"id"`
	Name            string    `json:"name"`
	RootfsImage     string    `json:"rootfsImage,omitempty"`
	RootfsImageRef  string    `json:"rootfsImageRef,omitempty"`
	RootfsImageName string    `json:"rootfsImageName,omitempty"`
	Runtime         string    `json:"runtime,omitempty"`
	CreatedTime     time.Time `json:"createdTime"`
	CheckpointedAt  time.Time `json:"checkpointedTime"`
}

// Info is criserver.dump.
type Info struct {
	Version   int            `json:"version"`
	Container spec.Container `json:"container"`
	User      spec.User      `json:"user"`
}

// Check says what is wrong with a document that comes from outside.
func (i *Info) Check() error {
	switch {
	case i.Version != Version:
		return fmt.Errorf("%s: version %d is not known, want %d: %w", InfoFile, i.Version, Version, errdefs.ErrInvalidArgument)
	case i.Container.Name == "" || i.Container.ImageID == "":
		return fmt.Errorf("%s: it names no container or no image: %w", InfoFile, errdefs.ErrInvalidArgument)
	}
	return nil
}

// PodFile is the document in the directory of a pod's checkpoint, PodInfo its content.
const PodFile = "pod.dump"

// PodInfo is pod.dump: the pod, and the directory and name of each container's checkpoint.
type PodInfo struct {
	Version    int            `json:"version"`
	Pod        spec.Pod       `json:"pod"`
	Containers []PodContainer `json:"containers"`
}

// PodContainer is a container of a pod's checkpoint.
type PodContainer struct {
	Name string `json:"name"`
	Dir  string `json:"dir"`
}

// Check says what is wrong with a document that comes from outside.
func (i *PodInfo) Check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%s: %s: %w", PodFile, fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
	}
	if i.Version != Version {
		return bad("version %d is not known, want %d", i.Version, Version)
	}
	seen := map[string]bool{}
	for n, c := range i.Containers {
		if c.Name == "" || seen[c.Name] {
			return bad("container %q has no name, or one that occurs twice", c.Name)
		}
		seen[c.Name] = true
		if c.Dir != ContainerDir(n) {
			return bad("the directory of container %q is %q, want %q", c.Name, c.Dir, ContainerDir(n))
		}
	}
	return nil
}

// ContainerDir is the directory of the nth container of a pod's checkpoint.
func ContainerDir(n int) string { return fmt.Sprintf("container-%d", n) }

// WriteJSON writes a document of a checkpoint.
func WriteJSON(dir, name string, v any) error {
	data, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	return os.WriteFile(filepath.Join(dir, name), append(data, '\n'), 0o600)
}

// ReadJSON reads a document of a checkpoint.
func ReadJSON(dir, name string, v any) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("checkpoint: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	defer root.Close()
	f, err := openRegular(root, name)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("checkpoint %s has no %s, so it is not whole, or another engine's: %w", dir, name, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return fmt.Errorf("checkpoint %s: %w", dir, err)
	}
	defer f.Close()
	return decode(name, f, v)
}

func decode(name string, r io.Reader, v any) error {
	data, err := io.ReadAll(io.LimitReader(r, maxDocument+1))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if len(data) > maxDocument {
		return fmt.Errorf("%s has more than %d bytes: %w", name, maxDocument, errdefs.ErrInvalidArgument)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w: %w", name, err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// openRegular opens a regular file beneath root; links are not followed, and a FIFO does not block.
func openRegular(root *os.Root, name string) (*os.File, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file: %w", name, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}
