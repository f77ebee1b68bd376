package seccomp

import (
	"encoding/json"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// oracle answers what a profile says of a call by reading it from top to bottom, without ranges or jumps.
func oracle(t testing.TB, s *specs.LinuxSeccomp, audit, number uint32, arguments []uint64) uint32 {
	t.Helper()
	usual, err := action("defaultAction", s.DefaultAction, s.DefaultErrnoRet)
	if err != nil {
		t.Fatal(err)
	}
	bit := uint32(0)
	if audit == unix.AUDIT_ARCH_X86_64 && number >= x32Bit {
		bit = x32Bit
	}
	var on *architecture
	for _, a := range architectures {
		if a.audit == audit && a.bit == bit && (a.name == specs.ArchX86_64 || slices.Contains(s.Architectures, a.name)) {
			on = a
		}
	}
	if on == nil {
		if bit != 0 && number == ^uint32(0) {
			return usual
		}
		return killed
	}
	newest, some := uint32(0), false
	conditional := usual
	decided := false
	for _, r := range s.Syscalls {
		ret, err := action("action", r.Action, r.ErrnoRet)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range r.Names {
			n, ok := on.number(name)
			if ok && (on.name != specs.ArchARM || n < armPrivate) {
				newest, some = max(newest, n), true
			}
			direct := ok && n == number
			m, through := multiplexed[name]
			if through {
				n, ok := on.number(m.by)
				through = ok && n == number
				if ok && n > newest {
					newest, some = n, true
				}
			}
			if ret == usual {
				continue
			}
			switch {
			case direct && len(r.Args) == 0:
				return ret
			case direct && !decided && allHold(r.Args, arguments, on):
				conditional, decided = ret, true
			case through && !decided && arguments[0]&m.mask == m.call && (len(r.Args) == 0 || permits(ret) < permits(usual)):
				conditional, decided = ret, true
			}
		}
	}
	if !decided && some && number > newest && permits(usual) < permits(unix.SECCOMP_RET_TRACE) {
		return enosys
	}
	return conditional
}

func allHold(args []specs.LinuxSeccompArg, arguments []uint64, on *architecture) bool {
	seen := map[uint]int{}
	for _, a := range args {
		seen[a.Index]++
	}
	apart := slices.Max(append(slices.Collect(maps.Values(seen)), 0)) > 1
	some, all := false, true
	for _, a := range args {
		value, with, second := arguments[a.Index], a.Value, a.ValueTwo
		if on.words {
			value, with, second = uint64(uint32(value)), uint64(uint32(with)), uint64(uint32(second))
		}
		holds := map[specs.LinuxSeccompOperator]bool{
			specs.OpEqualTo: value == with, specs.OpNotEqual: value != with, specs.OpLessThan: value < with, specs.OpLessEqual: value <= with,
			specs.OpGreaterThan: value > with, specs.OpGreaterEqual: value >= with, specs.OpMaskedEqual: value&with == second&with,
		}[a.Op]
		some, all = some || holds, all && holds
	}
	if apart {
		return some
	}
	return all
}

// checkAgainstOracle runs a compiled profile on many calls and compares each answer.
func checkAgainstOracle(t testing.TB, s *specs.LinuxSeccomp, numbers []uint32) (calls int) {
	t.Helper()
	p, err := compile(s, mustLookup(t, specs.ArchX86_64))
	if err != nil {
		t.Fatal(err)
	}
	m := newMachine(t, p.Filter)
	samples := samplesOf(s)
	for _, a := range architectures {
		if a.bigEndian {
			continue
		}
		for _, n := range numbers {
			for _, arguments := range samples {
				calls++
				number := n | a.bit
				got, want := m.call(t, a.audit, number, arguments...), oracle(t, s, a.audit, number, arguments)
				if got != want {
					text, _ := json.Marshal(s)
					t.Fatalf("%s number %#x with %#x returns %#x, want %#x; profile %s", a.name, number, arguments, got, want, text)
				}
			}
		}
	}
	return calls
}

func allNumbers() []uint32 {
	numbers := []uint32{x32Bit - 1, x32Bit, 1 << 31, ^uint32(0) - 1, ^uint32(0), 0x0f0000, 0x0f0001, 0x0f0002, 0x0f0007}
	for n := range uint32(560) {
		numbers = append(numbers, n)
	}
	return numbers
}

// TestRandomProfiles has profiles with several actions and overlapping rules for one system call.
func TestRandomProfiles(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 2))
	names := slices.Sorted(maps.Keys(tables()[specs.ArchX86]))
	calls := 0
	for range 10 {
		s := randomProfile(random, names)
		again := s.Syscalls[:min(len(s.Syscalls), 20)]
		for _, r := range slices.Clone(again) {
			r.Action = allActions[random.IntN(len(allActions))]
			r.Args = nil
			for index := range uint(6) {
				for range random.IntN(2) * (1 + random.IntN(8)/7) {
					r.Args = append(r.Args, arg(index, allOps[random.IntN(len(allOps))], randomValue(random), randomValue(random)))
				}
			}
			s.Syscalls = append(s.Syscalls, r)
		}
		calls += checkAgainstOracle(t, s, allNumbers())
	}
	t.Logf("%d calls agree", calls)
}

func TestDefaultProfileIsWhatItSays(t *testing.T) {
	s := defaultProfile(t)
	s.Architectures = append(s.Architectures, specs.ArchARM, specs.ArchAARCH64)
	t.Logf("%d calls agree", checkAgainstOracle(t, s, allNumbers()))
}

func FuzzCompile(f *testing.F) {
	for _, seed := range []*specs.LinuxSeccomp{
		defaultProfile(f),
		{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchX32, specs.ArchARM}, Syscalls: []specs.LinuxSyscall{
			allow("read", arg(0, specs.OpMaskedEqual, 7, 1), arg(1, specs.OpLessThan, 1<<40)),
			allow("socket", arg(0, specs.OpNotEqual, 40), arg(0, specs.OpGreaterEqual, ^uint64(0))),
		}},
		{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"ptrace", "ipc"}, Action: specs.ActKillProcess}}},
	} {
		data, err := json.Marshal(seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, uint32(0))
	}
	f.Fuzz(func(t *testing.T, data []byte, number uint32) {
		s := &specs.LinuxSeccomp{}
		if json.Unmarshal(data, s) != nil {
			t.Skip()
		}
		if _, err := compile(s, architectures[0]); err != nil {
			return
		}
		checkAgainstOracle(t, s, []uint32{number, number % 512, 16, 56})
	})
}
