package spec

import (
	"path"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// ShmSize is the size in bytes of a pod's shared memory.
const ShmSize = 64 << 20

const shmPath = "/dev/shm"

// mounts are the defaults, then the pod's files, then what the container asks for, parents before children. A mount that
// the container asks for replaces the default one of the same place, and one at /dev or /sys also what lies beneath it.
func (b *builder) mounts(s *specs.Spec) error {
	asked, err := b.askedMounts(s)
	if err != nil {
		return err
	}
	for _, m := range append(b.systemMounts(), b.fileMounts()...) {
		if !shadowed(m.Destination, asked) {
			s.Mounts = append(s.Mounts, m)
		}
	}
	s.Mounts = append(s.Mounts, asked...)
	if b.in.Pod.OwnIPC() && slices.ContainsFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == shmPath && m.Type == "tmpfs" }) {
		b.out.PodNamespaces = append(b.out.PodNamespaces, "shm")
	}
	return nil
}

func shadowed(destination string, asked []specs.Mount) bool {
	return slices.ContainsFunc(asked, func(m specs.Mount) bool {
		return m.Destination == destination || strings.HasPrefix(destination, m.Destination+"/")
	})
}

func (b *builder) systemMounts() []specs.Mount {
	access, cgroupAccess := "ro", "ro"
	if b.in.Container.Security.Privileged {
		access, cgroupAccess = "rw", "rw"
	}
	if b.in.Settings.CgroupWritable {
		cgroupAccess = "rw"
	}
	shm := specs.Mount{
		Destination: shmPath, Type: "tmpfs", Source: "shm",
		Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=" + strconv.Itoa(ShmSize)},
	}
	if b.in.Files.Shm != "" {
		shm = specs.Mount{Destination: shmPath, Type: "bind", Source: b.in.Files.Shm, Options: []string{"rbind", "rprivate", "rw"}}
	}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{
			Destination: "/dev/pts", Type: "devpts", Source: "devpts",
			Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"},
		},
		shm,
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}},
		{
			Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup",
			Options: []string{"nosuid", "noexec", "nodev", "relatime", cgroupAccess},
		},
	}
}

// fileMounts are what all containers of a pod share. With a read-only root /etc stays read-only as well.
func (b *builder) fileMounts() []specs.Mount {
	options := []string{"rbind", "rprivate", "rw"}
	if b.in.Container.Security.ReadonlyRootfs {
		options = []string{"rbind", "rprivate", "ro"}
	}
	var mounts []specs.Mount
	add := func(source, destination string, options []string) {
		if source != "" {
			mounts = append(mounts, specs.Mount{Destination: destination, Type: "bind", Source: source, Options: options})
		}
	}
	add(b.in.Files.Hosts, "/etc/hosts", options)
	add(b.in.Files.ResolvConf, "/etc/resolv.conf", options)
	add(b.in.Files.Hostname, "/etc/hostname", options)
	return mounts
}

// askedMounts translates the container's mounts and sets the propagation of the root that they need: what a mount
// receives or passes on must get through the root.
func (b *builder) askedMounts(s *specs.Spec) ([]specs.Mount, error) {
	var mounts []specs.Mount
	seen := map[string]bool{}
	for _, m := range b.in.Container.Mounts {
		mount, err := bindMount(m)
		if err != nil {
			return nil, err
		}
		if u := b.in.Pod.Security.Namespaces.User; u != nil && m.Image != nil && mount.Type == "bind" {
			mount.UIDMappings, mount.GIDMappings = ociMappings(u.UIDs), ociMappings(u.GIDs)
		}
		if m.Propagation == "rshared" && b.in.Pod.Security.Namespaces.User != nil {
			return nil, invalid("mount at %s is rshared: a pod with a user namespace cannot pass mounts on to the host", mount.Destination)
		}
		if seen[mount.Destination] {
			return nil, invalid("mount target %s is given twice", mount.Destination)
		}
		seen[mount.Destination] = true
		switch {
		case m.Propagation == "rshared":
			s.Linux.RootfsPropagation = "rshared"
		case m.Propagation == "rslave" && s.Linux.RootfsPropagation == "":
			s.Linux.RootfsPropagation = "rslave"
		}
		mounts = append(mounts, mount)
	}
	for _, m := range b.in.Volumes {
		if !seen[m.Destination] {
			mounts = append(mounts, b.ownedVolume(m))
		}
	}
	slices.SortStableFunc(mounts, func(a, b specs.Mount) int {
		return strings.Count(a.Destination, "/") - strings.Count(b.Destination, "/")
	})
	return mounts, nil
}

