package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/internal/cgstat"
)

// subject is a runtime under test. Its processes are in the cgroup's child "daemon", its pods in "pods", so that what
// either uses can be told apart and nothing short-lived is missed.
type subject struct {
	name    string // one word
	version string
	socket  string
	cgroup  string // a path from the root of every hierarchy
	image   string
	logs    string // directory
	runtime runtimev1.RuntimeServiceClient
	images  runtimev1.ImageServiceClient
	host    *cgstat.Host
	log     func() string // the end of the daemon's log
	pid     func() int    // of the daemon
	stop    func() error

	number atomic.Int64
	times  times
}

// ownPID gives each container processes of its own, as a kubelet asks by default.
var ownPID = &runtimev1.NamespaceOption{Pid: runtimev1.NamespaceMode_CONTAINER}

// pod is one pod with one container.
type pod struct {
	id, container string
	config        *runtimev1.PodSandboxConfig
	logPath       string
}

// sleeping is the command of a container that does nothing.
var sleeping = []string{"sleep", "36000"}

// prepare waits for the network and pulls the image.
func (s *subject) prepare(ctx context.Context) error {
	version, err := s.runtime.Version(ctx, &runtimev1.VersionRequest{})
	if err != nil {
		return s.failed(err)
	}
	s.version = version.RuntimeName + " " + version.RuntimeVersion
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		status, err := s.runtime.Status(ctx, &runtimev1.StatusRequest{})
		if err != nil {
			return s.failed(err)
		}
		why := ""
		for _, c := range status.Status.Conditions {
			if !c.Status && (c.Type == runtimev1.RuntimeReady || c.Type == runtimev1.NetworkReady) {
				why += c.Type + ": " + c.Message + ". "
			}
		}
		if why == "" {
			break
		}
		if time.Now().After(deadline) {
			return s.failed(errors.New("not ready after a minute: " + why))
		}
	}
	_, err = s.images.PullImage(ctx, &runtimev1.PullImageRequest{Image: &runtimev1.ImageSpec{Image: s.image}})
	return s.failed(err)
}

// failed adds to an error whose it is, and what the daemon said.
func (s *subject) failed(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w\n%s", s.name, err, s.log())
}

// workload is what a container runs.
type workload struct {
	command []string
	stdin   bool
}

// up brings a pod up whose container sleeps. With a name, the whole and its calls are noted as "NAME", "NAME RunPodSandbox" and so on.
func (s *subject) up(ctx context.Context, name string) (*pod, error) {
	return s.upWith(ctx, name, workload{command: sleeping})
}

// upWith is as up, with another workload.
func (s *subject) upWith(ctx context.Context, name string, w workload) (*pod, error) {
	number := s.number.Add(1)
	p := &pod{config: &runtimev1.PodSandboxConfig{
		Metadata: &runtimev1.PodSandboxMetadata{
			Name: fmt.Sprintf("bench-%d", number), Namespace: "bench", Uid: fmt.Sprintf("bench-%s-%d-%d", s.name, os.Getpid(), number),
		},
		LogDirectory: filepath.Join(s.logs, fmt.Sprint(number)),
		Linux: &runtimev1.LinuxPodSandboxConfig{
			CgroupParent:    s.cgroup + "/pods",
			SecurityContext: &runtimev1.LinuxSandboxSecurityContext{NamespaceOptions: ownPID},
		},
	}}
	p.logPath = filepath.Join(p.config.LogDirectory, "main.log")
	if err := os.MkdirAll(p.config.LogDirectory, 0o755); err != nil {
		return nil, err
	}
	err := s.times.time(name, func() error {
		err := s.part(name, "RunPodSandbox", func() error {
			resp, err := s.runtime.RunPodSandbox(ctx, &runtimev1.RunPodSandboxRequest{Config: p.config})
			p.id = resp.GetPodSandboxId()
			return err
		})
		if err != nil {
			return err
		}
		err = s.part(name, "CreateContainer", func() error {
			resp, err := s.runtime.CreateContainer(ctx, &runtimev1.CreateContainerRequest{
				PodSandboxId: p.id, SandboxConfig: p.config, Config: s.container(w),
			})
			p.container = resp.GetContainerId()
			return err
		})
		if err != nil {
			return err
		}
		return s.part(name, "StartContainer", func() error {
			_, err := s.runtime.StartContainer(ctx, &runtimev1.StartContainerRequest{ContainerId: p.container})
			return err
		})
	})
	return p, s.failed(err)
}

