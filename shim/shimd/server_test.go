package shimd

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/api"
)

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
			stageChunk(t, s, text[:n])
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
