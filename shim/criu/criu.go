// Package criu knows how a container's processes are dumped and restored by criu (checkpoint/restore in userspace): what of
// a container is external to it, which criu is told at the dump and gets anew at the restore, and the command lines for
// both. It runs nothing.
//
// Everything that a container has from outside gets a key in the images: mounts of the host, its standard streams, its
// network namespace. A restore gives each key what the new container has in that place. The keys are kept in a file
// beside the images (Descriptors), which comes from outside when the images do: it says which keys there are, never what
// they stand for.
package criu

import (
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// DescriptorsFile is the name of Descriptors beside the images.
const DescriptorsFile = "criserver.json"

// Version is that of the format of Descriptors.
const Version = 1

// maxDescriptors is the largest file that is read, in bytes, and maxKeys the most keys that it may have.
const (
	maxDescriptors = 4 << 20
	maxKeys        = 4096
)

// Kinds of external mounts.
const (
	KindBind   = "bind"   // a mount of the host that the spec names, or one beneath it
	KindMask   = "mask"   // /dev/null over a masked file
	KindShm    = "shm"    // the pod's shared memory
	KindCgroup = "cgroup" // the container's own cgroup
)

// Mount is a mount that the container has from outside.
type Mount struct {
	Key   string `json:"key"`
	Place string `json:"place"` // in the container
	Kind  string `json:"kind"`
}

// Streams of a process.
const (
	Stdin  = "stdin"
	Stdout = "stdout"
	Stderr = "stderr"
	Null   = "null" // the host's /dev/null, which stands in for a standard input that is not kept
)

// File is an open file that the container has from outside.
type File struct {
	Key    string `json:"key"` // as criu names it: file[mount id:inode]
	Stream string `json:"stream"`
}

// Descriptors is what a container has from outside.
type Descriptors struct {
	Version int     `json:"version"`
	Mounts  []Mount `json:"mounts,omitempty"`
	Files   []File  `json:"files,omitempty"`
	// Network says that the network namespace is the pod's; else it is the host's.
	Network bool `json:"network,omitempty"`
	// Joined are the other namespaces of the pod that the container is in: "ipc", "uts".
	Joined []string `json:"joined,omitempty"`
}

// networkKey is the key of the pod's network namespace.
const networkKey = "network"

// Read reads the descriptors of a directory of images.
func Read(images string) (*Descriptors, error) {
	name := filepath.Join(images, DescriptorsFile)
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: the checkpoint was made by another engine, or is not whole: %w", err, errdefs.ErrInvalidArgument)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxDescriptors {
		return nil, fmt.Errorf("%s is not a file of at most %d bytes: %w", name, maxDescriptors, errdefs.ErrInvalidArgument)
	}
	data := make([]byte, info.Size())
	if _, err := f.ReadAt(data, 0); err != nil && len(data) > 0 {
		return nil, err
	}
	return Parse(data)
}

// Parse decodes descriptors, which are hostile.
func Parse(data []byte) (*Descriptors, error) {
	var d Descriptors
	if err := json.Unmarshal(data, &d); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", DescriptorsFile, err, errdefs.ErrInvalidArgument)
	}
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%s: %s: %w", DescriptorsFile, fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
	}
	if d.Version != Version {
		return nil, bad("version %d is not known, want %d", d.Version, Version)
	}
	if len(d.Mounts)+len(d.Files) > maxKeys {
		return nil, bad("more than %d keys", maxKeys)
	}
	for _, m := range d.Mounts {
		if !plainKey(m.Key) || !path.IsAbs(m.Place) || path.Clean(m.Place) != m.Place || strings.ContainsAny(m.Place, "\x00\n") {
			return nil, bad("mount %q at %q is not one", m.Key, m.Place)
		}
		switch m.Kind {
		case KindBind, KindMask, KindShm, KindCgroup:
		default:
			return nil, bad("mount at %s is of kind %q", m.Place, m.Kind)
		}
	}
	for _, f := range d.Files {
		if !fileKey(f.Key) {
			return nil, bad("%q is not the key of a file", f.Key)
		}
		switch f.Stream {
		case Stdin, Stdout, Stderr, Null:
		default:
			return nil, bad("file %s is of stream %q", f.Key, f.Stream)
		}
	}
	for _, n := range d.Joined {
		if n != "ipc" && n != "uts" {
			return nil, bad("namespace %q is not one of ipc, uts", n)
		}
	}
	return &d, nil
}

