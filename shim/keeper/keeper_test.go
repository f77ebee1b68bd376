package keeper

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

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
