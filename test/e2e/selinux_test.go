package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// needSELinux skips where labels are nothing to the kernel.
func needSELinux(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err != nil {
		t.Skip("this kernel has no SELinux policy loaded")
	}
}

func selinuxOptions(o *runtimev1.SELinuxOption) containerOption {
	return with(func(s *runtimev1.LinuxContainerSecurityContext) { s.SelinuxOptions = o })
}

func relabelled(host, inside string) containerOption {
	return func(c *runtimev1.ContainerConfig) {
		c.Mounts = append(c.Mounts, &runtimev1.Mount{HostPath: host, ContainerPath: inside, SelinuxRelabel: true})
	}
}

func mounted(host, inside string) containerOption {
	return func(c *runtimev1.ContainerConfig) {
		c.Mounts = append(c.Mounts, &runtimev1.Mount{HostPath: host, ContainerPath: inside})
	}
}

// processLabel is that of the container's first process; what is executed in it has the same.
func (c *container) processLabel(t *testing.T) string {
	t.Helper()
	read := func(pid string) string {
		return strings.Trim(c.output(t, "cat", "/proc/"+pid+"/attr/current"), "\x00\n")
	}
	own, executed := read("1"), read("self")
	if own != executed {
		t.Errorf("what is executed in the container has the label %s, its first process %s", executed, own)
	}
	return own
}

// fileLabel is the label of a file, as the container sees it.
func (c *container) fileLabel(t *testing.T, path string) string {
	t.Helper()
	var pid int
	c.info(t, "pid", &pid)
	return labelOfFile(t, fmt.Sprintf("/proc/%d/root%s", pid, path))
}

func labelOfFile(t *testing.T, path string) string {
	t.Helper()
	value := make([]byte, 256)
	n, err := unix.Lgetxattr(path, "security.selinux", value)
	if err != nil {
		t.Fatalf("label of %s: %v", path, err)
	}
	return strings.TrimRight(string(value[:n]), "\x00")
}

var containerLabel = regexp.MustCompile(`^system_u:system_r:container_t:(s0:c\d+,c\d+)$`)

// TestSELinux gives each pod a level of its own, labels what its containers see, and has the kernel keep the pods apart.
func TestSELinux(t *testing.T) {
	needSELinux(t)
	n := ownNode(t)
	one, other := n.runPod(t), n.runPod(t)
	sleep := command("sleep", "1000")
	a, b, c := one.run(t, sleep), one.run(t, sleep, tty), other.run(t, sleep)
	process := a.processLabel(t)
	level := containerLabel.FindStringSubmatch(process)
	if level == nil {
		t.Fatalf("the label is %s", process)
	}
	if got := b.processLabel(t); got != process {
		t.Errorf("a container of the same pod has the label %s, not %s", got, process)
	}
	if got := c.processLabel(t); containerLabel.FindString(got) == "" || got == process {
		t.Errorf("a container of another pod has the label %s, and the first %s", got, process)
	}
	files := "system_u:object_r:container_file_t:" + level[1]
	for _, path := range []string{"/", "/bin/busybox", "/dev", "/dev/null", "/dev/pts", "/dev/shm", "/dev/mqueue", "/etc/hosts", "/etc/resolv.conf"} {
		if got := a.fileLabel(t, path); got != files {
			t.Errorf("%s has the label %s, want %s", path, got, files)
		}
	}
	if d := one.run(t, shell("echo heard; echo aside >&2")); d.wait(t, 20*time.Second).ExitCode != 0 || d.logText(t, "stdout") != "heard\n" || d.logText(t, "stderr") != "aside\n" {
		t.Errorf("output is %q and %q", d.logText(t, "stdout"), d.logText(t, "stderr"))
	}

	// The daemon's next life knows the pod's level.
	if err := errors.Join(n.d.Stop(), n.d.Start(t.Context())); err != nil {
		t.Fatal(err)
	}
	if got := one.run(t, sleep).processLabel(t); got != process {
		t.Errorf("after a restart of the daemon the pod's label is %s, not %s", got, process)
	}
}