func plainKey(key string) bool {
	digits, ok := strings.CutPrefix(key, "m")
	n, err := strconv.ParseUint(digits, 10, 16)
	return ok && err == nil && strconv.FormatUint(n, 10) == digits
}

// fileKey accepts file[hex:hex].
func fileKey(key string) bool {
	inner, ok := strings.CutPrefix(key, "file[")
	inner, closed := strings.CutSuffix(inner, "]")
	mount, inode, two := strings.Cut(inner, ":")
	for _, part := range []string{mount, inode} {
		if _, err := strconv.ParseUint(part, 16, 64); err != nil {
			return false
		}
	}
	return ok && closed && two
}

// FileKey is how criu names an open file whose mount it does not see.
func FileKey(mountID int, inode uint64) string {
	return "file[" + strconv.FormatUint(uint64(mountID), 16) + ":" + strconv.FormatUint(inode, 16) + "]"
}

// Mounts says which mounts of a container's mount table it has from outside. The others are its own, and criu makes them
// anew. shm says that /dev/shm is the pod's.
func Mounts(table []*mountinfo.Info, spec *specs.Spec, shm bool) []Mount {
	var mounts []Mount
	for _, m := range table {
		if kind := kindOf(m, spec, shm); kind != "" {
			mounts = append(mounts, Mount{Key: "m" + strconv.Itoa(len(mounts)), Place: m.Mountpoint, Kind: kind})
		}
	}
	return mounts
}

func kindOf(m *mountinfo.Info, spec *specs.Spec, shm bool) string {
	if m.Mountpoint == "/" {
		return ""
	}
	if path.Base(m.Root) == "null" && m.FSType != "proc" && m.FSType != "sysfs" {
		for _, masked := range spec.Linux.MaskedPaths {
			if path.Clean(masked) == m.Mountpoint {
				return KindMask
			}
		}
	}
	covering := Covering(spec, m.Mountpoint)
	switch {
	case covering == nil:
		return ""
	case shm && path.Clean(covering.Destination) == "/dev/shm":
		if m.Mountpoint == "/dev/shm" {
			return KindShm
		}
		return ""
	case isBind(covering):
		return KindBind
	case covering.Type == "cgroup" || covering.Type == "cgroup2":
		if m.FSType == "cgroup" || m.FSType == "cgroup2" {
			return KindCgroup
		}
	}
	return ""
}

func isBind(m *specs.Mount) bool {
	if m.Type == "bind" {
		return true
	}
	for _, o := range m.Options {
		if o == "bind" || o == "rbind" {
			return true
		}
	}
	return false
}

// Covering is the mount of the spec at a place of the container, or the nearest above it; nil when there is none.
func Covering(spec *specs.Spec, place string) *specs.Mount {
	var best *specs.Mount
	longest := -1
	for i := range spec.Mounts {
		m := &spec.Mounts[i]
		destination := path.Clean("/" + m.Destination)
		if (place == destination || strings.HasPrefix(place, strings.TrimSuffix(destination, "/")+"/")) && len(destination) >= longest {
			best, longest = m, len(destination)
		}
	}
	return best
}

// Sources are what a restore gives for the mounts that a container has from outside.
type Sources struct {
	Spec   *specs.Spec       // of the new container
	Shm    string            // where the pod's shared memory is mounted; "": the container does not share it
	Cgroup map[string]string // place in the container -> directory
	// Beneath gives a path for what lies at rest beneath a source. It must not be led elsewhere by what a workload has put there.
	Beneath func(source, rest string) (string, error)
}

// Source is the path on the host for a mount.
func (s *Sources) Source(m Mount) (string, error) {
	missing := func(what string) error {
		return fmt.Errorf("the checkpoint has %s at %s and the new container has none: give it the mounts that the old one had: %w",
			what, m.Place, errdefs.ErrFailedPrecondition)
	}
	switch m.Kind {
	case KindMask:
		return "/dev/null", nil
	case KindShm:
		if s.Shm == "" {
			return "", missing("the pod's shared memory")
		}
		return s.Shm, nil
	case KindCgroup:
		if dir := s.Cgroup[m.Place]; dir != "" {
			return dir, nil
		}
		return "", missing("a cgroup")
	}
	covering := Covering(s.Spec, m.Place)
	if covering == nil || !isBind(covering) {
		return "", missing("a mount")
	}
	rest := strings.TrimPrefix(m.Place, path.Clean("/"+covering.Destination))
	if rest == "" {
		return covering.Source, nil
	}
	source, err := s.Beneath(covering.Source, strings.TrimPrefix(rest, "/"))
	if err != nil {
		return "", fmt.Errorf("the mount that the checkpoint has at %s: %w", m.Place, err)
	}
	return source, nil
}

