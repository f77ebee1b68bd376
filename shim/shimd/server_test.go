package shimd

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
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

func (p *plain) newPod(context.Context, native.PodConfig) (*native.Pod, error) {
	return nil, errdefs.ErrNotImplemented
}

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

func TestStartFaultsLeaveNothing(t *testing.T) {
	b := newBench(t)
	for name, order := range map[string]func(*plain){
		"create": func(p *plain) { p.failCreate = errors.New("no stage today") },
		"start":  func(p *plain) { p.failStart = errors.New("no start today") },
	} {
		t.Run(name, func(t *testing.T) {
			*b.runtime = plain{}
			order(b.runtime)
			r := b.request(name, sh("true")...)
			before := openFiles(t)
			_, err := b.Start(context.Background(), r)
			if err == nil || !strings.Contains(err.Error(), "today") {
				t.Fatalf("%v", err)
			}
			if len(b.ids()) != 0 {
				t.Errorf("known: %v", b.ids())
			}
			names, _ := filepath.Glob(filepath.Join(r.Dir, "*"))
			if len(names) != 2 { // config.json, and the log, which is the caller's
				t.Errorf("left: %v", names)
			}
			if held := b.held(); len(held) != 0 {
				t.Errorf("held: %v", held)
			}
			settleFiles(t, before)
			*b.runtime = plain{}
			b.start(r)
			if e := b.exit(name); e.Code != 0 {
				t.Errorf("exit of the second try: %v", e)
			}
			_, _ = b.Delete(context.Background(), &api.DeleteRequest{Id: name})
		})
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

func settleFiles(t *testing.T, want int) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Second); openFiles(t) > want; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("%d open files, before there were %d", openFiles(t), want)
			return
		}
	}
}

func TestConcurrentStartsAreOne(t *testing.T) {
	b := newBench(t)
	r := b.request("c", sh("sleep 100")...)
	pids := make(chan int32, 8)
	for range cap(pids) {
		go func() {
			answer, err := b.Start(context.Background(), r)
			if err != nil {
				t.Error(err)
			}
			pids <- answer.GetPid()
		}()
	}
	first := <-pids
	for range cap(pids) - 1 {
		if pid := <-pids; pid != first {
			t.Errorf("%d and %d", first, pid)
		}
	}
	if n := b.runtime.created.Load(); n != 1 {
		t.Errorf("%d processes were made", n)
	}
}

func TestStartsAndDeletesLeakNothing(t *testing.T) {
	b := newBench(t)
	run := func(i int) {
		id := "c" + strconv.Itoa(i)
		b.start(b.request(id, sh("echo out; echo err >&2; exit 3")...))
		if e := b.exit(id); e.Code != 3 {
			t.Fatalf("%v", e)
		}
		if _, err := b.Delete(context.Background(), &api.DeleteRequest{Id: id}); err != nil {
			t.Fatal(err)
		}
	}
	run(0) // makes a group of slots, which stays
	before := openFiles(t)
	for i := range 30 {
		run(i + 1)
	}
	settleFiles(t, before)
}

func TestExitIsToldWhenOthersHoldTheOutput(t *testing.T) {
	b := newBench(t)
	r := b.request("c", sh("sleep 3 & echo last; exit 5")...)
	began := time.Now()
	b.start(r)
	e := b.exit("c")
	if d := time.Since(began); e.Code != 5 || d > 2*time.Second {
		t.Errorf("%v after %v", e, d)
	}
	if got := readLog(t, r.LogPath); got != "last\n" {
		t.Errorf("%q", got)
	}
}