// TestSELinuxVolumes labels a volume for one pod, whose it then is: another's containers may not write there.
func TestSELinuxVolumes(t *testing.T) {
	needSELinux(t)
	n := sharedNode(t)
	dir := t.TempDir()
	if err := errors.Join(os.Chmod(dir, 0o777), os.Mkdir(dir+"/sub", 0o777), os.WriteFile(dir+"/sub/file", nil, 0o666), os.Symlink("/etc", dir+"/link")); err != nil {
		t.Fatal(err)
	}
	etc := "" // a link in the volume must not lead out of it
	if value := make([]byte, 256); true {
		if size, err := unix.Lgetxattr("/etc", "security.selinux", value); err == nil {
			etc = string(value[:size])
		}
	}
	write := shell("echo mine >>/data/sub/file")
	pod := func(options *runtimev1.SELinuxOption) *pod {
		return n.runPod(t, func(c *runtimev1.PodSandboxConfig) { c.Linux.SecurityContext.SelinuxOptions = options })
	}
	owner, stranger := pod(&runtimev1.SELinuxOption{Level: "s0:c5,c6"}), pod(&runtimev1.SELinuxOption{Level: "s0:c7,c8"})
	w := owner.run(t, write, relabelled(dir, "/data"), selinuxOptions(&runtimev1.SELinuxOption{Level: "s0:c5,c6"}))
	if code := w.wait(t, 20*time.Second).ExitCode; code != 0 {
		t.Fatalf("the owner's write ends with %d: %s", code, w.logText(t, "stderr"))
	}
	for _, path := range []string{dir, dir + "/sub", dir + "/sub/file", dir + "/link"} {
		if got := labelOfFile(t, path); got != "system_u:object_r:container_file_t:s0:c5,c6" {
			t.Errorf("%s has the label %s", path, got)
		}
	}
	if value := make([]byte, 256); true {
		if size, _ := unix.Lgetxattr("/etc", "security.selinux", value); string(value[:max(size, 0)]) != etc {
			t.Errorf("/etc, to which a link in the volume leads, got the label %s", value[:size])
		}
	}
	r := stranger.run(t, write, mounted(dir, "/data"))
	if code := r.wait(t, 20*time.Second).ExitCode; code == 0 {
		t.Error("a container with another level wrote to the volume")
	}
	if text, err := os.ReadFile(filepath.Join(dir, "sub/file")); err != nil || string(text) != "mine\n" {
		t.Errorf("the file reads %q, %v", text, err)
	}
	// A container of the stranger's with the owner's level may.
	if code := stranger.run(t, write, mounted(dir, "/data"), selinuxOptions(&runtimev1.SELinuxOption{Level: "s0:c5,c6"})).wait(t, 20*time.Second).ExitCode; code != 0 {
		t.Errorf("with the volume's level the write ends with %d", code)
	}
}

// TestSELinuxOptions takes what a container asks for in the place of what the pod has.
func TestSELinuxOptions(t *testing.T) {
	needSELinux(t)
	n := sharedNode(t)
	p := n.runPod(t, func(c *runtimev1.PodSandboxConfig) {
		c.Linux.SecurityContext.Privileged = true
		c.Linux.SecurityContext.SelinuxOptions = &runtimev1.SELinuxOption{User: "system_u", Role: "system_r", Type: "container_t", Level: "s0:c1,c2"}
	})
	privileged := with(func(s *runtimev1.LinuxContainerSecurityContext) { s.Privileged = true })
	own, err := os.ReadFile("/proc/self/attr/current")
	if err != nil {
		t.Fatal(err)
	}
	sleep := command("sleep", "1000")
	for want, options := range map[string][]containerOption{
		"system_u:system_r:container_t:s0:c1,c2": {sleep},
		"system_u:system_r:spc_t:s0:c1,c2":       {sleep, selinuxOptions(&runtimev1.SELinuxOption{Type: "spc_t"})},
		"system_u:system_r:spc_t:s0:c3,c4":       {sleep, selinuxOptions(&runtimev1.SELinuxOption{Type: "spc_t", Level: "s0:c3,c4"}), privileged},
		strings.Trim(string(own), "\x00\n"):      {sleep, privileged},
	} {
		c := p.run(t, options...)
		if got := c.processLabel(t); got != want {
			t.Errorf("the label is %s, want %s", got, want)
		}
		if got := c.fileLabel(t, "/"); !strings.HasPrefix(got, "system_u:object_r:container_file_t:s0:c") {
			t.Errorf("the root has the label %s", got)
		}
	}
	_, err = p.tryCreate(selinuxOptions(&runtimev1.SELinuxOption{Type: "no_such_t"}))
	wantCode(t, err, codes.InvalidArgument, "no_such_t")
	_, err = p.tryCreate(relabelled("/etc", "/data"))
	wantCode(t, err, codes.InvalidArgument, "selinux_relabel")
	_, err = n.tryPod(t, func(c *runtimev1.PodSandboxConfig) {
		c.Linux.SecurityContext.SelinuxOptions = &runtimev1.SELinuxOption{Level: "s9"}
	})
	wantCode(t, err, codes.InvalidArgument, "selinux_options")
}
