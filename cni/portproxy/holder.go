package portproxy

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Holder names the process that has a socket on the port, for an error message: "process 123 (nginx)". It is "" when
// none is found. It walks /proc, so it is for the unhappy path only.
func Holder(protocol string, port uint16) string {
	inodes := make(map[string]bool)
	suffix := fmt.Sprintf(":%04X", port)
	for _, table := range []string{protocol, protocol + "6"} {
		data, err := os.ReadFile("/proc/thread-self/net/" + table)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(data)) {
			// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode (Documentation/networking/proc_net_tcp.rst)
			f := strings.Fields(line)
			if len(f) > 9 && strings.HasSuffix(f[1], suffix) && (protocol != "tcp" || f[3] == "0A") {
				inodes["socket:["+f[9]+"]"] = true
			}
		}
	}
	if len(inodes) == 0 {
		return ""
	}
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range fds {
		link, err := os.Readlink(fd)
		if err != nil || !inodes[link] {
			continue
		}
		pid := strings.Split(fd, "/")[2]
		name, _ := os.ReadFile("/proc/" + pid + "/comm")
		return fmt.Sprintf("process %s (%s)", pid, strings.TrimSpace(string(name)))
	}
	return ""
}
