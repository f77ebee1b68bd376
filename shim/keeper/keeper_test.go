package keeper

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary plays three parts: the tests, the keeper ("keeper"), and a shim ("serve", as the keeper calls it) that
// passes the test's messages on to the keeper.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "keeper":
			self, _ := os.Executable()
			err := Run(Config{State: os.Args[2], Shim: self, Keeper: self, Adopt: len(os.Args) > 3, Env: os.Environ()})
			if err != nil {
				say(err.Error())
				os.Exit(3)
			}
			os.Exit(0)
		case "serve":
			os.Exit(relay(os.Args[3]))
		}
	}
	os.Exit(m.Run())
}

// relay is the shim of the tests: "exit N", "spawn COMMAND" and "linger" are for itself, everything else is the keeper's.
func relay(state string) int {
	unix.CloseOnExec(LinkFD)
	go endWithParent(unix.Getppid())
	path := filepath.Join(state, "relay")
	_ = os.Remove(path)
	l, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil || unix.Bind(l, &unix.SockaddrUnix{Name: path}) != nil || unix.Listen(l, 4) != nil {
		return 9
	}
	if _, err := os.Stat(filepath.Join(state, "served")); err == nil {
		return ExitServed
	}
	for {
		c, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
		if err != nil {
			return 9
		}
		relayOne(c)
		_ = unix.Close(c)
	}
}

// endWithParent keeps a shim of the tests from outliving its keeper.
func endWithParent(parent int) {
	for unix.Getppid() == parent {
		time.Sleep(10 * time.Millisecond)
	}
	os.Exit(9)
}

func relayOne(c int) {
	buffer, oob := make([]byte, MaxMessage), make([]byte, unix.CmsgSpace(4*MaxDescriptors))
	for {
		message, fds, err := Receive(c, buffer, oob)
		if err != nil {
			return
		}
		verb, rest, _ := strings.Cut(strings.TrimSuffix(message, "\n"), " ")
		switch verb {
		case "exit":
			n, _ := strconv.Atoi(rest)
			os.Exit(n)
		case "linger":
			_ = unix.Close(LinkFD)
			time.Sleep(time.Hour)
		case "spawn":
			cmd := exec.Command("/bin/sh", "-c", rest)
			_ = cmd.Start()
			_ = Send(c, []byte("pid "+strconv.Itoa(cmd.Process.Pid)), nil)
			continue
		}
		_ = Send(LinkFD, []byte(message), fds)
		(&Entry{FDs: fds}).Close()
		for {
			answer, fds, err := Receive(LinkFD, buffer, oob)
			if err != nil {
				return
			}
			_ = Send(c, []byte(answer), fds)
			(&Entry{FDs: fds}).Close()
			if !strings.HasPrefix(answer, VerbEntry) {
				break
			}
		}
	}
}

type rig struct {
	t     *testing.T
	state string
	cmd   *exec.Cmd
}

func newRig(t *testing.T) *rig {
	t.Helper()
	state, err := os.MkdirTemp("", "keeper")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(state) })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, state: state, cmd: exec.Command(self, "keeper", state)}
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		pid := r.shimPID()
		_ = r.cmd.Process.Kill()
		_, _ = r.cmd.Process.Wait()
		if pid > 0 {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	})
	return r
}

// dial connects to the shim that runs now, waiting for one.
func (r *rig) dial() int {
	r.t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		c, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			r.t.Fatal(err)
		}
		err = unix.Connect(c, &unix.SockaddrUnix{Name: filepath.Join(r.state, "relay")})
		if err == nil {
			// A shim that is being killed accepts still.
			if peer, err := unix.GetsockoptUcred(c, unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil && int(peer.Pid) == r.shimPID() {
				r.t.Cleanup(func() { _ = unix.Close(c) })
				return c
			}
		}
		_ = unix.Close(c)
		if time.Now().After(deadline) {
			r.t.Fatalf("no shim: %v", err)
		}
		time.Sleep(time.Millisecond)
	}
}

// shimPID is the shim that runs now, or 0.
func (r *rig) shimPID() int {
	lists, _ := filepath.Glob("/proc/" + strconv.Itoa(r.cmd.Process.Pid) + "/task/*/children")
	for _, list := range lists {
		b, _ := os.ReadFile(list)
		for _, f := range strings.Fields(string(b)) {
			n, _ := strconv.Atoi(f)
			line, _ := os.ReadFile("/proc/" + f + "/cmdline")
			if strings.Contains(string(line), "serve") {
				return n
			}
		}
	}
	return 0
}