// Dump is a dump to be made.
type Dump struct {
	PID     int
	Images  string
	Work    string // of the log and the statistics
	Freezer string // the directory of the container's freezer, which is frozen
	Netns   uint64 // inode of the network namespace; 0: the host's
	Descriptors
}

// LogDump and LogRestore are the names of criu's logs in the work directory, PIDFile that of the restored process.
const (
	LogDump    = "dump.log"
	LogRestore = "restore.log"
	PIDFile    = "pid"
)

// Args is the command line, without the program's name.
func (d *Dump) Args() []string {
	args := []string{
		"dump", "--no-default-config", "--tree", strconv.Itoa(d.PID), "--images-dir", d.Images, "--work-dir", d.Work, "--log-file", LogDump, "-v4",
		"--leave-running", "--freeze-cgroup", d.Freezer, "--manage-cgroups=ignore", "--tcp-established", "--file-locks",
		"--network-lock", "nftables",
	}
	if d.Netns != 0 {
		args = append(args, "--external", "net["+strconv.FormatUint(d.Netns, 10)+"]:"+networkKey)
	}
	for _, m := range d.Mounts {
		args = append(args, "--external", "mnt["+m.Place+"]:"+m.Key)
	}
	for _, f := range d.Files {
		args = append(args, "--external", f.Key)
	}
	return args
}

// Restore is a restore to be made. Descriptors of files are numbers in criu's process.
type Restore struct {
	Images  string
	Work    string
	Root    string // where the root filesystem is mounted
	Network int    // the network namespace; 0: the host's
	Joined  map[string]string
	Streams map[string]int
	Sources Sources
	*Descriptors
}

// Args is the command line, without the program's name.
func (r *Restore) Args() ([]string, error) {
	args := []string{
		"restore", "--no-default-config", "--images-dir", r.Images, "--work-dir", r.Work, "--log-file", LogRestore, "-v4",
		"--root", r.Root, "--restore-detached", "--restore-sibling", "--pidfile", filepath.Join(r.Work, PIDFile),
		"--manage-cgroups=ignore", "--tcp-close", "--file-locks",
	}
	if r.Descriptors.Network != (r.Network != 0) {
		return nil, fmt.Errorf("the checkpoint is of a pod with network namespace NODE and the new pod's is POD, or the other way round: %w", errdefs.ErrFailedPrecondition)
	}
	if r.Network != 0 {
		args = append(args, "--inherit-fd", inherit(r.Network, networkKey))
	}
	for _, name := range r.Descriptors.Joined {
		file := r.Joined[name]
		if file == "" {
			return nil, fmt.Errorf("the checkpoint is of a container in its pod's %s namespace, which the new container is not in: %w", name, errdefs.ErrFailedPrecondition)
		}
		args = append(args, "--join-ns", name+":"+file)
	}
	for name := range r.Joined {
		if !contains(r.Descriptors.Joined, name) {
			return nil, fmt.Errorf("the checkpoint is of a container outside of its pod's %s namespace, which the new container is in: %w", name, errdefs.ErrFailedPrecondition)
		}
	}
	for _, m := range r.Mounts {
		source, err := r.Sources.Source(m)
		if err != nil {
			return nil, err
		}
		args = append(args, "--external", "mnt["+m.Key+"]:"+source)
	}
	for _, f := range r.Files {
		fd, ok := r.Streams[f.Stream]
		if !ok {
			return nil, fmt.Errorf("the checkpoint is of a container with %s, and the new one has none: %w", f.Stream, errdefs.ErrFailedPrecondition)
		}
		args = append(args, "--inherit-fd", inherit(fd, f.Key))
	}
	return args, nil
}

func inherit(fd int, key string) string { return "fd[" + strconv.Itoa(fd) + "]:" + key }

func contains(list []string, one string) bool {
	for _, l := range list {
		if l == one {
			return true
		}
	}
	return false
}

// Explain picks from a log of criu what it says of a failure: its errors, the first ones, which are the cause.
func Explain(log string) string {
	const most = 4
	var lines []string
	for line := range strings.Lines(log) {
		_, text, ok := strings.Cut(line, "Error (")
		if !ok {
			continue
		}
		if _, rest, ok := strings.Cut(text, "): "); ok {
			text = rest
		}
		if text = strings.TrimSpace(text); text != "" && len(lines) < most {
			lines = append(lines, text[:min(len(text), 300)])
		}
	}
	return strings.Join(lines, "; ")
}
