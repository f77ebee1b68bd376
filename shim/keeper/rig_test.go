package keeper

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
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
