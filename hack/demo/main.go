// Command demo shows what a node does for one pod: it starts a daemon on a temporary root, pulls an image from a
// registry on loopback, runs a pod with a web server, shows its status, fetches its page, prints its log and what an
// exec answers, and cleans up. All of it happens in namespaces of its own: nothing else on the machine is touched.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/e2e/rig"
)

// limit bounds the whole show, without building.
const limit = 2 * time.Minute

// ownPID gives each container processes of its own, as a kubelet asks by default.
var ownPID = &runtimev1.NamespaceOption{Pid: runtimev1.NamespaceMode_CONTAINER}

func main() {
	place := rig.Isolate()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := run(ctx, place); err != nil {
		fmt.Fprintf(os.Stderr, "\nthe demo did not work: %v\n", err)
		os.Exit(1)
	}
}

// demo is what the steps hand to each other.
type demo struct {
	place     *rig.Place
	d         *rig.Daemon
	image     string
	pod       string
	container string
	ip        string
	config    *runtimev1.PodSandboxConfig
}

func run(ctx context.Context, place *rig.Place) error {
	demo := &demo{place: place}
	steps := []struct {
		title string
		do    func(context.Context) error
	}{
		{"Start a daemon on a temporary root, and a registry on loopback", demo.start},
		{"Pull an image with a web server", demo.pull},
		{"Run a pod, and a container in it", demo.up},
		{"Look at it", demo.status},
		{"Fetch its page from the node", demo.fetch},
		{"Read the container's log", demo.log},
		{"Execute a command in it", demo.exec},
		{"See what runs: one daemon, one keeper, one shim, and the workload", demo.processes},
		{"Stop and remove everything", demo.down},
	}
	for i, s := range steps {
		fmt.Printf("\n\x1b[1m%d. %s\x1b[0m\n", i+1, s.title)
		start := time.Now()
		if err := s.do(ctx); err != nil {
			err = fmt.Errorf("%s: %w", strings.ToLower(s.title[:1])+s.title[1:], err)
			if demo.d != nil {
				err = fmt.Errorf("%w\nthe daemon's log ends with\n%s", err, demo.d.LogTail(10))
			}
			return err
		}
		fmt.Printf("   (%.1f ms)\n", float64(time.Since(start).Microseconds())/1000)
	}
	fmt.Println("\nThat was all of it; nothing is left behind. `make test` runs the tests, docs/operating.md says how to run a node.")
	return nil
}

// show prints indented lines.
func show(text string) {
	for line := range strings.Lines(strings.TrimSpace(text)) {
		fmt.Printf("   %s\n", strings.TrimRight(line, "\n"))
	}
}

func (d *demo) start(ctx context.Context) error {
	registry, err := d.place.StartRegistry()
	if err != nil {
		return err
	}
	d.image = registry + "/criserver/web:latest"
	if d.d, err = d.place.NewDaemon(ctx, "demo"); err != nil {
		return err
	}
	v, err := d.d.Runtime.Version(ctx, &runtimev1.VersionRequest{})
	if err != nil {
		return err
	}
	show(fmt.Sprintf("%s %s serves CRI %s on %s", v.RuntimeName, v.RuntimeVersion, v.RuntimeApiVersion, d.d.Socket()))
	return nil
}

func (d *demo) pull(ctx context.Context) error {
	resp, err := d.d.Images.PullImage(ctx, &runtimev1.PullImageRequest{Image: &runtimev1.ImageSpec{Image: d.image}})
	if err != nil {
		return err
	}
	show(d.image + "\n" + resp.ImageRef)
	return nil
}

func (d *demo) up(ctx context.Context) error {
	d.config = &runtimev1.PodSandboxConfig{
		Metadata:     &runtimev1.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "demo"},
		Hostname:     "web",
		LogDirectory: filepath.Join(d.place.Dir, "pod-logs"),
		Linux:        &runtimev1.LinuxPodSandboxConfig{SecurityContext: &runtimev1.LinuxSandboxSecurityContext{NamespaceOptions: ownPID}},
	}
	if err := os.MkdirAll(d.config.LogDirectory, 0o755); err != nil {
		return err
	}
	pod, err := d.d.Runtime.RunPodSandbox(ctx, &runtimev1.RunPodSandboxRequest{Config: d.config})
	if err != nil {
		return err
	}
	d.pod = pod.PodSandboxId
	created, err := d.d.Runtime.CreateContainer(ctx, &runtimev1.CreateContainerRequest{
		PodSandboxId: d.pod, SandboxConfig: d.config, Config: &runtimev1.ContainerConfig{
			Metadata: &runtimev1.ContainerMetadata{Name: "server"}, Image: &runtimev1.ImageSpec{Image: d.image},
			LogPath: "server.log", Linux: &runtimev1.LinuxContainerConfig{
				SecurityContext: &runtimev1.LinuxContainerSecurityContext{NamespaceOptions: ownPID},
			},
		},
	})
	if err != nil {
		return err
	}
	d.container = created.ContainerId
	show(fmt.Sprintf("pod       %.12s\ncontainer %.12s", d.pod, d.container))
	_, err = d.d.Runtime.StartContainer(ctx, &runtimev1.StartContainerRequest{ContainerId: d.container})
	return err
}

