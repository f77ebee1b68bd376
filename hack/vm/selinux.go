package main

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// policyPackages compile the policy, on this machine.
var policyPackages = []string{"checkpolicy"}

//go:embed policy.conf
var policyText string

// initialSIDs are the kernel's, in its order (security/selinux/include/initial_sid_to_string.h).
var initialSIDs = strings.Fields(`kernel security unlabeled fs file file_labels init any_socket port netif netmsg node igmp_packet
	icmp_socket tcp_socket sysctl_modprobe sysctl sysctl_fs sysctl_kernel sysctl_net sysctl_net_unix sysctl_vm sysctl_dev kmod policy
	scmp_packet devnull`)

// lxcContexts are the labels of containers, where github.com/opencontainers/selinux looks for them.
const lxcContexts = `process = "system_u:system_r:container_t:s0"
file = "system_u:object_r:container_file_t:s0"
ro_file = "system_u:object_r:container_file_t:s0"
`

// policySource is the policy as checkpolicy takes it.
func policySource() string {
	var sids, contexts, categories strings.Builder
	for _, sid := range initialSIDs {
		kind := "unlabeled_t:s0"
		if sid == "kernel" {
			kind = "kernel_t:s0 - s0:c0.c1023"
		}
		fmt.Fprintf(&sids, "sid %s\n", sid)
		fmt.Fprintf(&contexts, "sid %s system_u:system_r:%s\n", sid, kind)
	}
	for n := range 1024 {
		fmt.Fprintf(&categories, "category c%d;\n", n)
	}
	return strings.NewReplacer("@SIDS@", sids.String(), "@SID_CONTEXTS@", contexts.String(), "@CATEGORIES@", categories.String()).Replace(policyText)
}

// addPolicy compiles the policy and puts it where the guest's init loads it from. Where the file is, SELinux is on.
func addPolicy(ctx context.Context, cache, root string) error {
	debs, err := downloadTo(ctx, cache, policyPackages)
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp(cache, "policy-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := command(ctx, "dpkg-deb", "-x", debFile(debs, policyPackages[0]), work); err != nil {
		return err
	}
	source := filepath.Join(work, "policy.conf")
	if err := os.WriteFile(source, []byte(policySource()), 0o644); err != nil {
		return err
	}
	etc := filepath.Join(root, "etc/selinux")
	if err := os.MkdirAll(filepath.Join(etc, "test/contexts"), 0o755); err != nil {
		return err
	}
	for name, text := range map[string]string{"config": "SELINUX=enforcing\nSELINUXTYPE=test\n", "test/contexts/lxc_contexts": lxcContexts} {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return command(ctx, filepath.Join(work, "usr/bin/checkpolicy"), "-M", "-U", "allow", "-c", "33", "-o", filepath.Join(etc, "policy"), source)
}
