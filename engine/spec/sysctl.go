package spec

import "strings"

// PodSysctls are the sysctls to set in a pod: its own over those of defaults that belong to namespaces which the pod
// has. A sysctl of a namespace that the pod shares with the host, or of none, is ErrInvalidArgument.
func PodSysctls(p *Pod, defaults map[string]string) (map[string]string, error) {
	out := map[string]string{}
	for name, value := range defaults {
		if sysctlDenied(p, name) != "" {
			continue
		}
		out[name] = value
		if u := p.Security.Namespaces.User; u != nil && name == pingGroups {
			out[name] = mappedPingGroups(u)
		}
	}
	for name, value := range p.Sysctls {
		normal := sysctlName(name)
		if reason := sysctlDenied(p, normal); reason != "" {
			return nil, invalid("sysctl %s %s", name, reason)
		}
		if strings.ContainsAny(value, "\x00\n") {
			return nil, invalid("value of sysctl %s has a zero byte or a new line", name)
		}
		out[normal] = value
	}
	if len(out) == 0 {
		return nil, nil
	}
	return out, nil
}

// sysctlName turns the form net/ipv4/conf/eth0.1/x into net.ipv4.conf.eth0/1.x, as sysctl(8) does.
func sysctlName(name string) string {
	if i := strings.IndexAny(name, "./"); i < 0 || name[i] == '.' {
		return name
	}
	return strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, name)
}

// sysctlDenied says why a pod may not set a sysctl, "" when it may.
func sysctlDenied(p *Pod, name string) string {
	for part := range strings.SplitSeq(name, ".") {
		if part == "" || strings.HasPrefix(part, "/") || strings.HasSuffix(part, "/") || strings.ContainsRune(part, 0) {
			return "is not the name of one"
		}
	}
	switch {
	case strings.HasPrefix(name, "net."):
		if !p.OwnNetwork() {
			return "is the host's, since the pod is in the host's network namespace"
		}
	case ipcSysctl(name):
		if !p.OwnIPC() {
			return "is the host's, since the pod is in the host's ipc namespace"
		}
	default:
		return "belongs to no namespace of a pod and would change the host: only net.*, fs.mqueue.*, kernel.sem, kernel.shm* and kernel.msg* are a pod's own"
	}
	return ""
}

// ipcSysctl says whether a sysctl belongs to an ipc namespace (ipc_namespaces(7)).
func ipcSysctl(name string) bool {
	if strings.HasPrefix(name, "fs.mqueue.") {
		return true
	}
	switch name {
	case "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax",
		"kernel.shmmni", "kernel.shm_rmid_forced", "kernel.msg_next_id", "kernel.sem_next_id", "kernel.shm_next_id":
		return true
	}
	return false
}