func bindMount(m Mount) (specs.Mount, error) {
	target := path.Clean(m.Target)
	switch {
	case !path.IsAbs(m.Target) || target == "/":
		return specs.Mount{}, invalid("mount target %q: must be an absolute path below /", m.Target)
	case m.Image == nil && !path.IsAbs(m.Source):
		return specs.Mount{}, invalid("source %q of the mount at %s: must be absolute", m.Source, target)
	case strings.ContainsRune(m.Target+m.Source, 0):
		return specs.Mount{}, invalid("mount of %q at %q has a zero byte", m.Source, m.Target)
	case m.Image != nil && !m.Readonly:
		return specs.Mount{}, invalid("mount of image %s at %s is not read-only: images can be mounted in no other way", m.Image.Image, target)
	case m.RecursiveReadonly && !m.Readonly:
		return specs.Mount{}, invalid("mount at %s is recursively read-only, but not read-only: ask for both", target)
	}
	if m.Image != nil {
		return imageMount(m, target)
	}
	options := []string{"rbind"}
	switch m.Propagation {
	case "", "private":
		options = append(options, "rprivate")
	case "rslave", "rshared":
		if m.RecursiveReadonly {
			return specs.Mount{}, invalid("mount at %s is recursively read-only and %s: its propagation must be private", target, m.Propagation)
		}
		options = append(options, m.Propagation)
	default:
		return specs.Mount{}, invalid("propagation %q of the mount at %s: must be private, rslave or rshared", m.Propagation, target)
	}
	switch {
	case m.RecursiveReadonly:
		options = append(options, "rro")
	case m.Readonly:
		options = append(options, "ro")
	default:
		options = append(options, "rw")
	}
	for _, option := range m.Options {
		if !mountOptions[option] {
			return specs.Mount{}, invalid("option %q of the mount at %s is not one of a bind mount", option, target)
		}
		options = append(options, option)
	}
	return specs.Mount{
		Destination: target, Type: "bind", Source: m.Source, Options: options, UIDMappings: ociMappings(m.UIDs), GIDMappings: ociMappings(m.GIDs),
	}, nil
}

// ownedVolume is a volume of the image's own, with owners as in the pod's user namespace.
func (b *builder) ownedVolume(m specs.Mount) specs.Mount {
	if u := b.in.Pod.Security.Namespaces.User; u != nil && m.Type == "bind" {
		m.UIDMappings, m.GIDMappings = ociMappings(u.UIDs), ociMappings(u.GIDs)
	}
	return m
}

// imageMount mounts an image as the engine found it: by a bind, or by an overlay of its layers.
func imageMount(m Mount, target string) (specs.Mount, error) {
	out := specs.Mount{Destination: target, Type: m.Image.Type, Source: m.Source, Options: slices.Clone(m.Image.Options)}
	if m.Propagation != "" && m.Propagation != "private" {
		return out, invalid("mount of image %s at %s is %s: nothing is ever mounted in it, so it must be private", m.Image.Image, target, m.Propagation)
	}
	for _, option := range m.Options {
		if !mountOptions[option] {
			return out, invalid("option %q of the mount at %s is not one of a bind mount", option, target)
		}
		out.Options = append(out.Options, option)
	}
	return out, nil
}

// mountOptions are what a client may add to a bind mount: none that undoes what the other fields say.
var mountOptions = map[string]bool{
	"noexec": true, "exec": true, "nodev": true, "dev": true, "nosuid": true, "suid": true, "noatime": true,
	"nodiratime": true, "relatime": true, "strictatime": true, "nosymfollow": true, "rnoexec": true, "rnodev": true, "rnosuid": true,
}
