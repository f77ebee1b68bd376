package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestNRIEvents(t *testing.T) {
	n := sharedNode(t)
	pl := n.join(t, &plugin{})
	p := n.runPod(t)
	pod := p.config.Metadata.Name
	c := p.run(t, shell("sleep 1000"), annotation("note", "kept"))
	ctx, cancel := callContext()
	defer cancel()
	_, err := n.d.Runtime.UpdateContainerResources(ctx, &runtimev1.UpdateContainerResourcesRequest{
		ContainerId: c.id, Linux: &runtimev1.LinuxContainerResources{CpuShares: 500},
	})
	if err != nil {
		t.Fatal(err)
	}
	c.stop(t, 0)
	name := pl.lastOf("create").GetName()
	if err := p.down(); err != nil {
		t.Fatal(err)
	}
	pl.wantEvents(t, "run "+pod, "create "+name, "post-create "+name, "start "+name, "post-start "+name, "update "+name,
		"post-update "+name, "stop "+name, "stop "+pod, "remove "+name, "remove "+pod)

	created, started, stopped := pl.lastOf("create"), pl.lastOf("post-start"), pl.lastOf("stop")
	if created.GetId() != c.id || created.GetPodSandboxId() != p.id || created.GetAnnotations()["note"] != "kept" ||
		!slices.Equal(created.GetArgs(), []string{"sh", "-c", "sleep 1000"}) || len(created.GetMounts()) == 0 || created.GetImage().GetConfigDigest() == "" {
		t.Errorf("at its creation a container is shown as %v", created)
	}
	if started.GetPid() == 0 || started.GetStartedAt() == 0 || started.GetState() != api.ContainerState_CONTAINER_RUNNING {
		t.Errorf("once started a container is shown as %v", started)
	}
	if stopped.GetState() != api.ContainerState_CONTAINER_STOPPED || stopped.GetFinishedAt() == 0 || stopped.GetExitCode() != 137 {
		t.Errorf("once stopped a container is shown as %v", stopped)
	}
}

func TestNRIAdjustsContainer(t *testing.T) {
	n, share := cdiNode(t)
	node := filepath.Join(share, "node")
	if err := unix.Mknod(node, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))); err != nil {
		t.Fatal(err)
	}
	pl := &plugin{create: func(c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		a := &api.ContainerAdjustment{}
		a.AddEnv("ADDED", "yes")
		a.AddEnv("CHANGED", "by the plugin")
		a.RemoveEnv("TAKEN")
		a.AddAnnotation("plugin.example/note", "added")
		a.AddMount(&api.Mount{Source: share, Destination: "/mnt/plugin", Type: "bind", Options: []string{"rbind", "ro"}})
		a.AddDevice(&api.LinuxDevice{Path: "/dev/plugin", Type: "c", Major: 1, Minor: 5, FileMode: api.FileMode(os.FileMode(0o666))})
		a.AddCDIDevice(&api.CDIDevice{Name: "vendor.com/toy=a"})
		a.RemoveMount("/etc/hosts")
		a.AddRlimit("RLIMIT_NOFILE", 333, 222)
		a.SetLinuxCPUShares(321)
		a.SetLinuxMemoryLimit(64 << 20)
		score := 777
		a.SetLinuxOomScoreAdj(&score)
		a.SetLinuxSysctl("kernel.shm_rmid_forced", "1")
		a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "ipc"})
		a.SetArgs([]string{"sh", "-c", c.GetArgs()[2] + "; echo and more"})
		return a, nil, nil
	}}
	n.join(t, pl)
	p := n.runPod(t)
	c := p.run(t, shell(`set -e
		echo "$ADDED,$CHANGED,$TAKEN,$TOY"
		head -c 4 /dev/plugin | wc -c
		cat /mnt/plugin/firmware
		if touch /mnt/plugin/x 2>/dev/null; then echo written; fi
		if grep -q localhost /etc/hosts; then echo hosts; fi
		ulimit -n; ulimit -H -n
		cat /proc/self/oom_score_adj /proc/sys/kernel/shm_rmid_forced`),
		func(c *runtimev1.ContainerConfig) {
			c.Envs = []*runtimev1.KeyValue{{Key: "CHANGED", Value: []byte("no")}, {Key: "TAKEN", Value: []byte("no")}}
		})
	if s := c.wait(t, callTimeout); s.ExitCode != 0 || s.Resources.Linux.CpuShares != 321 || s.Resources.Linux.MemoryLimitInBytes != 64<<20 ||
		s.Annotations["plugin.example/note"] != "" {
		t.Errorf("the container is %v, stderr %q", s, c.logText(t, "stderr"))
	}
	want := "yes,by the plugin,,a\n4\nv7\n222\n333\n777\n1\nand more\n"
	if got := c.logText(t, "stdout"); got != want {
		t.Errorf("the container saw %q, want %q", got, want)
	}
	if got := pl.lastOf("post-create"); got.GetAnnotations()["plugin.example/note"] != "added" || !slices.Contains(got.GetEnv(), "ADDED=yes") {
		t.Errorf("afterwards the container is shown as %v", got)
	}
}

func TestNRIHook(t *testing.T) {
	n := sharedNode(t)
	out := t.TempDir()
	n.join(t, &plugin{create: func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		a := &api.ContainerAdjustment{}
		a.AddHooks(&api.Hooks{CreateRuntime: []*api.Hook{{Path: thisProgram(t), Args: []string{"hook", "role-hook", out}}}})
		return a, nil, nil
	}})
	c := n.runPod(t).run(t, command("true"))
	if s := c.wait(t, callTimeout); s.ExitCode != 0 {
		t.Errorf("the container is %v", s)
	}
	if state, err := os.ReadFile(filepath.Join(out, "state")); err != nil || !strings.Contains(string(state), c.id) {
		t.Errorf("the hook was given %q, %v", state, err)
	}
}