func TestStalledLogStopsOnlyItsContainer(t *testing.T) {
	b := newBench(t)
	b.start(b.request("stalled", sh("while :; do echo x; done")...))
	c := b.containers["stalled"]
	<-c.log.turn // as a write that does not return
	r := b.request("other", sh("i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); done")...)
	b.start(r)
	if e := b.exit("other"); e.Code != 0 {
		t.Errorf("%v", e)
	}
	if got := readLog(t, r.LogPath); strings.Count(got, "\n") != 2000 {
		t.Errorf("%d lines", strings.Count(got, "\n"))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := b.ReopenLog(ctx, &api.ReopenLogRequest{Id: "stalled"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("reopen of a stalled log: %v", err)
	}
	began := time.Now()
	if _, err := b.Delete(context.Background(), &api.DeleteRequest{Id: "stalled"}); err != nil || time.Since(began) > 5*time.Second {
		t.Errorf("delete: %v after %v", err, time.Since(began))
	}
	c.log.turn <- struct{}{}
}

func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatalf("mount a small tmpfs (root is needed): %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 56<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "log")
	f, err := openLog(path)
	if err != nil {
		t.Fatal(err)
	}
	l := newLogFile(path, f)
	l.retryFor = 100 * time.Millisecond
	t.Cleanup(l.close)
	s := testSlot(t)
	print := func(text string) {
		t.Helper()
		for text != "" {
			n := min(len(text), chunkSize/2)
			stage(t, s, text[:n])
			if err := s.receive(n, time.Now().UnixNano()); err != nil {
				t.Fatal(err)
			}
			l.drain(s, "stdout", false)
			text = text[n:]
		}
	}
	print("before\n")
	began := time.Now()
	print(strings.Repeat(strings.Repeat("x", 1023)+"\n", 32))
	if d := time.Since(began); d < 100*time.Millisecond || d > 5*time.Second {
		t.Errorf("it took %v: retries, and then none", d)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	print("after\n")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	out, err := parseCRI(data)
	if err != nil {
		t.Fatal(err)
	}
	kept := len(out["stdout"]) - len("before\nafter\n")
	want := "criserver: " + strconv.Itoa(32<<10-kept) + " bytes of output could not be logged: no space left on device\n"
	if !strings.HasSuffix(string(out["stdout"]), "after\n") || string(out["stderr"]) != want {
		t.Errorf("%d bytes kept; stderr %q, want %q", kept, out["stderr"], want)
	}
}

func TestOpenLogRefuses(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	if err := os.WriteFile(target, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	link, fifo := filepath.Join(dir, "link"), filepath.Join(dir, "fifo")
	if err := errors.Join(os.Symlink(target, link), unix.Mkfifo(fifo, 0o600)); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "missing", "log")
	for _, path := range []string{link, fifo, dir, missing} {
		if f, err := openLog(path); err == nil {
			_ = f.Close()
			t.Errorf("%s was opened", path)
		}
	}
	if _, err := os.Stat(missing); !errors.Is(err, fs.ErrNotExist) {
		t.Error("something was made")
	}
}

func TestKeeperIsReplacedAndHoldsEverythingAgain(t *testing.T) {
	b := newBench(t)
	b.start(b.request("c", sh("sleep 100")...))
	first := b.link.pid.Load()
	if err := unix.Kill(int(first), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.start(b.request("d", sh("sleep 100")...)) // meets the gap
	keys := map[string]bool{}
	for key, names := range b.held() {
		keys[key] = strings.Contains(names, "pidfd") && strings.Contains(names, "stdout") && strings.Contains(names, "log")
	}
	if !keys["c/c"] || !keys["c/d"] || b.link.pid.Load() == first {
		t.Errorf("held: %v, keeper %d before %d", keys, b.link.pid.Load(), first)
	}
}

func TestExitsAnswersAnotherInstancesSequence(t *testing.T) {
	b := newBench(t)
	b.start(b.request("c", sh("exit 1")...))
	b.exit("c")
	for _, after := range []uint64{0, 1 << 63} {
		r, err := b.Exits(context.Background(), &api.ExitsRequest{After: after})
		if err != nil || len(r.Containers) != 1 {
			t.Errorf("after %d: %v, %v", after, r, err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	list, _ := b.List(ctx, nil)
	if _, err := b.Exits(ctx, &api.ExitsRequest{After: list.Sequence}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nothing is new: %v", err)
	}
}

func TestBadRequests(t *testing.T) {
	b := newBench(t)
	good := b.request("c", sh("true")...)
	for name, change := range map[string]func(*api.StartRequest){
		"no id":           func(r *api.StartRequest) { r.Id = "" },
		"a path as id":    func(r *api.StartRequest) { r.Id = "../c" },
		"relative dir":    func(r *api.StartRequest) { r.Dir = "c" },
		"tab in dir":      func(r *api.StartRequest) { r.Dir = "/a\tb" },
		"relative log":    func(r *api.StartRequest) { r.LogPath = "log" },
		"unknown format":  func(r *api.StartRequest) { r.LogFormat = 9 },
		"unknown pod ns":  func(r *api.StartRequest) { r.PodNamespaces = []string{"net"} },
		"missing pod":     func(r *api.StartRequest) { r.PodNamespaces = []string{"ipc"} },
		"missing target":  func(r *api.StartRequest) { r.PidTarget = "x" },
		"missing log dir": func(r *api.StartRequest) { r.LogPath = "/nonexistent/log" },
	} {
		r := &api.StartRequest{Id: good.Id, PodId: good.PodId, Dir: good.Dir, LogPath: good.LogPath, LogFormat: good.LogFormat}
		change(r)
		if _, err := b.Start(context.Background(), r); err == nil {
			t.Errorf("%s was started", name)
		}
	}
	if len(b.ids()) != 0 {
		t.Errorf("known: %v", b.ids())
	}
	if _, err := b.Update(context.Background(), &api.UpdateRequest{Id: "c", Resources: []byte("{")}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("update: %v", err)
	}
	if _, err := b.Signal(context.Background(), &api.SignalRequest{Id: "c", Signal: 99}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("signal: %v", err)
	}
}

func TestHostID(t *testing.T) {
	maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 10}, {ContainerID: 20, HostID: 5, Size: 1}}
	for id, want := range map[uint32]uint32{0: 100000, 9: 100009, 20: 5, 10: 10} {
		if got := hostID(id, maps); got != want {
			t.Errorf("%d became %d, want %d", id, got, want)
		}
	}
	if hostID(7, nil) != 7 {
		t.Error("without mappings an id is itself")
	}
}
