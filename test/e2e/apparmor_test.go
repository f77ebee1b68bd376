package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// appArmorProfile is what TestAppArmor loads: it may not write beneath /tmp.
const appArmorProfile = `
profile criserver-e2e-no-tmp flags=(attach_disconnected, mediate_deleted) {
  file,
  capability,
  network,
  signal,
  deny /tmp/** w,
}
`

// loadAppArmor loads a profile and answers with how it is taken away again.
func loadAppArmor(t *testing.T, text string) (unload func()) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "profile")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	parse := func(option string) error {
		out, err := exec.Command("apparmor_parser", "-K", option, file).CombinedOutput()
		if err != nil {
			t.Logf("apparmor_parser %s: %s", option, out)
		}
		return err
	}
	if err := parse("-r"); err != nil {
		t.Fatal(err)
	}
	loaded := true
	unload = func() {
		if loaded {
			loaded = false
			if err := parse("-R"); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(unload)
	return unload
}

// TestAppArmor confines containers, and what is executed in them, by the default profile and by one that the node has loaded.
func TestAppArmor(t *testing.T) {
	if on, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err != nil || !strings.HasPrefix(string(on), "Y") {
		t.Skip("this kernel has no AppArmor, or it is off")
	}
	n := sharedNode(t)
	unload := loadAppArmor(t, appArmorProfile)
	const (
		own    = "cat /proc/1/attr/current; cat /proc/self/attr/current" // the first process, and what is executed
		name   = "criserver-e2e-no-tmp"
		tmp    = "(: >/tmp/x) 2>/dev/null && echo written || echo refused"
		etc    = "(: >/etc/x) 2>/dev/null && echo written || echo refused"
		sysctl = "(cat /proc/sys/kernel/hostname >/proc/sys/kernel/hostname) 2>/dev/null && echo written || echo refused"
	)
	p := n.runPod(t, func(c *runtimev1.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	privileged := with(func(s *runtimev1.LinuxContainerSecurityContext) { s.Privileged = true })
	confined, localhost := "criserver-default (enforce)", name+" (enforce)"
	inDefault := map[string]string{own: confined + " " + confined, sysctl: "refused", tmp: "written"}
	inLocalhost := map[string]string{own: localhost + " " + localhost, sysctl: "written", tmp: "refused", etc: "written"}
	unconfined := map[string]string{own: "unconfined unconfined", sysctl: "written", tmp: "written"}
	for title, one := range map[string]shown{
		"unset":          {nil, inDefault},
		"RuntimeDefault": {[]containerOption{apparmor(runtimev1.SecurityProfile_RuntimeDefault, "")}, inDefault},
		"Unconfined":     {[]containerOption{apparmor(runtimev1.SecurityProfile_Unconfined, "")}, unconfined},
		"Localhost":      {[]containerOption{apparmor(runtimev1.SecurityProfile_Localhost, name)}, inLocalhost},
		"localhost/":     {[]containerOption{apparmor(runtimev1.SecurityProfile_Localhost, "localhost/"+name)}, inLocalhost},
		"a user":         {[]containerOption{asUser(1000)}, map[string]string{own: confined + " " + confined}},
		"privileged":     {[]containerOption{privileged}, map[string]string{own: "unconfined unconfined"}},
	} {
		t.Run(title, func(t *testing.T) { one.check(t, p) })
	}
	_, err := p.tryCreate(apparmor(runtimev1.SecurityProfile_Localhost, "no-such-profile"))
	wantCode(t, err, codes.FailedPrecondition, "no-such-profile is not loaded")

	// One that is taken away before the start is missed by the kernel, which is told with its name.
	late := p.create(t, command("true"), apparmor(runtimev1.SecurityProfile_Localhost, name))
	unload()
	if err := late.tryStart(); err == nil || !strings.Contains(err.Error(), name) {
		t.Errorf("the start of a container whose profile was taken away: %v, want an error that names %s", err, name)
	}
}