// killShim kills the shim that runs now, and waits until it does not answer.
func (r *rig) killShim() {
	r.t.Helper()
	pid := r.shimPID()
	if pid == 0 {
		r.t.Fatal("no shim runs")
	}
	_ = unix.Kill(pid, unix.SIGKILL)
	for r.shimPID() == pid {
		time.Sleep(time.Millisecond)
	}
}

func (r *rig) ask(c int, message string, fds ...int) []Entry {
	r.t.Helper()
	if err := Send(c, []byte(message+"\n"), fds); err != nil {
		r.t.Fatal(err)
	}
	buffer, oob := make([]byte, MaxMessage), make([]byte, unix.CmsgSpace(4*MaxDescriptors))
	var entries []Entry
	for {
		answer, got, err := Receive(c, buffer, oob)
		if err != nil {
			r.t.Fatalf("%q: %v", message, err)
		}
		verb, fields := Split(answer)
		if verb != VerbEntry {
			if verb == VerbError {
				r.t.Logf("%q: %s", message, answer)
				return []Entry{{Key: VerbError}}
			}
			return entries
		}
		e, err := ParseEntry(fields)
		if err != nil {
			r.t.Fatal(err)
		}
		e.FDs = got
		r.t.Cleanup(e.Close)
		entries = append(entries, e)
	}
}

func (r *rig) spawn(c int, command string) (pid, pidfd int) {
	r.t.Helper()
	_ = Send(c, []byte("spawn "+command+"\n"), nil)
	buffer, oob := make([]byte, MaxMessage), make([]byte, 64)
	answer, _, err := Receive(c, buffer, oob)
	if err != nil {
		r.t.Fatal(err)
	}
	pid, err = strconv.Atoi(strings.TrimPrefix(answer, "pid "))
	if err != nil {
		r.t.Fatal(answer)
	}
	pidfd, err = unix.PidfdOpen(pid, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
		_ = unix.Close(pidfd)
	})
	return pid, pidfd
}

func (r *rig) put(c int, e Entry) {
	r.t.Helper()
	m, err := e.Message(VerbPut)
	if err != nil {
		r.t.Fatal(err)
	}
	if got := r.ask(c, strings.TrimSuffix(string(m), "\n"), e.FDs...); len(got) != 0 {
		r.t.Fatalf("put %s: %v", e.Key, got)
	}
}

