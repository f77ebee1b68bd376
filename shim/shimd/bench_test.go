package shimd

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/api"
	"github.com/criserver/criserver/shim/keeper"
	"github.com/criserver/criserver/shim/native"
)

func init() {
	parts["keeper"] = func() int {
		err := keeper.Run(keeper.Config{State: os.Args[2], Shim: "/bin/false", Keeper: "/bin/false", Adopt: true})
		if err != nil {
			return 1
		}
		return 0
	}
}

// plain is a runtime that forks plain processes of the host, and fails on order.
type plain struct {
	failCreate, failStart error
	created               atomic.Int32
}

func (p *plain) create(_ context.Context, c native.Config) (*process, error) {
	if p.failCreate != nil {
		return nil, p.failCreate
	}
	p.created.Add(1)
	// The shell waits for the byte that start writes.
	gate, open, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	run, err := fork(append([]string{"/bin/sh", "-c", `read go || exit 99; exec "$@"`, "gate"}, c.Spec.Process.Args...), gate, c.Stdout, c.Stderr)
	_ = gate.Close()
	if err != nil {
		return nil, err
	}
	run.abandon = func() {
		_ = open.Close()
		_ = unix.PidfdSendSignal(int(run.pidfd.Fd()), unix.SIGKILL, nil, 0)
		hasEnded(int(run.pidfd.Fd()), time.Second)
		reap(int(run.pidfd.Fd()))
		_ = run.pidfd.Close()
	}
	run.start = func(context.Context) error {
		if p.failStart != nil {
			run.abandon()
			return p.failStart
		}
		_, err := open.WriteString("go\n")
		return errors.Join(err, open.Close())
	}
	return run, nil
}

func fork(args []string, stdin, stdout, stderr *os.File) (*process, error) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	pid := cmd.Process.Pid
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, err
	}
	_ = cmd.Process.Release()
	return &process{pid: pid, pidfd: os.NewFile(uintptr(fd), "pidfd")}, nil
}

func (p *plain) exec(_ context.Context, c native.ExecConfig) (*process, error) {
	return fork(c.Process.Args, nil, c.Stdout, c.Stderr)
}

func (p *plain) restore(context.Context, native.RestoreConfig) (*process, error) {
	return nil, errdefs.ErrNotImplemented
}
func (p *plain) mapsOwners(context.Context, string) error { return nil }

func (p *plain) newPod(context.Context, native.PodConfig) (*native.Pod, error) {
	return nil, errdefs.ErrNotImplemented
}

func (p *plain) poststop(context.Context, native.HookConfig) error { return nil }

func (p *plain) Attach(context.Context, native.Attachment) error { return errdefs.ErrNotImplemented }

type bench struct {
	*Server
	t       *testing.T
	runtime *plain
	spawned chan *exec.Cmd
}

// newBench is a server with a plain runtime and a real keeper.
func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, runtime: &plain{}, spawned: make(chan *exec.Cmd, 10)}
	state := t.TempDir()
	note := slog.New(slog.NewTextHandler(testWriter{t}, nil))
	sock, pid, err := b.spawn(state)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	b.Server, err = newServer(ctx, Config{State: state, Log: note}, b.runtime, sock, pid)
	if err != nil {
		t.Fatal(err)
	}
	b.link.spawn = func() (*os.File, int, error) { return b.spawn(state) }
	t.Cleanup(func() {
		for _, id := range b.ids() {
			if _, err := b.Delete(context.Background(), &api.DeleteRequest{Id: id}); err != nil {
				t.Error(err)
			}
		}
		cancel()
		<-b.link.ended
		b.watch.close()
		close(b.spawned)
		for cmd := range b.spawned {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return b
}

// testWriter passes the server's log on to the test's.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	_, _ = os.Stderr.Write(b) // t.Log may not be called when the test is over
	return len(b), nil
}

func (b *bench) spawn(state string) (*os.File, int, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, 0, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, 0, err
	}
	theirs := os.NewFile(uintptr(pair[1]), "keeper")
	defer theirs.Close()
	cmd := exec.Command(self, "keeper", state)
	cmd.ExtraFiles = []*os.File{theirs}
	if err := cmd.Start(); err != nil {
		return nil, 0, err
	}
	b.spawned <- cmd
	sock, err := linkFile(pair[0])
	return sock, cmd.Process.Pid, err
}

func (b *bench) ids() []string {
	r, _ := b.List(context.Background(), nil)
	var ids []string
	for _, c := range r.Containers {
		ids = append(ids, c.Id)
	}
	return ids
}

// held is what the keeper holds, log slots aside: keys and the names of their descriptors.
func (b *bench) held() map[string]string {
	b.t.Helper()
	entries, err := b.link.list()
	if errdefs.IsUnavailable(err) { // it was being replaced
		entries, err = b.link.list()
	}
	if err != nil {
		b.t.Fatal(err)
	}
	held := map[string]string{}
	for _, e := range entries {
		if !strings.HasPrefix(e.Key, slotPrefix) {
			held[e.Key] = strings.Join(e.Names, ",")
		}
		e.Close()
	}
	return held
}

// request prepares a container.
func (b *bench) request(id string, args ...string) *api.StartRequest {
	b.t.Helper()
	dir := filepath.Join(b.config.State, "pods", "pod", id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		b.t.Fatal(err)
	}
	spec := specs.Spec{Process: &specs.Process{Args: args}, Linux: &specs.Linux{}}
	data, err := json.Marshal(spec)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600); err != nil {
		b.t.Fatal(err)
	}
	return &api.StartRequest{Id: id, PodId: "pod", Dir: dir, LogPath: filepath.Join(dir, "log"), LogFormat: api.LogFormat_LOG_FORMAT_CRI}
}

func (b *bench) start(r *api.StartRequest) *api.StartResponse {
	b.t.Helper()
	answer, err := b.Start(context.Background(), r)
	if err != nil {
		b.t.Fatal(err)
	}
	return answer
}

func (b *bench) exit(id string) *api.Exit {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for {
		list, _ := b.List(ctx, nil)
		for _, c := range list.Containers {
			if c.Id == id && c.Exit != nil {
				return c.Exit
			}
		}
		if _, err := b.Exits(ctx, &api.ExitsRequest{After: list.Sequence}); err != nil {
			b.t.Fatal(err)
		}
	}
}

func sh(script string) []string { return []string{"/bin/sh", "-c", script} }

func readLog(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	out, err := parseCRI(data)
	if err != nil {
		t.Fatal(err)
	}
	return string(out["stdout"])
}
