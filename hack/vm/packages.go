package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// criuPackages are Debian's criu, what it runs (tar and gzip, by a shell) and all libraries, without the parts of it that
// need Python.
var criuPackages = []string{
	"criu", "tar", "gzip", "dash",
	"libc6", "libbsd0", "libmd0", "libgnutls30", "libnet1", "libnftables1", "libnftnl11", "libmnl0", "libxtables12", "libjansson4",
	"libedit2", "libtinfo6", "libnl-3-200", "libprotobuf-c1", "libgmp10", "libp11-kit0", "libidn2-0", "libunistring2", "libtasn1-6",
	"libnettle8", "libhogweed6", "libffi8", "libacl1", "libselinux1", "libpcre2-8-0",
}

// handlerPackages are Debian's runc and crun with the libraries that they need.
var handlerPackages = []string{
	"runc", "crun",
	"libc6", "libgcc-s1", "libcap2", "libseccomp2", "libsystemd0", "libyajl2", "libgcrypt20", "libgpg-error0", "liblzma5", "libzstd1", "liblz4-1",
}

// apparmorPackages are what loads AppArmor profiles, and the files that profiles include.
var apparmorPackages = []string{"apparmor", "libc6"}

// systemdPackages are systemd and its libraries. Where they are, systemd is process 1 of the machine. Its own socket does, so that no
// D-Bus daemon is needed.
var systemdPackages = []string{
	"systemd", "libsystemd-shared", "libsystemd0", "libc6", "libcap2", "libgcrypt20", "libgpg-error0", "liblz4-1", "liblzma5", "libzstd1",
	"libmount1", "libblkid1", "libselinux1", "libpcre2-8-0", "libssl3", "libacl1", "libaudit1", "libcap-ng0", "libkmod2", "libseccomp2",
	"libpam0g", "libcrypt1", "libapparmor1", "libip4tc2", "libcryptsetup12", "libfdisk1", "libp11-kit0", "libffi8",
}

// sets are the names that -debs takes.
var sets = map[string][]string{"criu": criuPackages, "handlers": handlerPackages, "apparmor": apparmorPackages, "systemd": systemdPackages}

// downloadTo has the packages in the cache, and answers in which directory.
func downloadTo(ctx context.Context, cache string, names []string) (dir string, err error) {
	if dir, err = filepath.Abs(filepath.Join(cache, "debs")); err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	return dir, download(ctx, dir, names)
}

// unpackDebs unpacks the packages of a set into the machine's root. They are kept in the cache.
func unpackDebs(ctx context.Context, cache, set, root string) error {
	names, ok := sets[set]
	if !ok {
		return fmt.Errorf("-debs %q: not a set of packages", set)
	}
	dir, err := downloadTo(ctx, cache, names)
	if err != nil {
		return err
	}
	for _, name := range names {
		// Some packages still use /lib beside /usr/lib: here both are directories of their own.
		if err := command(ctx, "dpkg-deb", "-x", debFile(dir, name), root); err != nil {
			return err
		}
	}
	unused := []string{"usr/lib/python3", "usr/include"}
	shares, _ := os.ReadDir(filepath.Join(root, "usr/share"))
	for _, share := range shares {
		if !slices.Contains(usedShares, share.Name()) {
			unused = append(unused, "usr/share/"+share.Name())
		}
	}
	for _, path := range unused {
		if err := os.RemoveAll(filepath.Join(root, path)); err != nil {
			return err
		}
	}
	return nil
}

// usedShares are what programs read of /usr/share. The rest is documentation and the like.
var usedShares = []string{"apparmor-features"}

// debFile is a package in the cache, or "".
func debFile(dir, name string) string {
	found, _ := filepath.Glob(filepath.Join(dir, name+"_*.deb"))
	if len(found) == 0 {
		return ""
	}
	return found[len(found)-1]
}

// download fetches the packages that the cache lacks.
func download(ctx context.Context, dir string, names []string) error {
	var missing []string
	for _, name := range names {
		if debFile(dir, name) == "" {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	fmt.Fprintf(os.Stderr, "vm: downloading %s\n", strings.Join(missing, " "))
	temporary, err := os.MkdirTemp(dir, ".download-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temporary)
	get := exec.CommandContext(ctx, "apt-get", append([]string{"download", "-q"}, missing...)...)
	get.Dir = temporary
	if out, err := get.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get download: %w (run `apt-get update` when a package is not found)\n%s", err, out)
	}
	for _, name := range missing {
		file := debFile(temporary, name)
		if file == "" {
			return fmt.Errorf("apt-get download left no file for package %s", name)
		}
		if err := os.Rename(file, filepath.Join(dir, filepath.Base(file))); err != nil {
			return err
		}
	}
	return nil
}