func TestNRIRefuses(t *testing.T) {
	n := sharedNode(t)
	refuse := errors.New("not on my watch")
	pl := &plugin{run: func(*api.PodSandbox) error { return refuse }}
	n.join(t, pl)
	p, err := n.tryPod(t)
	if err == nil {
		_ = p.down()
	}
	wantCode(t, err, codes.FailedPrecondition, refuse.Error())
	pl.run = nil
	p = n.runPod(t)
	pl.create = func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		return nil, nil, refuse
	}
	_, err = p.tryCreate(command("true"))
	wantCode(t, err, codes.FailedPrecondition, refuse.Error())
	pl.create = func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		a := &api.ContainerAdjustment{}
		a.AddMount(&api.Mount{Source: "/tmp", Destination: "tmp", Type: "bind"})
		return a, nil, nil
	}
	_, err = p.tryCreate(command("true"))
	wantCode(t, err, codes.InvalidArgument, `destination "tmp" must be an absolute path`)
	pl.create = nil
	if s := p.run(t, command("true")).wait(t, callTimeout); s.ExitCode != 0 {
		t.Errorf("once nobody refuses: %v", s)
	}
}

// A plugin that hangs is cut off and holds nothing up for longer than its time.
func TestNRIHangs(t *testing.T) {
	n := sharedNode(t)
	release := make(chan struct{})
	pl := n.join(t, &plugin{create: func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		<-release
		return nil, nil, nil
	}})
	defer close(release)
	p := n.runPod(t)
	began := time.Now()
	if s := p.run(t, command("true")).wait(t, callTimeout); s.ExitCode != 0 {
		t.Errorf("the container is %v", s)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
	select {
	case <-pl.gone:
	case <-time.After(10 * time.Second):
		t.Error("the plugin is still connected")
	}
}

func TestNRIUpdates(t *testing.T) {
	n := sharedNode(t)
	p := n.runPod(t)
	first := p.run(t, shell("sleep 1000"))
	shares := func(c *container) int64 { return c.status(t).GetResources().GetLinux().GetCpuShares() }
	update := func(id string, shares uint64) *api.ContainerUpdate {
		u := &api.ContainerUpdate{}
		u.SetContainerId(id)
		u.SetLinuxCPUShares(shares)
		return u
	}
	pl := &plugin{sync: func([]*api.Container) []*api.ContainerUpdate { return []*api.ContainerUpdate{update(first.id, 111)} }}
	n.join(t, pl)
	if !slices.Contains(pl.shown, p.id) || !slices.Contains(pl.shown, first.id) {
		t.Errorf("the plugin was shown %q", pl.shown)
	}
	eventually(t, 10*time.Second, func() error {
		if got := shares(first); got != 111 {
			return fmt.Errorf("shares are %d, the plugin wanted 111 as it joined", got)
		}
		return nil
	})
	failed, err := pl.stub.UpdateContainers([]*api.ContainerUpdate{update(first.id, 222)})
	if err != nil || len(failed) > 0 || shares(first) != 222 {
		t.Errorf("by itself: %v, %v, shares are %d", failed, err, shares(first))
	}
	pl.create = func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		return nil, []*api.ContainerUpdate{update(first.id, 333)}, nil
	}
	second := p.run(t, shell("sleep 1000"))
	if shares(first) != 333 {
		t.Errorf("at the creation of another: shares are %d", shares(first))
	}
	pl.update = func(c *api.Container, r *api.LinuxResources) []*api.ContainerUpdate {
		return []*api.ContainerUpdate{update(first.id, 444), update(c.GetId(), r.GetCpu().GetShares().GetValue()+1)}
	}
	ctx, cancel := callContext()
	defer cancel()
	if _, err := n.d.Runtime.UpdateContainerResources(ctx, &runtimev1.UpdateContainerResourcesRequest{
		ContainerId: second.id, Linux: &runtimev1.LinuxContainerResources{CpuShares: 700},
	}); err != nil {
		t.Fatal(err)
	}
	if shares(first) != 444 || shares(second) != 701 {
		t.Errorf("at an update: shares are %d and %d", shares(first), shares(second))
	}
}

// A plugin in the daemon's directory is started with it, configured, and ended with it. Its answer is seen on a container.
func TestNRIStartsPlugins(t *testing.T) {
	n := ownNode(t)
	base := filepath.Dir(n.d.Config)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"plugins/20-launched":         "#!/bin/sh\nexec " + self + " role-plugin\n",
		"plugin-config/launched.conf": "from the file",
	} {
		path := filepath.Join(base, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.d.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := n.d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := n.runPod(t).run(t, shell("echo $LAUNCHED"))
	c.wait(t, callTimeout)
	if got := c.logText(t, "stdout"); got != "from the file\n" {
		t.Errorf("the container saw %q", got)
	}
	if err := n.d.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(base, "plugins/20-launched")); err != nil {
		t.Fatal(err)
	}
	if err := n.d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// launched is the plugin that rolePlugin is.
type launched struct{ config string }

func (l *launched) Configure(_ context.Context, config, _, _ string) (api.EventMask, error) {
	l.config = config
	return 0, nil
}

func (l *launched) CreateContainer(context.Context, *api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	a := &api.ContainerAdjustment{}
	a.AddEnv("LAUNCHED", l.config)
	return a, nil, nil
}

// rolePlugin is an NRI plugin that a daemon starts.
func rolePlugin([]string) int {
	s, err := stub.New(&launched{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := s.Run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
