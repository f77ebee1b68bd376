package stage

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native/plan"
)

// run runs a plan to its end and gives the messages, the error that ended them, and the exit code.
func run(t *testing.T, p *plan.Plan, extra ...*os.File) ([]uint32, int, error) {
	t.Helper()
	s, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	r, err := s.Start(p, Options{Stdio: [3]*os.File{null, null, null}, Extra: extra, CgroupFD: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer r.Pidfd.Close()
	_ = r.Go() // not every plan waits
	var messages []uint32
	for {
		m, err := r.Message()
		if err != nil {
			var info unix.Siginfo
			if err := unix.Waitid(unix.P_PIDFD, int(r.Pidfd.Fd()), &info, unix.WEXITED, nil); err != nil {
				t.Fatal(err)
			}
			return messages, int(Status(&info)), err
		}
		messages = append(messages, m)
	}
}

func TestRegistersAndJumps(t *testing.T) {
	p := plan.New(8)
	dir := t.TempDir()
	r, value := p.Reg(), p.Reg()
	missing, made, child := p.Label(), p.Label(), p.Label()
	p.Openat2(r, plan.Cwd, dir+"/missing", unix.O_PATH, 0, plan.Else(missing, unix.ENOENT), plan.Then(made))
	p.Exit(9) // never reached
	p.Mark(missing)
	p.Mkdirat(plan.Cwd, dir+"/missing", 0o750)
	p.Openat2(r, plan.Cwd, dir+"/missing", unix.O_PATH, 0)
	p.Mark(made)
	p.Mkdirat(r, "below", 0o700)
	p.Await(Start)
	p.Clone(value, 0, plan.IfZero(child))
	p.Wait(value)
	p.WriteReg(Report, value)
	p.Exit(3)
	p.Mark(child)
	p.Mkdirat(r, "child", 0o700)
	p.Exit(0)
	messages, code, err := run(t, p)
	if !errors.Is(err, io.EOF) || code != 3 || len(messages) != 1 || messages[0] == 0 {
		t.Fatalf("messages %v, %v, exit code %d", messages, err, code)
	}
	for _, d := range []string{"missing/below", "missing/child"} {
		if _, err := os.Stat(filepath.Join(dir, d)); err != nil {
			t.Error(err)
		}
	}
}

func TestFailureNamesTheCall(t *testing.T) {
	p := plan.New(8)
	p.At("mounts[7] /x")
	p.Chdir("/")
	p.Chdir("/does/not/exist", plan.Accept(unix.EACCES, unix.ENOTDIR))
	_, code, err := run(t, p)
	var e *plan.Error
	if !errors.As(err, &e) || e.Index != 1 || e.Errno != unix.ENOENT || e.Place != "mounts[7] /x" || code != 1 {
		t.Fatalf("error %#v, exit code %d", err, code)
	}
	const want = `mounts[7] /x: call 1, chdir("/does/not/exist")  or EACCES, ENOTDIR: no such file or directory`
	if err.Error() != want {
		t.Errorf("the error reads %q, want %q", err, want)
	}
}

func TestExecvePassesArguments(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := plan.New(8)
	p.Simple(unix.SYS_DUP3, "dup3", Extra, 1, 0)
	p.CloseRange(3, unix.CLOSE_RANGE_CLOEXEC)
	p.Execve("/nowhere/sh", []string{"sh"}, nil, plan.Accept(unix.ENOENT))
	p.Execve("/bin/sh", []string{"sh", "-c", `echo "$A-$1-$0"`, "zero", "o n e"}, []string{"A=b"})
	_, code, end := run(t, p, w)
	w.Close()
	out, _ := io.ReadAll(r)
	if !errors.Is(end, io.EOF) || code != 0 || string(out) != "b-o n e-zero\n" {
		t.Fatalf("%v, exit code %d, output %q", end, code, out)
	}
}

// Extra descriptors may have any number, that of the stage's own program among them.
func TestManyDescriptors(t *testing.T) {
	p := plan.New(8)
	p.Exit(7)
	var extra []*os.File
	for range 60 {
		f, err := os.Open("/dev/null")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		extra = append(extra, f)
	}
	if _, code, err := run(t, p, extra...); code != 7 {
		t.Fatalf("exit code %d, %v", code, err)
	}
}

func TestStageIsSealed(t *testing.T) {
	s, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if f, err := os.OpenFile(s.path, os.O_RDWR, 0); err == nil {
		if _, err := f.Write([]byte("x")); err == nil {
			t.Fatal("the stage can be overwritten")
		}
		f.Close()
	}
}

// TestStageIsBuiltFromSource compiles stage.c again: the programs in the tree are what the source says.
func TestStageIsBuiltFromSource(t *testing.T) {
	version, err := exec.Command("x86_64-linux-gnu-gcc", "-dumpfullversion").Output()
	if err != nil || string(bytes.TrimSpace(version)) != "12.2.0" {
		t.Skipf("the programs were compiled by gcc 12.2.0, here is %q (%v)", version, err)
	}
	dir := t.TempDir()
	if out, err := exec.Command("src/build.sh", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, arch := range []string{"amd64", "arm64"} {
		fresh, err := os.ReadFile(filepath.Join(dir, "stage_"+arch))
		if errors.Is(err, os.ErrNotExist) && arch != runtime.GOARCH {
			t.Logf("no compiler for %s here", arch)
			continue
		}
		committed, _ := os.ReadFile("stage_" + arch)
		if err != nil || !bytes.Equal(fresh, committed) {
			t.Errorf("stage_%s is not what src/build.sh makes of stage.c (%v)", arch, err)
		}
	}
}
