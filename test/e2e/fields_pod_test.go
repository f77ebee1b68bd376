package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// podSecurity changes a pod's security context.
func podSecurity(change func(*runtimev1.LinuxSandboxSecurityContext)) podOption {
	return func(c *runtimev1.PodSandboxConfig) { change(c.Linux.SecurityContext) }
}

// namespaceOf is the namespace of this test, which is the node's.
func namespaceOf(t testing.TB, kind string) string {
	t.Helper()
	ns, err := os.Readlink("/proc/self/ns/" + kind)
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

// TestPodAsAsked finds in the answers, and in the pod, what was asked for.
func TestPodAsAsked(t *testing.T) {
	n := sharedNode(t)
	p := n.runPod(t, ownCgroup(t), func(c *runtimev1.PodSandboxConfig) {
		c.Metadata.Attempt, c.Annotations = 2, map[string]string{"annotation": "a"}
		c.Hostname = "given-name"
		c.Linux.Sysctls = map[string]string{"net.ipv4.tcp_keepalive_time": "321", "kernel.msgmax": "12345"}
	})
	c := p.run(t, command("sleep", "1000"))
	got := c.output(t, "sh", "-c", "hostname; cat /etc/hostname /proc/sys/net/ipv4/tcp_keepalive_time /proc/sys/kernel/msgmax")
	if want := "given-name\ngiven-name\n321\n12345\n"; got != want {
		t.Errorf("inside: %q, want %q", got, want)
	}
	if path := c.cgroup(t); !strings.HasPrefix(path, p.config.Linux.CgroupParent+"/") {
		t.Errorf("the container's cgroup is %s, not beneath %s", path, p.config.Linux.CgroupParent)
	}
	ctx, cancel := callContext()
	defer cancel()
	s, err := n.d.Runtime.PodSandboxStatus(ctx, &runtimev1.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	if s.Status.Metadata.Attempt != 2 || s.Status.Annotations["annotation"] != "a" || s.Status.Metadata.Uid != p.config.Metadata.Uid {
		t.Errorf("the status is %v", s.Status)
	}
	if !strings.Contains(s.Info["info"], "tcp_keepalive_time") {
		t.Errorf("a verbose status says %q", s.Info)
	}
	if _, err := net.LookupHost(s.Status.Network.Ip); err != nil {
		t.Errorf("the pod's address is %q", s.Status.Network.Ip)
	}
}

// TestHostPortParts publishes a port of another protocol on one address of the node.
func TestHostPortParts(t *testing.T) {
	n := sharedNode(t)
	p := n.runPod(t, hostPort(&runtimev1.PortMapping{Protocol: runtimev1.Protocol_UDP, ContainerPort: 53, HostPort: 5353, HostIp: "127.0.0.1"}))
	p.run(t, helper("role-datagrams", ":53"))
	eventually(t, callTimeout, func() error {
		conn, err := net.Dial("udp", "127.0.0.1:5353")
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("x\n")); err != nil {
			return err
		}
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		buffer := make([]byte, 64)
		length, err := conn.Read(buffer)
		if err == nil && string(buffer[:length]) != "x\n" {
			err = fmt.Errorf("the answer is %q", buffer[:length])
		}
		return err
	})
	for field, port := range map[string]*runtimev1.PortMapping{
		"host_ip":        {ContainerPort: 1, HostPort: 5354, HostIp: "x"},
		"protocol":       {ContainerPort: 1, HostPort: 5354, Protocol: 9},
		"container_port": {ContainerPort: 65536, HostPort: 5354},
		"host_port":      {ContainerPort: 1, HostPort: 65536},
	} {
		_, err := n.tryPod(t, hostPort(port))
		wantCode(t, err, codes.InvalidArgument, "config.port_mappings."+field)
	}
}

// roleDatagrams ADDRESS sends every datagram back.
func roleDatagrams(args []string) int {
	conn, err := net.ListenPacket("udp", args[0])
	if err != nil {
		return 99
	}
	buffer := make([]byte, 64)
	for {
		length, from, err := conn.ReadFrom(buffer)
		if err != nil {
			return 98
		}
		_, _ = conn.WriteTo(buffer[:length], from) // whoever asks asks again
	}
}

// TestNodeNamespaces shares the node's namespaces, each by itself, and one container's with another.
func TestNodeNamespaces(t *testing.T) {
	n := sharedNode(t)
	options := func(o *runtimev1.NamespaceOption) podOption {
		return podSecurity(func(s *runtimev1.LinuxSandboxSecurityContext) { s.NamespaceOptions = o })
	}
	const node, own = runtimev1.NamespaceMode_NODE, runtimev1.NamespaceMode_CONTAINER
	nodesUser := &runtimev1.UserNamespace{Mode: node}
	for kind, o := range map[string]*runtimev1.NamespaceOption{
		"net": {Network: node, Pid: own}, "pid": {Pid: node}, "ipc": {Ipc: node, Pid: own}, "user": {Pid: own, UsernsOptions: nodesUser},
	} {
		t.Run(kind, func(t *testing.T) {
			p := n.runPod(t, options(o))
			c := p.run(t, command("sleep", "1000"))
			for _, each := range []string{"net", "pid", "ipc"} {
				inside := strings.TrimSpace(c.output(t, "readlink", "/proc/self/ns/"+each))
				if got := inside == namespaceOf(t, each); got != (each == kind) {
					t.Errorf("the %s namespace is the node's: %v", each, got)
				}
			}
			if got := strings.TrimSpace(c.output(t, "readlink", "/proc/self/ns/user")); got != namespaceOf(t, "user") {
				t.Errorf("the user namespace is %s", got)
			}
			got := p.status(t).GetLinux().GetNamespaces().GetOptions()
			if got.Network != o.Network || got.Pid != o.Pid || got.Ipc != o.Ipc {
				t.Errorf("the status says %v", got)
			}
		})
	}
	p := n.runPod(t, hostNetwork)
	first := p.run(t, command("sleep", "1234"))
	second := p.create(t, command("sleep", "1000"), namespaces(&runtimev1.NamespaceOption{
		Network: node, Pid: runtimev1.NamespaceMode_TARGET, TargetId: first.id,
	}))
	if err := second.tryStart(); err != nil { // an older kernel does not mount another's /proc
		wantCode(t, err, codes.FailedPrecondition, "needs Linux 6.17")
	} else if got := second.output(t, "sh", "-c", `tr '\0' ' ' </proc/1/cmdline`); got != "sleep 1234 " {
		t.Errorf("process 1 is %q in the target's namespace", got)
	}
	for field, o := range map[string]*runtimev1.NamespaceOption{
		"network": {Network: own}, "ipc": {Ipc: own}, "pid": {Pid: runtimev1.NamespaceMode_TARGET, TargetId: first.id},
		"userns_options.mode": {UsernsOptions: &runtimev1.UserNamespace{Mode: own}},
	} {
		_, err := n.tryPod(t, options(o))
		wantCode(t, err, codes.InvalidArgument, "namespace_options."+field)
	}
	_, err := n.tryPod(t, options(&runtimev1.NamespaceOption{Ipc: node}), func(c *runtimev1.PodSandboxConfig) {
		c.Linux.Sysctls = map[string]string{"kernel.msgmax": "1"}
	})
	wantCode(t, err, codes.InvalidArgument, "kernel.msgmax")
}

// TestPodSecurity sets what a pod asks for its own processes. This engine has none that runs a program of the pod's, so it is
// checked and kept, and containers get what they ask for themselves.
func TestPodSecurity(t *testing.T) {
	n := sharedNode(t)
	profile := func(kind runtimev1.SecurityProfile_ProfileType, ref string) *runtimev1.SecurityProfile {
		return &runtimev1.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
	}
	p := n.runPod(t, hostNetwork, podSecurity(func(s *runtimev1.LinuxSandboxSecurityContext) {
		s.RunAsUser, s.RunAsGroup = &runtimev1.Int64Value{Value: 11}, &runtimev1.Int64Value{Value: 22}
		s.SupplementalGroups, s.SupplementalGroupsPolicy = []int64{33}, runtimev1.SupplementalGroupsPolicy_Strict
		s.ReadonlyRootfs = true
		s.Seccomp, s.Apparmor = profile(runtimev1.SecurityProfile_Unconfined, ""), profile(runtimev1.SecurityProfile_Unconfined, "")
		//lint:ignore SA1019 clients may still send the deprecated field
		s.SeccompProfilePath = "runtime/default"
	}))
	shown{[]containerOption{seccomp(runtimev1.SecurityProfile_RuntimeDefault, "")}, map[string]string{
		ofInit("Uid"): "0 0 0 0", ofInit("Gid"): "0 0 0 0", ofInit("Groups"): "0", ofInit("Seccomp"): "2", ": >/x && echo written": "written",
	}}.check(t, p)
	ctx, cancel := callContext()
	defer cancel()
	s, err := n.d.Runtime.PodSandboxStatus(ctx, &runtimev1.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var kept struct {
		Config struct {
			Security struct {
				RunAsUser, RunAsGroup *int64
				SupplementalGroups    []int64
				Seccomp, AppArmor     struct{ Kind string }

				ReadonlyRootfs, SupplementalStrict bool
			}
		}
	}
	if err := json.Unmarshal([]byte(s.Info["info"]), &kept); err != nil {
		t.Fatalf("info of a verbose status: %v in %q", err, s.Info["info"])
	}
	k := kept.Config.Security
	if k.RunAsUser == nil || *k.RunAsUser != 11 || k.RunAsGroup == nil || *k.RunAsGroup != 22 || len(k.SupplementalGroups) != 1 ||
		!k.SupplementalStrict || !k.ReadonlyRootfs || k.Seccomp.Kind != "unconfined" || k.AppArmor.Kind != "unconfined" {
		t.Errorf("the pod is kept as %s", s.Info["info"])
	}
	for field, change := range map[string]func(*runtimev1.LinuxSandboxSecurityContext){
		"run_as_user":                func(s *runtimev1.LinuxSandboxSecurityContext) { s.RunAsUser = &runtimev1.Int64Value{Value: -1} },
		"run_as_group":               func(s *runtimev1.LinuxSandboxSecurityContext) { s.RunAsGroup = &runtimev1.Int64Value{Value: 1} },
		"supplemental_groups":        func(s *runtimev1.LinuxSandboxSecurityContext) { s.SupplementalGroups = []int64{-1} },
		"supplemental_groups_policy": func(s *runtimev1.LinuxSandboxSecurityContext) { s.SupplementalGroupsPolicy = 9 },
		"seccomp.localhost_ref": func(s *runtimev1.LinuxSandboxSecurityContext) {
			s.Seccomp = profile(runtimev1.SecurityProfile_Localhost, "relative")
		},
		"apparmor.localhost_ref": func(s *runtimev1.LinuxSandboxSecurityContext) {
			s.Apparmor = profile(runtimev1.SecurityProfile_Localhost, "")
		},
		"seccomp": func(s *runtimev1.LinuxSandboxSecurityContext) {
			//lint:ignore SA1019 clients may still send the deprecated field
			s.SeccompProfilePath = "x"
		},
	} {
		_, err := n.tryPod(t, podSecurity(change))
		wantCode(t, err, codes.InvalidArgument, "config.linux.security_context."+field)
	}
}

// TestRestoreRefused sends what no node restores: the fields that are wrong, and a checkpoint that is not there.
func TestRestoreRefused(t *testing.T) {
	n := sharedNode(t)
	config := podConfig(t, n)
	containers := []*runtimev1.ContainerConfig{{
		Metadata: &runtimev1.ContainerMetadata{Name: "c"}, Image: &runtimev1.ImageSpec{Image: image(busybox)},
	}}
	for field, r := range map[string]*runtimev1.RestorePodRequest{
		"checkpoint_path":   {CheckpointPath: "x", Config: config, ContainerConfigs: containers},
		"config":            {CheckpointPath: "/x", ContainerConfigs: containers},
		"container_configs": {CheckpointPath: "/x", Config: config},
		"options[a]":        {CheckpointPath: "/x", Config: config, ContainerConfigs: containers, Options: map[string]string{"a": "b"}},
		"runtime_handler":   {CheckpointPath: "/x", Config: config, ContainerConfigs: containers, RuntimeHandler: "nothing"},
	} {
		ctx, cancel := callContext()
		_, err := n.d.Runtime.RestorePod(ctx, r)
		cancel()
		wantCode(t, err, codes.InvalidArgument, field)
	}
	ctx, cancel := callContext()
	defer cancel()
	r := &runtimev1.RestorePodRequest{CheckpointPath: "/no/such/checkpoint", Config: config, ContainerConfigs: containers}
	if _, err := n.d.Runtime.RestorePod(ctx, r); err == nil || !strings.Contains(err.Error(), "criu") && !strings.Contains(err.Error(), "/no/such/checkpoint") {
		t.Errorf("RestorePod of nothing: %v", err)
	}
	if _, err := n.d.Runtime.RestorePod(context.Background(), r); err == nil {
		t.Error("RestorePod without a deadline is no error")
	}
	c := n.runPod(t, hostNetwork).run(t, command("sleep", "1000"))
	_, err := n.d.Runtime.CheckpointContainer(ctx, &runtimev1.CheckpointContainerRequest{ContainerId: c.id, Location: "/x", Timeout: -1})
	wantCode(t, err, codes.InvalidArgument, "timeout")
}
