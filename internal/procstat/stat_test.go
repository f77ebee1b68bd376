package procstat

import (
	"os"
	"os/exec"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestStat(t *testing.T) {
	s := Parse([]byte("7 (a) b (c) R 1 2 3\n"))
	for number, want := range map[int]string{1: "", State: "R", Parent: "1", 6: "3", Threads: ""} {
		if got := s.Field(number); got != want {
			t.Errorf("field %d is %q, want %q", number, got, want)
		}
	}
	if Parse(nil).Field(State) != "" {
		t.Error("an empty file has a state")
	}
	own, err := Read(os.Getpid())
	if err != nil || own.Field(Parent) != strconv.Itoa(os.Getppid()) || own.Field(Start) == "" || own.Field(ExitCode) == "" {
		t.Errorf("%v, %v", own, err)
	}
}

func TestChildThatHasEnded(t *testing.T) {
	cmd := exec.Command("true")
	pidfd := -1
	cmd.SysProcAttr = &syscall.SysProcAttr{PidFD: &pidfd}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, -1); err != nil { // ended, not reaped
		t.Fatal(err)
	}
	if pid, err := Of(pidfd); err != nil || pid != cmd.Process.Pid {
		t.Errorf("the pidfd is of process %d, %v; want %d", pid, err, cmd.Process.Pid)
	}
	if all := Zombies(os.Getpid()); !slices.Contains(all, cmd.Process.Pid) {
		t.Errorf("zombies are %v, without %d", all, cmd.Process.Pid)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if pid, err := Of(pidfd); err == nil {
		t.Errorf("the pidfd of what was reaped is of process %d", pid)
	}
	if all := Zombies(os.Getpid()); slices.Contains(all, cmd.Process.Pid) {
		t.Errorf("zombies are %v", all)
	}
}
