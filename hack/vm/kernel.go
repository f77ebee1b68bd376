package main

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
)

// metaPackage depends on the newest cloud kernel of the Debian release; that one's package has the files.
const metaPackage = "linux-image-cloud-amd64"

// modules are what the machine and the engine need; what they depend on is added. Names are without .ko.
var modules = []string{
	"virtio_pci", "virtio_blk", "virtio-rng", // the machine
	"overlay", "loop", // images
	"veth", "bridge", "dummy", // networks
	"nf_tables", "nf_conntrack", "nf_conntrack_netlink", "nf_nat", // nftables and what its rules need
	"nft_chain_nat", "nft_ct", "nft_masq", "nft_nat", "nft_redir", "nft_numgen", "nft_hash", "nft_limit", "nft_log",
	"unix_diag", "udp_diag", "raw_diag", "af_packet_diag", "netlink_diag", // criu asks these of sockets
	"xfrm_user", "inet_diag", "tcp_diag", "sctp", // what a node's kernel loads when a socket asks for it
	"nft_fib", "nft_fib_ipv4", "nft_fib_ipv6", "nft_fib_inet", "nft_reject", "nft_reject_inet", "nft_objref",
}

// kernel is an unpacked kernel package.
type kernel struct {
	image   string // vmlinuz
	modules string // directory with *.ko
}

// fetchKernel downloads and unpacks the kernel package once; the cache is used afterwards.
func fetchKernel(ctx context.Context, cache string) (kernel, error) {
	dir, err := filepath.Abs(filepath.Join(cache, "kernel"))
	if err != nil {
		return kernel{}, err
	}
	if k, err := findKernel(dir); err == nil {
		return k, nil
	}
	pkg, err := kernelPackage(ctx)
	if err != nil {
		return kernel{}, fmt.Errorf("kernel: %w", err)
	}
	tmp := dir + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		return kernel{}, err
	}
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		return kernel{}, err
	}
	defer os.RemoveAll(tmp)
	fmt.Fprintf(os.Stderr, "vm: downloading %s\n", pkg)
	get := exec.CommandContext(ctx, "apt-get", "download", "-q", pkg)
	get.Dir = tmp
	if out, err := get.CombinedOutput(); err != nil {
		return kernel{}, fmt.Errorf("kernel: apt-get download %s: %w: %s", pkg, err, out)
	}
	debs, _ := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if len(debs) != 1 {
		return kernel{}, fmt.Errorf("kernel: apt-get download %s left %d packages, want 1", pkg, len(debs))
	}
	if err := command(ctx, "dpkg-deb", "-x", debs[0], tmp); err != nil {
		return kernel{}, fmt.Errorf("kernel: %w", err)
	}
	os.Remove(debs[0])
	if err := os.RemoveAll(dir); err != nil {
		return kernel{}, err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return kernel{}, err
	}
	return findKernel(dir)
}

// findKernel looks for the one kernel in an unpacked package.
func findKernel(dir string) (kernel, error) {
	images, _ := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	mods, _ := filepath.Glob(filepath.Join(dir, "lib", "modules", "*"))
	if len(images) != 1 || len(mods) != 1 {
		return kernel{}, fmt.Errorf("%s holds %d kernels and %d module trees, want one of each: %w", dir, len(images), len(mods), fs.ErrNotExist)
	}
	return kernel{image: images[0], modules: mods[0]}, nil
}

// kernelPackage asks apt which package the meta package stands for.
func kernelPackage(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "apt-cache", "depends", "--important", metaPackage).Output()
	if err != nil || len(out) == 0 {
		// A fresh machine has no package lists.
		if err := command(ctx, "apt-get", "update", "-q"); err != nil {
			return "", err
		}
		if out, err = exec.CommandContext(ctx, "apt-cache", "depends", "--important", metaPackage).Output(); err != nil {
			return "", fmt.Errorf("apt-cache depends %s: %w", metaPackage, err)
		}
	}
	for line := range strings.Lines(string(out)) {
		if _, dep, ok := strings.Cut(strings.TrimSpace(line), "Depends: "); ok {
			return dep, nil
		}
	}
	return "", errors.New(metaPackage + " depends on nothing: this needs Debian's package lists for amd64")
}

// loadOrder answers with the files of the named modules and of all that they depend on, each after its dependencies.
// A name that the kernel has built in has no file and is left out only when it is somebody's dependency: that
// cannot happen, for a module's own list names modules only; a wanted module without a file is an error.
func loadOrder(root string, wanted []string) ([]string, error) {
	files := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".ko") {
			files[moduleName(strings.TrimSuffix(d.Name(), ".ko"))] = path
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	var order []string
	done := map[string]bool{}
	var visit func(name string) error
	visit = func(name string) error {
		name = moduleName(name)
		if done[name] {
			return nil
		}
		done[name] = true
		path, ok := files[name]
		if !ok {
			return fmt.Errorf("module %s: no such file beneath %s", name, root)
		}
		deps, err := moduleDeps(path)
		if err != nil {
			return err
		}
		for _, dep := range deps {
			if err := visit(dep); err != nil {
				return fmt.Errorf("%s needs %w", name, err)
			}
		}
		order = append(order, path)
		return nil
	}
	for _, name := range wanted {
		if err := visit(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// moduleName makes one spelling of a name: files use - and _, the kernel's own lists only _.
func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

// moduleDeps reads "depends=" of a module's .modinfo section, which is what depmod would find, without needing it.
func moduleDeps(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("module %s: %w", path, err)
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("module %s: no .modinfo section", path)
	}
	data, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("module %s: %w", path, err)
	}
	for field := range strings.SplitSeq(string(data), "\x00") {
		if deps, ok := strings.CutPrefix(field, "depends="); ok && deps != "" {
			names := strings.Split(deps, ",")
			sort.Strings(names)
			return names, nil
		}
	}
	return nil, nil
}
