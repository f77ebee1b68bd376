package engine

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/criserver/criserver/engine/spec"
)

// The files that every container of a pod has in /etc. They may be bind-mounted, so they are written in place and once.
const (
	hostsFile    = "hosts"
	resolverFile = "resolv.conf"
	hostnameFile = "hostname"
)

// writeHosts writes what names the pod: /etc/hosts and /etc/hostname. In the host's network they are the host's.
func writeHosts(dir string, p *spec.Pod, ips []netip.Addr) error {
	hostname, err := podHostname(p)
	if err != nil {
		return err
	}
	if err := writePodFile(filepath.Join(dir, hostnameFile), p, []byte(hostname+"\n")); err != nil {
		return err
	}
	content := hosts(hostname, ips)
	if !p.OwnNetwork() {
		host, err := os.ReadFile("/etc/hosts")
		if err == nil {
			content = host
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return writePodFile(filepath.Join(dir, hostsFile), p, content)
}

// writePodFile writes a file that belongs to root in the pod.
func writePodFile(path string, p *spec.Pod, content []byte) error {
	if err := os.WriteFile(path, content, 0o644); err != nil {
		return err
	}
	if uid, gid := p.Root(); uid != 0 || gid != 0 {
		return os.Chown(path, uid, gid)
	}
	return nil
}

func podHostname(p *spec.Pod) (string, error) {
	if p.OwnNetwork() {
		return p.Hostname, nil
	}
	return os.Hostname()
}

func hosts(hostname string, ips []netip.Addr) []byte {
	var b bytes.Buffer
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::0\tip6-localnet\nff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	for _, ip := range ips {
		fmt.Fprintf(&b, "%s\t%s\n", ip, hostname)
	}
	return b.Bytes()
}

// writeResolver writes /etc/resolv.conf: what the pod asks for, else a copy of the host's.
func writeResolver(dir string, p *spec.Pod) error {
	var content []byte
	if p.DNS != nil {
		var err error
		if content, err = resolver(p.DNS); err != nil {
			return err
		}
	} else {
		var err error
		if content, err = os.ReadFile("/etc/resolv.conf"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return writePodFile(filepath.Join(dir, resolverFile), p, content)
}

func resolver(dns *spec.DNS) ([]byte, error) {
	for _, word := range append(append(append([]string{}, dns.Servers...), dns.Searches...), dns.Options...) {
		if word == "" || strings.ContainsAny(word, " \t\r\n\x00") {
			return nil, fmt.Errorf("%q in the pod's dns configuration: must be one word: %w", word, errdefs.ErrInvalidArgument)
		}
	}
	var b bytes.Buffer
	if len(dns.Searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(dns.Searches, " "))
	}
	for _, server := range dns.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	if len(dns.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(dns.Options, " "))
	}
	return b.Bytes(), nil
}