func (s *subject) container(w workload) *runtimev1.ContainerConfig {
	return &runtimev1.ContainerConfig{
		Metadata: &runtimev1.ContainerMetadata{Name: "main"}, Image: &runtimev1.ImageSpec{Image: s.image},
		Command: w.command, LogPath: "main.log", Stdin: w.stdin, Linux: &runtimev1.LinuxContainerConfig{
			SecurityContext: &runtimev1.LinuxContainerSecurityContext{NamespaceOptions: ownPID},
		},
	}
}

// part times one call of what has a name.
func (s *subject) part(whole, call string, do func() error) error {
	if whole == "" {
		return do()
	}
	return s.times.time(whole+" "+call, do)
}

// down kills and removes the container and the pod; names are as of up.
func (s *subject) down(ctx context.Context, p *pod, name string) error {
	return s.failed(s.times.time(name, func() error {
		for _, call := range []struct {
			name string
			do   func() error
		}{
			{"StopContainer", func() error {
				_, err := s.runtime.StopContainer(ctx, &runtimev1.StopContainerRequest{ContainerId: p.container})
				return err
			}},
			{"RemoveContainer", func() error {
				_, err := s.runtime.RemoveContainer(ctx, &runtimev1.RemoveContainerRequest{ContainerId: p.container})
				return err
			}},
			{"StopPodSandbox", func() error {
				_, err := s.runtime.StopPodSandbox(ctx, &runtimev1.StopPodSandboxRequest{PodSandboxId: p.id})
				return err
			}},
			{"RemovePodSandbox", func() error {
				_, err := s.runtime.RemovePodSandbox(ctx, &runtimev1.RemovePodSandboxRequest{PodSandboxId: p.id})
				return err
			}},
		} {
			if err := s.part(name, call.name, call.do); err != nil {
				return err
			}
		}
		return nil
	}))
}

// exec runs true in the pod's container.
func (s *subject) exec(ctx context.Context, p *pod, name string) error {
	return s.failed(s.times.time(name, func() error {
		resp, err := s.runtime.ExecSync(ctx, &runtimev1.ExecSyncRequest{ContainerId: p.container, Cmd: []string{"/bin/true"}, Timeout: 10})
		if err == nil && resp.ExitCode != 0 {
			err = fmt.Errorf("exit code %d: %s", resp.ExitCode, resp.Stderr)
		}
		return err
	}))
}

// ups brings n pods up, so many at once, and downs takes them down.
func (s *subject) ups(ctx context.Context, n, concurrency int, name string) ([]*pod, error) {
	all := make([]*pod, n)
	err := each(n, concurrency, func(i int) (err error) {
		all[i], err = s.up(ctx, name)
		return err
	})
	return all, err
}

func (s *subject) downs(ctx context.Context, all []*pod, concurrency int, name string) error {
	return each(len(all), concurrency, func(i int) error { return s.down(ctx, all[i], name) })
}

// cpu is what all processes of the runtime and of its pods have used so far, ms, those that ended included. Work that
// the kernel does in threads of its own (the end of network namespaces, say) is nobody's.
func (s *subject) cpu() (float64, error) {
	sample, err := s.host.Read(s.cgroup, cgstat.Basic)
	if err != nil {
		return 0, err
	}
	return float64(sample.CPU.Usage) / 1e6, nil
}

// using does something and answers with the CPU that it took, ms.
func (s *subject) using(do func() error) (float64, error) {
	before, err := s.cpu()
	if err != nil {
		return 0, err
	}
	if err := do(); err != nil {
		return 0, err
	}
	after, err := s.cpu()
	return after - before, err
}

// memory is the proportional set size of the runtime's processes, KiB: of the daemon, of the other processes (shims, pause
// containers), and of the workloads, which are nobody's. Processes are told by their command line.
type memory struct{ daemon, others, workload float64 }

func (s *subject) memory() (memory, error) {
	var m memory
	all, err := s.host.Processes(s.cgroup)
	if err != nil {
		return m, err
	}
	daemon := s.pid()
	for _, pid := range all {
		switch kib := float64(pss(pid)); {
		case cmdline(pid) == strings.Join(sleeping, " "):
			m.workload += kib
		case pid == daemon:
			m.daemon += kib
		default:
			m.others += kib
		}
	}
	return m, nil
}

// workloads are the processes that sleep in pods.
func (s *subject) workloads() ([]int, error) {
	all, err := s.host.Processes(s.cgroup)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(pid int) bool { return cmdline(pid) != strings.Join(sleeping, " ") }), nil
}

// cmdline is a process's command line; "" when it ended.
func cmdline(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(strings.ReplaceAll(string(text), "\x00", " "))
}

// pss reads a process's proportional set size, KiB; 0 when it has none.
func pss(pid int) uint64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		var kib uint64
		if n, _ := fmt.Sscanf(line, "Pss: %d kB", &kib); n == 1 {
			return kib
		}
	}
	return 0
}