func (d *demo) status(ctx context.Context) error {
	p, err := d.d.Runtime.PodSandboxStatus(ctx, &runtimev1.PodSandboxStatusRequest{PodSandboxId: d.pod})
	if err != nil {
		return err
	}
	c, err := d.d.Runtime.ContainerStatus(ctx, &runtimev1.ContainerStatusRequest{ContainerId: d.container})
	if err != nil {
		return err
	}
	d.ip = p.Status.GetNetwork().GetIp()
	addresses := d.ip
	for _, more := range p.Status.GetNetwork().GetAdditionalIps() {
		addresses += ", " + more.Ip
	}
	show(fmt.Sprintf("pod       %s/%s  %s  %s", p.Status.Metadata.Namespace, p.Status.Metadata.Name, p.Status.State, addresses))
	show(fmt.Sprintf("container %s  %s  since %s", c.Status.Metadata.Name, c.Status.State,
		time.Unix(0, c.Status.StartedAt).Format("15:04:05.000")))
	if c.Status.State != runtimev1.ContainerState_CONTAINER_RUNNING || d.ip == "" {
		return errors.New("it does not run, or has no address")
	}
	return nil
}

// fetch asks until the server listens.
func (d *demo) fetch(ctx context.Context) error {
	page := "http://" + net.JoinHostPort(d.ip, "80") + "/"
	client := http.Client{Timeout: 5 * time.Second}
	var last error
	for range 100 {
		body, err := get(ctx, &client, page)
		if err == nil {
			show("GET " + page + "\n" + body)
			return nil
		}
		last = err
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return last
}

func get(ctx context.Context, client *http.Client, page string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, page, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return string(body), err
}

// log waits for the line about the page that was fetched.
func (d *demo) log(ctx context.Context) error {
	path := filepath.Join(d.config.LogDirectory, "server.log")
	for range 100 {
		if text, err := os.ReadFile(path); err == nil && len(text) > 0 {
			show(string(text))
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	return fmt.Errorf("%s is empty", path)
}

func (d *demo) exec(ctx context.Context) error {
	args := []string{"sh", "-c", "echo I am $(hostname), process 1 is $(tr '\\0' ' ' </proc/1/cmdline)"}
	resp, err := d.d.Runtime.ExecSync(ctx, &runtimev1.ExecSyncRequest{ContainerId: d.container, Cmd: args, Timeout: 10})
	if err != nil {
		return err
	}
	show("$ " + strings.Join(args, " ") + "\n" + string(resp.Stdout) + string(resp.Stderr))
	if resp.ExitCode != 0 {
		return fmt.Errorf("exit code %d", resp.ExitCode)
	}
	return nil
}

func (d *demo) processes(context.Context) error {
	all, err := rig.Processes()
	if err != nil {
		return err
	}
	for _, p := range all {
		if p.PID == 1 || p.PID == os.Getpid() || p.Exe == d.place.TestImages {
			continue // the demo itself and the registry
		}
		name, _, _ := strings.Cut(p.Cmdline, " --")
		show(fmt.Sprintf("%5d  %s", p.PID, strings.Replace(name, d.place.BinDir+"/", "", 1)))
	}
	return nil
}

func (d *demo) down(ctx context.Context) error {
	_, stopErr := d.d.Runtime.StopPodSandbox(ctx, &runtimev1.StopPodSandboxRequest{PodSandboxId: d.pod})
	_, removeErr := d.d.Runtime.RemovePodSandbox(ctx, &runtimev1.RemovePodSandboxRequest{PodSandboxId: d.pod})
	_, imageErr := d.d.Images.RemoveImage(ctx, &runtimev1.RemoveImageRequest{Image: &runtimev1.ImageSpec{Image: d.image}})
	return errors.Join(stopErr, removeErr, imageErr, d.d.Stop())
}
