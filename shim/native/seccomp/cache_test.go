package seccomp

import (
	"reflect"
	"sync"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestCache(t *testing.T) {
	profile := func(name string) *specs.LinuxSeccomp {
		return &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{allow(name)}}
	}
	get := func(c *Cache, s *specs.LinuxSeccomp) *Program {
		t.Helper()
		p, err := c.Compile(s)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	c := NewCache(2)
	read := get(c, profile("read"))
	if get(c, profile("read")) != read {
		t.Error("an equal profile was compiled again")
	}
	write := get(c, profile("write"))
	get(c, profile("read"))
	get(c, profile("close")) // write is the one used longest ago
	if get(c, profile("read")) != read {
		t.Error("the one used last was let go")
	}
	if get(c, profile("write")) == write {
		t.Error("the one used longest ago was kept")
	}
	if len(c.entries) != 2 || c.recent.Len() != 2 {
		t.Errorf("it holds %d programs, %d in order, want 2", len(c.entries), c.recent.Len())
	}
	none := profile("read")
	none.Flags = []specs.LinuxSeccompFlag{}
	if p := get(c, none); p.Flags != 0 || read.Flags != unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW {
		t.Errorf("flags are %#x for an empty list, %#x for none", p.Flags, read.Flags)
	}
	if _, err := c.Compile(&specs.LinuxSeccomp{}); err == nil {
		t.Error("a bad profile has no error")
	}
	var all sync.WaitGroup
	for _, name := range []string{"read", "write", "open", "close", "read", "write"} {
		all.Go(func() { _, _ = c.Compile(profile(name)) })
	}
	all.Wait()
}

// TestDigestCoversEveryField changes each field of a profile and wants another digest.
func TestDigestCoversEveryField(t *testing.T) {
	one := uint(1)
	full := func() *specs.LinuxSeccomp {
		return &specs.LinuxSeccomp{
			DefaultAction: "a", DefaultErrnoRet: &one, Architectures: []specs.Arch{"b"}, Flags: []specs.LinuxSeccompFlag{"c"},
			ListenerPath: "d", ListenerMetadata: "e", Syscalls: []specs.LinuxSyscall{{
				Names: []string{"f"}, Action: "g", ErrnoRet: &one, Args: []specs.LinuxSeccompArg{{Index: 1, Value: 2, ValueTwo: 3, Op: "h"}},
			}},
		}
	}
	original := digest(full())
	if digest(full()) != original {
		t.Fatal("equal profiles have different digests")
	}
	check := func(pick func(*specs.LinuxSeccomp) any) {
		t.Helper()
		fields := reflect.ValueOf(pick(full())).Elem().NumField()
		for i := range fields {
			s := full()
			v := reflect.ValueOf(pick(s)).Elem()
			v.Field(i).SetZero()
			if digest(s) == original {
				t.Errorf("%s.%s is not in the digest", v.Type(), v.Type().Field(i).Name)
			}
		}
	}
	check(func(s *specs.LinuxSeccomp) any { return s })
	check(func(s *specs.LinuxSeccomp) any { return &s.Syscalls[0] })
	check(func(s *specs.LinuxSeccomp) any { return &s.Syscalls[0].Args[0] })
}

func BenchmarkCacheDefault(b *testing.B) {
	c := NewCache(4)
	s := defaultProfile(b)
	for b.Loop() {
		if _, err := c.Compile(s); err != nil {
			b.Fatal(err)
		}
	}
}
