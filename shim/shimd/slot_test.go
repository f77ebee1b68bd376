package shimd

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/keeper"
)

// TestMain lets the test binary play other parts, named by its first argument.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && parts[os.Args[1]] != nil {
		os.Exit(parts[os.Args[1]]())
	}
	os.Exit(m.Run())
}

var parts = map[string]func() int{"log-loop": logLoop}

// logLoop is a shim that does nothing but log one stream. Its descriptors: 3 the FIFO, 4 the log, 5... a group of slots.
func logLoop() int {
	note := slog.New(slog.NewTextHandler(os.Stderr, nil))
	pool := &slotPool{hold: func(keeper.Entry) error { return fmt.Errorf("the group is used up") }}
	e := keeper.Entry{Key: slotPrefix + "1"}
	for i := range 1 + 2*groupSlots {
		e.FDs = append(e.FDs, 5+i)
	}
	owned, err := pool.adopt(e)
	if err != nil {
		note.Error("adopt", "error", err)
		return 1
	}
	l := newLogFile("log", os.NewFile(4, "log"))
	_ = unix.SetNonblock(3, true)
	s := &stream{key: "c/stdout", name: "stdout", src: os.NewFile(3, "fifo"), log: l, pool: pool, note: note, done: make(chan struct{})}
	for _, slot := range owned {
		if slot.owner() != s.key || s.slot != nil {
			note.Error("two slots, or another's", "owner", slot.owner())
			return 1
		}
		if err := s.adopt(slot); err != nil {
			note.Error("recover", "error", err)
			return 1
		}
	}
	_, _ = unix.Write(1, []byte("!"))
	s.run()
	return 0
}

