package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/internal/cgstat"
)

const megabyte = 1_000_000

// rounds is how often each throughput is measured; the best of each counts, as a disturbance only takes.
const rounds = 3

// written is a shell command that writes so many megabytes in lines of 100 bytes.
func written(mb int) string {
	return fmt.Sprintf("yes %s | head -c %d", strings.Repeat("x", 99), mb*megabyte)
}

func shell(command string) workload { return workload{command: []string{"sh", "-c", command}} }

// daemonCPU is what the daemon and its children have used, without what runs in pods, ms.
func (s *subject) daemonCPU() (float64, error) {
	sample, err := s.host.Read(s.cgroup+"/daemon", cgstat.Basic)
	if err != nil {
		return 0, err
	}
	return float64(sample.CPU.Usage) / 1e6, nil
}

// logs measures how fast a container's lines get into its log.
func (b *bench) logs(ctx context.Context) error {
	speed, cpu := map[*subject]float64{}, map[*subject]float64{}
	for range rounds {
		for _, s := range b.both() {
			took, used, err := s.logged(ctx, b.logMB)
			if err != nil {
				return s.failed(err)
			}
			speed[s] = max(speed[s], float64(b.logMB)/took.Seconds())
			if per := used / float64(b.logMB); cpu[s] == 0 || per < cpu[s] {
				cpu[s] = per
			}
		}
	}
	b.report.add(groupLog, "100-byte lines", "MB/s", ptr(speed[b.ours]), ptr(speed[b.peer]))
	b.report.add(groupLog, "CPU a MB", "ms", ptr(cpu[b.ours]), ptr(cpu[b.peer]))
	return nil
}

// logged runs a container that writes, until all its lines are in the log; the CPU is the runtime's.
func (s *subject) logged(ctx context.Context, mb int) (took time.Duration, cpu float64, err error) {
	before, err := s.daemonCPU()
	if err != nil {
		return 0, 0, err
	}
	start := time.Now()
	p, err := s.upWith(ctx, "", shell(written(mb)))
	if err != nil {
		return 0, 0, err
	}
	if err := s.waitExit(ctx, p); err != nil {
		return 0, 0, err
	}
	want := mb * megabyte / 100
	lines := 0
	for took = time.Since(start); took < time.Minute; took = time.Since(start) {
		if lines, err = countLines(p.logPath); err != nil || lines >= want {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	after, e := s.daemonCPU()
	if err = errors.Join(err, e, s.down(ctx, p, "")); err != nil {
		return 0, 0, err
	}
	if lines != want {
		return 0, 0, fmt.Errorf("log has %d lines of %d", lines, want)
	}
	return took, after - before, os.Remove(p.logPath)
}

func (s *subject) waitExit(ctx context.Context, p *pod) error {
	for {
		resp, err := s.runtime.ContainerStatus(ctx, &runtimev1.ContainerStatusRequest{ContainerId: p.container})
		if err != nil {
			return err
		}
		if resp.Status.State == runtimev1.ContainerState_CONTAINER_EXITED {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func countLines(path string) (int, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	buffer, n := make([]byte, 1<<20), 0
	for {
		got, err := f.Read(buffer)
		n += bytes.Count(buffer[:got], []byte{'\n'})
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// streams measures attach and port-forward, with crictl as the client of both.
func (b *bench) streams(ctx context.Context, crictl string) error {
	for _, one := range []struct {
		name string
		do   func(context.Context, *subject, string) (time.Duration, error)
	}{{"attach, from the container", b.attach}, {"port-forward, from the pod", b.forward}} {
		speed := map[*subject]float64{}
		for range rounds {
			for _, s := range b.both() {
				took, err := one.do(ctx, s, crictl)
				if err != nil {
					return s.failed(fmt.Errorf("%s: %w", one.name, err))
				}
				speed[s] = max(speed[s], float64(b.streamMB)/took.Seconds())
			}
		}
		b.report.add(groupStream, one.name, "MB/s", ptr(speed[b.ours]), ptr(speed[b.peer]))
	}
	return nil
}

func (s *subject) crictl(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, append([]string{"--config", "/dev/null", "--runtime-endpoint", "unix://" + s.socket, "--image-endpoint", "unix://" + s.socket}, args...)...)
	cmd.Env = []string{"HOME=/nonexistent", "PATH=/usr/bin:/bin"}
	return cmd
}

// counter counts what is written, and says when all has come.
type counter struct {
	got, want int
	all       chan struct{}
}

func (c *counter) Write(p []byte) (int, error) {
	c.got += len(p)
	if c.got-len(p) < c.want && c.got >= c.want {
		close(c.all)
	}
	return len(p), nil
}

// attach has a container write after a line that it waits for. The time is from that line until all has come; the container
// lives on, since the peer loses the end of what a container writes that ends at once.
func (b *bench) attach(ctx context.Context, s *subject, crictl string) (took time.Duration, err error) {
	p, err := s.upWith(ctx, "", workload{command: shell("read line; " + written(b.streamMB) + "; sleep 60").command, stdin: true})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.down(ctx, p, ""), os.RemoveAll(filepath.Dir(p.logPath))) }()
	cmd := s.crictl(ctx, crictl, "attach", "--stdin", p.container)
	out := &counter{want: b.streamMB * megabyte, all: make(chan struct{})}
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = out, &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	time.Sleep(time.Second) // until it is attached
	start := time.Now()
	if _, err := io.WriteString(stdin, "go\n"); err != nil {
		return 0, err
	}
	select {
	case <-out.all:
		took = time.Since(start)
		_ = cmd.Process.Kill()
		<-ended
		return took, nil
	case err = <-ended:
		err = fmt.Errorf("crictl attach ended: %w: %s", err, stderr.String())
	case <-time.After(time.Minute):
		_ = cmd.Process.Kill()
		<-ended
		err = errors.New("a minute was not enough")
	}
	return 0, fmt.Errorf("%d bytes came of %d: %w", out.got, out.want, err)
}

// forward fetches a file from a web server in a pod.
func (b *bench) forward(ctx context.Context, s *subject, crictl string) (took time.Duration, err error) {
	p, err := s.upWith(ctx, "", shell(fmt.Sprintf("head -c %d /dev/zero > /dev/shm/file && exec httpd -f -p 8080 -h /dev/shm", b.streamMB*megabyte)))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.down(ctx, p, "")) }()
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		took, err = b.forwardOnce(ctx, s, crictl, p.id)
		if err == nil || time.Now().After(deadline) {
			return took, err
		}
	}
}

// forwardOnce fails while the server in the pod does not listen yet: crictl ends then.
func (b *bench) forwardOnce(ctx context.Context, s *subject, crictl, pod string) (time.Duration, error) {
	port, err := freePort()
	if err != nil {
		return 0, err
	}
	cmd := s.crictl(ctx, crictl, "port-forward", pod, fmt.Sprintf("%d:8080", port))
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}
	for deadline := time.Now().Add(3 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		start := time.Now()
		n, err := fetch(client, fmt.Sprintf("http://127.0.0.1:%d/file", port))
		if err == nil && n == int64(b.streamMB*megabyte) {
			return time.Since(start), nil
		}
		if time.Now().After(deadline) {
			return 0, fmt.Errorf("%d bytes: %w; crictl port-forward says %s", n, err, said.String())
		}
	}
}

func fetch(client *http.Client, url string) (int64, error) {
	resp, err := client.Get(url)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	return io.Copy(io.Discard, resp.Body)
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}
