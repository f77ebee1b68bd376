package seccomp

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The kernel tests run this test binary again: the child loads the profile of this variable and makes the system calls
// of the next, each "number,argument,argument", and prints the errno of each.
const (
	profileVariable = "CRISERVER_TEST_SECCOMP_PROFILE"
	callsVariable   = "CRISERVER_TEST_SECCOMP_CALLS"
)

func TestMain(m *testing.M) {
	if profile := os.Getenv(profileVariable); profile != "" {
		if err := child(profile, os.Getenv(callsVariable)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func child(profile, calls string) error {
	s := &specs.LinuxSeccomp{}
	if err := json.Unmarshal([]byte(profile), s); err != nil {
		return err
	}
	p, err := Compile(s)
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	program := unix.SockFprog{Len: uint16(len(p.Filter)), Filter: &p.Filter[0]}
	// The other threads of the Go runtime stay outside the filter, which is for this one.
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(p.Flags), uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return fmt.Errorf("the kernel refuses the filter: %w", errno)
	}
	for call := range strings.FieldsSeq(calls) {
		var n [3]uintptr
		for i, text := range strings.Split(call, ",") {
			if _, err := fmt.Sscan(text, &n[i]); err != nil {
				return err
			}
		}
		_, _, errno := unix.RawSyscall(n[0], n[1], n[2], 0)
		fmt.Println(int(errno))
	}
	return nil
}

func run(t *testing.T, s *specs.LinuxSeccomp, calls ...string) ([]string, error) {
	t.Helper()
	profile, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), profileVariable+"="+string(profile), callsVariable+"="+strings.Join(calls, " "))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	return strings.Fields(string(out)), err
}

func TestKernelTakesDefaultProfile(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the numbers here are those of x86-64")
	}
	got, err := run(t, defaultProfile(t),
		"39",           // getpid
		"41,1,1",       // socket(AF_UNIX, SOCK_STREAM)
		"41,40,1",      // socket(AF_VSOCK)
		"435,0,0",      // clone3, which the profile answers with ENOSYS
		"135,8,0",      // personality(ADDR_LIMIT_3GB would be 0x8000000; 8 is allowed)
		"135,64,0",     // personality(0x40)
		"165,0,0",      // mount
		"272,0,0",      // unshare, which would do nothing
		"56,268435456", // clone(CLONE_NEWUSER)
		"999,0",        // newer than the profile
	)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"0", "0", "1", "38", "0", "1", "1", "1", "1", "38"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("errnos are %v, want %v", got, want)
	}
}

func TestKernelKills(t *testing.T) {
	s := &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Syscalls: []specs.LinuxSyscall{{
			Names: []string{"getpriority"}, Action: specs.ActKillProcess,
			Args: []specs.LinuxSeccompArg{arg(1, specs.OpGreaterEqual, 1<<40|7)},
		}},
	}
	number := fmt.Sprint(unix.SYS_GETPRIORITY)
	got, err := run(t, s, number+",0,0", number+",0,1099511627782", number+",0,1099511627783", number+",0,0")
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok || exit.Sys().(syscall.WaitStatus).Signal() != unix.SIGSYS {
		t.Errorf("the child ended with %v, want SIGSYS", err)
	}
	if len(got) != 2 {
		t.Errorf("it made %d calls before, want 2", len(got))
	}
}