// TestKillLogLoop kills the process that logs at 200 random moments. The log must be exactly what was printed.
func TestKillLogLoop(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	log, err := openLog(path)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(uintptr(p[0]), unix.F_SETPIPE_SZ, chunkSize); err != nil {
		t.Fatal(err)
	}
	_, group, err := newSlotGroup(1)
	if err != nil {
		t.Fatal(err)
	}
	files := []*os.File{os.NewFile(uintptr(p[0]), "fifo"), log}
	for _, fd := range group.FDs {
		files = append(files, os.NewFile(uintptr(fd), "slot"))
	}
	self, _ := os.Executable()
	ready, started, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	start := func() *exec.Cmd {
		cmd := exec.Command(self, "log-loop")
		cmd.ExtraFiles = files
		cmd.Stdout, cmd.Stderr = started, os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := ready.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	printed := make(chan []byte)
	stop := make(chan struct{})
	go func() { printed <- printLines(os.NewFile(uintptr(p[1]), "writer"), stop) }()

	const kills = 200
	for range kills {
		cmd := start()
		time.Sleep(rand.N(4 * time.Millisecond))
		_ = cmd.Process.Kill()
		state, _ := cmd.Process.Wait()
		if state.Exited() {
			t.Fatalf("the log loop ended by itself: %v", state)
		}
	}
	close(stop)
	last := start()
	want := <-printed
	if err := last.Wait(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseCRI(b)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d kills, %d bytes printed", kills, len(want))
	if len(want) < 1<<20 {
		t.Errorf("only %d bytes were printed: the kills met an idle loop", len(want))
	}
	if i := firstDifference(got["stdout"], want); i >= 0 {
		t.Fatalf("the log has %d bytes, %d were printed; they differ at %d: %.60q, %.60q",
			len(got["stdout"]), len(want), i, tail(got["stdout"], i), tail(want, i))
	}
}

func tail(b []byte, i int) []byte { return b[min(i, len(b)):] }

func firstDifference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// printLines writes numbered lines, short ones, empty ones and some longer than a record, until stop, and answers all of them.
func printLines(w *os.File, stop chan struct{}) []byte {
	defer w.Close()
	var all []byte
	random := rand.New(rand.NewPCG(1, 2))
	for i := 0; ; i++ {
		select {
		case <-stop:
			return all
		default:
		}
		size := random.IntN(120)
		if random.IntN(200) == 0 {
			size = random.IntN(3 * lineMax)
		}
		line := fmt.Appendf(nil, "%d ", i)
		line = append(line, bytes.Repeat([]byte{byte('a' + i%26)}, size)...)
		line = append(line, '\n')
		all = append(all, line...)
		if _, err := w.Write(line); err != nil {
			return all
		}
		if random.IntN(50) == 0 {
			time.Sleep(rand.N(time.Millisecond))
		}
	}
}

func TestSlotWord(t *testing.T) {
	for _, w := range []slotWord{{}, {kind: slotReading, done: 1, fill: 2, n: chunkSize}, {kind: slotWriting, done: slotData, fill: slotData}} {
		if got := unpackWord(w.pack()); got != w || !w.valid() {
			t.Errorf("%+v became %+v", w, got)
		}
	}
	for _, w := range []slotWord{{kind: 7}, {done: 2, fill: 1}, {fill: slotData, n: 1}} {
		if w.valid() {
			t.Errorf("%+v is valid", w)
		}
	}
}

func testSlot(t *testing.T) *slot {
	t.Helper()
	slots, e, err := newSlotGroup(1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		e.Close()
		_ = unix.Munmap(slots[0].mem[: groupSlots*slotSize : groupSlots*slotSize])
	})
	return slots[0]
}

// TestRecoverAtEachStep leaves a slot as a kill at each step of the protocol would.
func TestRecoverAtEachStep(t *testing.T) {
	steps := []struct {
		name string
		make func(s *slot)
		cut  int64
	}{
		{"spliced", func(s *slot) { stageChunk(t, s, "new") }, -1},
		{"announced", func(s *slot) {
			stageChunk(t, s, "new")
			s.setWord(slotWord{kind: slotReading, fill: 4, n: 3})
		}, -1},
		{"half read", func(s *slot) {
			copy(s.data()[4:], "n")
			stageChunk(t, s, "ew")
			s.setWord(slotWord{kind: slotReading, fill: 4, n: 3})
		}, -1},
		{"read", func(s *slot) {
			copy(s.data()[4:], "new")
			s.setWord(slotWord{kind: slotReading, fill: 4, n: 3})
		}, -1},
		{"writing", func(s *slot) {
			copy(s.data()[4:], "new")
			s.setBase(77)
			s.setWord(slotWord{kind: slotWriting, fill: 7})
		}, 77},
	}
	for _, tt := range steps {
		t.Run(tt.name, func(t *testing.T) {
			s := testSlot(t)
			copy(s.data(), "old ")
			s.setWord(slotWord{fill: 4})
			tt.make(s)
			cut, err := s.recover(5)
			if err != nil || cut != tt.cut || string(s.pending()) != "old new" || s.word().kind != slotReady {
				t.Fatalf("cut %d, %v; pending %q, %+v", cut, err, s.pending(), s.word())
			}
		})
	}
}

func stageChunk(t *testing.T, s *slot, text string) {
	t.Helper()
	if _, err := unix.Write(s.out, []byte(text)); err != nil {
		t.Fatal(err)
	}
}

func TestRecoverDamaged(t *testing.T) {
	s := testSlot(t)
	s.setOwner("c/stdout")
	s.setWord(slotWord{done: 9, fill: 3})
	if _, err := s.recover(0); err == nil || !s.empty() {
		t.Fatalf("%v, %+v", err, s.word())
	}
}

func TestCompactKeepsWhatIsPending(t *testing.T) {
	s := testSlot(t)
	line := bytes.Repeat([]byte("p"), lineMax)
	copy(s.data()[slotData-lineMax:], line)
	s.setWord(slotWord{done: slotData - lineMax, fill: slotData})
	stageChunk(t, s, "more")
	if err := s.receive(4, 1); err != nil {
		t.Fatal(err)
	}
	if want := string(line) + "more"; string(s.pending()) != want {
		t.Fatalf("%d bytes pending", len(s.pending()))
	}
}

func TestStreamOfATerminal(t *testing.T) {
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "log")
	f, err := openLog(path)
	if err != nil {
		t.Fatal(err)
	}
	l := newLogFile(path, f)
	defer l.close()
	s := &stream{
		key: "c/stdout", name: "stdout", src: os.NewFile(uintptr(master), "console"), log: l,
		pool: &slotPool{hold: func(keeper.Entry) error { return nil }}, note: slog.Default(), done: make(chan struct{}),
	}
	go s.run()
	for i := range 100 {
		fmt.Fprintln(slave, "line", i)
	}
	_ = slave.Close()
	select {
	case <-s.done:
	case <-time.After(5 * time.Second):
		t.Fatal("the stream does not end with the terminal")
	}
	b, err := os.ReadFile(path)
	if err != nil || bytes.Count(b, []byte("\n")) != 100 || !bytes.Contains(b, []byte(" stdout F line 99\r\n")) {
		t.Errorf("%v, %q", err, b)
	}
	if s.direct {
		t.Error("the kernel does not splice from a terminal: SHIM.md says that it does")
	}
}
