package native

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native/plan"
)

// namespacedSysctls are those that belong to a namespace (Kubernetes documentation, "Using sysctls"; sysctl(5)).
// A prefix ends in a dot.
var namespacedSysctls = []struct {
	name string
	kind specs.LinuxNamespaceType
}{
	{"net.", specs.NetworkNamespace},
	{"fs.mqueue.", specs.IPCNamespace},
	{"kernel.msgmax", specs.IPCNamespace}, {"kernel.msgmnb", specs.IPCNamespace}, {"kernel.msgmni", specs.IPCNamespace},
	{"kernel.sem", specs.IPCNamespace}, {"kernel.shmall", specs.IPCNamespace}, {"kernel.shmmax", specs.IPCNamespace},
	{"kernel.shmmni", specs.IPCNamespace}, {"kernel.shm_rmid_forced", specs.IPCNamespace},
	{"kernel.hostname", specs.UTSNamespace}, {"kernel.domainname", specs.UTSNamespace},
}

// writeSysctls plans the writes. A parameter that is not of a namespace of the container's would change the host and is refused.
// owner is the user namespace that owns those of the container or pod; nil is the host's.
func writeSysctls(c *compiler, sysctls map[string]string, owner *UserMappings, own func(specs.LinuxNamespaceType) bool) error {
	for _, key := range slices.Sorted(maps.Keys(sysctls)) {
		c.At("linux.sysctl %s", key)
		file, err := sysctlFile(key, own)
		if err != nil {
			return fmt.Errorf("linux.sysctl: %w", err)
		}
		if owner == nil {
			c.writeFile(file, sysctls[key])
			continue
		}
		value := sysctls[key]
		if strings.HasSuffix(file, "/ping_group_range") {
			if value, err = mapRange(value, owner.GIDs); err != nil {
				return fmt.Errorf("linux.sysctl %s: %w", key, err)
			}
		}
		root, _ := MapID(0, owner.UIDs)
		c.writeOwned(file, value, root)
	}
	return nil
}

// writeOwned writes a parameter of a namespace that a user namespace owns. Which root may depends on the kernel: older ones let only that
// of the host set parameters of ipc namespaces, newer ones only that of the user namespace.
func (c *compiler) writeOwned(path, content string, root uint32) {
	denied, opened := c.Label(), c.Label()
	fd := c.Reg()
	c.Openat(fd, plan.Cwd, path, unix.O_WRONLY, plan.Else(denied, unix.EACCES))
	c.WriteString(fd, content, plan.Then(opened))
	c.Mark(denied)
	c.Simple(unix.SYS_SETRESUID, "setresuid", -1, int(root), -1)
	c.Openat(fd, plan.Cwd, path, unix.O_WRONLY)
	c.WriteString(fd, content)
	c.Simple(unix.SYS_SETRESUID, "setresuid", -1, 0, -1)
	c.Mark(opened)
	c.Close(fd)
}

// sysctlFile finds the file of a parameter, written with dots, or with slashes when a name in it has a dot.
func sysctlFile(key string, own func(specs.LinuxNamespaceType) bool) (string, error) {
	dotted := key
	if first := strings.IndexAny(key, "./"); first >= 0 && key[first] == '/' {
		dotted = strings.Map(func(r rune) rune {
			switch r {
			case '/':
				return '.'
			case '.':
				return '/'
			}
			return r
		}, key)
	}
	for _, part := range strings.Split(dotted, ".") {
		if part == "" || strings.Contains(part, "//") || strings.HasPrefix(part, "/") || strings.ContainsRune(part, 0) {
			return "", fmt.Errorf("%q is not the name of a kernel parameter", key)
		}
	}
	for _, n := range namespacedSysctls {
		if dotted == n.name || strings.HasSuffix(n.name, ".") && strings.HasPrefix(dotted, n.name) {
			if !own(n.kind) {
				return "", fmt.Errorf("%s is a parameter of the %s namespace, which is the host's here: it would change the host", key, n.kind)
			}
			// A slash within a part of the dotted form stands for a dot, as in sysctl(8).
			return "/proc/sys/" + strings.Map(func(r rune) rune {
				switch r {
				case '.':
					return '/'
				case '/':
					return '.'
				}
				return r
			}, dotted), nil
		}
	}
	return "", fmt.Errorf("%s does not belong to a namespace: setting it would change the host", key)
}

// mapRange is a range of groups, "0 1000", outside of a user namespace: it is written with the host's privileges, and so taken to
// be of the host's.
func mapRange(value string, gids []specs.LinuxIDMapping) (string, error) {
	var low, high uint32
	if n, err := fmt.Sscan(value, &low, &high); n != 2 {
		return "", fmt.Errorf("%q is not a range of two groups: %w: %w", value, err, errdefs.ErrInvalidArgument)
	}
	if low > high {
		return value, nil // the kernel's way to say none
	}
	first, ok := MapID(low, gids)
	last, ok2 := MapID(high, gids)
	if !ok || !ok2 || last < first || last-first != high-low {
		return "", fmt.Errorf("%q is not within one range of linux.gidMappings: %w", value, errdefs.ErrInvalidArgument)
	}
	return fmt.Sprintf("%d %d", first, last), nil
}