func waitExit(t *testing.T, dir string) map[string]any {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		b, err := os.ReadFile(filepath.Join(dir, ExitFile))
		if err == nil {
			var m map[string]any
			if err := json.Unmarshal(b, &m); err != nil {
				t.Fatalf("%s: %v", b, err)
			}
			return m
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestHoldsDescriptorsAcrossShims(t *testing.T) {
	r := newRig(t)
	c := r.dial()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[1])
	r.put(c, Entry{Key: "slots/1", Names: []string{"read"}, Extra: "as it was", FDs: p[:1]})
	_ = unix.Close(p[0])
	if _, err := unix.Write(p[1], []byte("kept")); err != nil {
		t.Fatal(err)
	}
	r.killShim()
	time.Sleep(20 * time.Millisecond)
	got := r.ask(r.dial(), VerbList)
	if len(got) != 1 || got[0].Key != "slots/1" || got[0].Extra != "as it was" || !slices.Equal(got[0].Names, []string{"read"}) {
		t.Fatalf("list: %+v", got)
	}
	b := make([]byte, 16)
	n, err := unix.Read(got[0].FD("read"), b)
	if err != nil || string(b[:n]) != "kept" {
		t.Fatalf("read %q, %v", b[:n], err)
	}
}

func TestPutReplacesAndDropCloses(t *testing.T) {
	r := newRig(t)
	c := r.dial()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	r.put(c, Entry{Key: "slots/1", Names: []string{"write"}, FDs: p[1:]})
	_ = unix.Close(p[1])
	if _, err := unix.Read(p[0], make([]byte, 1)); err != unix.EAGAIN {
		t.Fatalf("the write end is not held: %v", err)
	}
	r.put(c, Entry{Key: "slots/1"})
	if n, err := unix.Read(p[0], make([]byte, 1)); n != 0 || err != nil {
		t.Fatalf("the replaced write end is held: %d, %v", n, err)
	}
	if got := r.ask(c, VerbList); len(got) != 1 || len(got[0].FDs) != 0 {
		t.Fatalf("list: %+v", got)
	}
	r.ask(c, VerbDrop+"\tslots/1")
	if got := r.ask(c, VerbList); len(got) != 0 {
		t.Fatalf("list after drop: %+v", got)
	}
}

func TestRefusesWhatItDoesNotUnderstand(t *testing.T) {
	r := newRig(t)
	c := r.dial()
	for _, m := range []string{"hold\tx", "put\tc/1", "put\tc/1\tx\t\t\t", "put\tc/1\t0\t\tpidfd\t", "put\t\t0\t\t\t", "drop"} {
		if got := r.ask(c, m); len(got) != 1 || got[0].Key != VerbError {
			t.Errorf("%q: %+v", m, got)
		}
	}
	if got := r.ask(c, VerbList); len(got) != 0 {
		t.Fatalf("list: %+v", got)
	}
}

func TestRecordsTheExitOfOrphans(t *testing.T) {
	r := newRig(t)
	for _, tt := range []struct {
		command string
		code    float64
	}{{"sleep 0.2; exit 7", 7}, {"sleep 0.2; kill -9 $$", 137}} {
		c := r.dial()
		dir := t.TempDir()
		pid, pidfd := r.spawn(c, tt.command)
		r.put(c, Entry{Key: "c/" + strconv.Itoa(pid), PID: pid, Dir: dir, Names: []string{"pidfd"}, FDs: []int{pidfd}})
		r.killShim()
		if m := waitExit(t, dir); m["code"] != tt.code || m["oomKilled"] != false || m["reason"] != "" {
			t.Errorf("%s: %v", tt.command, m)
		}
	}
}

func TestExitBeforeTheShimDied(t *testing.T) {
	r := newRig(t)
	c := r.dial()
	dir := t.TempDir()
	pid, pidfd := r.spawn(c, "exit 5") // the relay never reaps it
	r.put(c, Entry{Key: "c/1", PID: pid, Dir: dir, Names: []string{"pidfd"}, FDs: []int{pidfd}})
	time.Sleep(50 * time.Millisecond)
	if _, err := os.Stat(filepath.Join(dir, ExitFile)); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("recorded while the shim lives: %v", err)
	}
	r.killShim()
	if m := waitExit(t, dir); m["code"] != 5.0 {
		t.Fatal(m)
	}
}

func TestExitRecordIsNotReplaced(t *testing.T) {
	dir := t.TempDir()
	if err := WriteExit(dir, FormatExit(1, 2, true, "ExitUnknown")); err != nil {
		t.Fatal(err)
	}
	if err := WriteExit(dir, FormatExit(9, 9, false, "")); err != unix.EEXIST {
		t.Fatal(err)
	}
	b, _ := os.ReadFile(filepath.Join(dir, ExitFile))
	if want := `{"code":1,"exitedAt":2,"oomKilled":true,"reason":"ExitUnknown"}` + "\n"; string(b) != want {
		t.Fatalf("%q", b)
	}
	if names, _ := os.ReadDir(dir); len(names) != 1 {
		t.Fatalf("left behind: %v", names)
	}
}

func TestPidOfAnotherProcessIsNotRecorded(t *testing.T) {
	r := newRig(t)
	c := r.dial()
	dir := t.TempDir()
	_, other := r.spawn(c, "sleep 100")
	pid, _ := r.spawn(c, "sleep 0.1")
	// The entry's descriptor names another process than its number, as after a reuse of the number.
	r.put(c, Entry{Key: "c/1", PID: pid, Dir: dir, Names: []string{"pidfd"}, FDs: []int{other}})
	r.killShim()
	time.Sleep(300 * time.Millisecond)
	if _, err := os.Stat(filepath.Join(dir, ExitFile)); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("recorded: %v", err)
	}
}

func TestEndsWithTheShimThatAskedToStop(t *testing.T) {
	r := newRig(t)
	_ = Send(r.dial(), []byte("exit 0\n"), nil)
	done := make(chan error, 1)
	go func() { done <- r.cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the keeper runs on")
	}
}

