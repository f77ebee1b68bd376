package native

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
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
func writeSysctls(c *compiler, sysctls map[string]string, own func(specs.LinuxNamespaceType) bool) error {
	for _, key := range slices.Sorted(maps.Keys(sysctls)) {
		c.At("linux.sysctl %s", key)
		file, err := sysctlFile(key, own)
		if err != nil {
			return fmt.Errorf("linux.sysctl: %w", err)
		}
		c.writeFile(file, sysctls[key])
	}
	return nil
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