func TestStaysWhileItHoldsAContainer(t *testing.T) {
	r := newRig(t)
	c := r.dial()
	r.put(c, Entry{Key: "c/1"})
	before := r.shimPID()
	_ = Send(c, []byte("exit 0\n"), nil)
	for r.shimPID() == before {
		time.Sleep(time.Millisecond)
	}
	if got := r.ask(r.dial(), VerbList); len(got) != 1 {
		t.Fatalf("list: %+v", got)
	}
	if r.shimPID() == before {
		t.Fatal("no new shim")
	}
}

func TestShimThatClosesItsLinkIsReplaced(t *testing.T) {
	r := newRig(t)
	c := r.dial()
	before := r.shimPID()
	_ = Send(c, []byte("linger\n"), nil)
	deadline := time.Now().Add(10 * time.Second)
	for r.shimPID() == before || r.shimPID() == 0 {
		if time.Now().After(deadline) {
			t.Fatal("the shim was not replaced")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestSecondKeeperGoes(t *testing.T) {
	r := newRig(t)
	r.dial()
	self, _ := os.Executable()
	out, err := exec.Command(self, "keeper", r.state).CombinedOutput()
	if err == nil || !strings.Contains(string(out), ErrLocked.Error()) {
		t.Fatalf("%v: %s", err, out)
	}
}

func TestRestartTakesMilliseconds(t *testing.T) {
	r := newRig(t)
	r.dial()
	time.Sleep(50 * time.Millisecond)
	var worst time.Duration
	for range 3 {
		began := time.Now()
		before := r.shimPID()
		if before == 0 {
			t.Fatal("no shim runs")
		}
		_ = unix.Kill(before, unix.SIGKILL)
		for r.shimPID() == before || r.shimPID() == 0 {
			time.Sleep(200 * time.Microsecond)
		}
		worst = max(worst, time.Since(began))
		time.Sleep(50 * time.Millisecond)
	}
	t.Logf("slowest of 3 restarts: %v", worst)
	if worst > time.Second {
		t.Fatalf("a restart took %v", worst)
	}
}

func TestAdopt(t *testing.T) {
	state := t.TempDir()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	self, _ := os.Executable()
	cmd := exec.Command(self, "keeper", state, "adopt")
	cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(pair[1]), "link")}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.ExtraFiles[0].Close()
	r := &rig{t: t, state: state, cmd: cmd}
	t.Cleanup(func() {
		pid := r.shimPID()
		_ = cmd.Process.Kill()
		_, _ = cmd.Process.Wait()
		if pid > 0 {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	})
	r.put(pair[0], Entry{Key: "p/1", Extra: "x"})
	_ = unix.Close(pair[0])
	if got := r.ask(r.dial(), VerbList); len(got) != 1 || got[0].Key != "p/1" {
		t.Fatalf("the new shim's list: %+v", got)
	}
}

func TestBackoff(t *testing.T) {
	var b backoff
	var before time.Duration
	for i := range 40 {
		pause := b.next(0)
		if i < freeDeaths && pause > time.Millisecond || pause < before || pause > lastDelay {
			t.Fatalf("death %d: %v after %v", i, pause, before)
		}
		before = pause
	}
	if before != lastDelay || b.next(settled) != 0 || b.next(0) > time.Millisecond {
		t.Fatalf("it ends at %v", before)
	}
}

func FuzzParseEntry(f *testing.F) {
	f.Add("put\tc/1\t12\t/run/x\tpidfd,stdout\t\n")
	f.Add("entry\tp/1\t0\t\t\textra\n")
	f.Fuzz(func(t *testing.T, message string) {
		verb, fields := Split(message)
		e, err := ParseEntry(fields)
		if err != nil {
			return
		}
		m, err := e.Message(verb)
		if err != nil {
			return
		}
		verb2, fields2 := Split(string(m))
		e2, err := ParseEntry(fields2)
		if err != nil || verb2 != verb || e2.Key != e.Key || e2.PID != e.PID || e2.Dir != e.Dir || e2.Extra != e.Extra || !slices.Equal(e2.Names, e.Names) {
			t.Fatalf("%q became %q", message, m)
		}
	})
}
