package shimd

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestAppendCRI(t *testing.T) {
	at := time.Date(2026, 3, 4, 5, 6, 7, 80, time.FixedZone("", 3600))
	const stamp = "2026-03-04T04:06:07.000000080Z"
	long := strings.Repeat("x", lineMax)
	tests := []struct {
		name, data string
		final      bool
		want       []string
		used       int
	}{
		{"nothing", "", true, nil, 0},
		{"a line", "hello\n", false, []string{"F hello"}, 6},
		{"an empty line", "\n", false, []string{"F "}, 1},
		{"two and a half", "a\nb\nc", false, []string{"F a", "F b"}, 4},
		{"the half at the end", "a\nc", true, []string{"F a", "F c"}, 3},
		{"carriage return is content", "a\r\n", false, []string{"F a\r"}, 3},
		{"a line of the limit", long + "\n", false, []string{"F " + long}, lineMax + 1},
		{"the limit without end", long, false, nil, 0},
		{"one beyond", long + "y\n", false, []string{"P " + long, "F y"}, lineMax + 2},
		{"one beyond, open", long + "y", false, []string{"P " + long}, lineMax},
		{"twice the limit, last", long + long, true, []string{"P " + long, "F " + long}, 2 * lineMax},
		{"not UTF-8", "\xff\x00\n", false, []string{"F \xff\x00"}, 3},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, used := appendCRI(nil, []byte(tt.data), at, "stderr", tt.final, 1<<20)
			var want string
			for _, w := range tt.want {
				want += stamp + " stderr " + w + "\n"
			}
			if string(got) != want || used != tt.used {
				t.Errorf("used %d, want %d; got %.200q, want %.200q", used, tt.used, got, want)
			}
		})
	}
}

func TestAppendCRIStopsAtTheLimit(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789\n"), 10)
	got, used := appendCRI(nil, data, time.Now(), "stdout", false, 200)
	if len(got) > 200 || used == 0 || used%11 != 0 || bytes.Count(got, []byte("\n")) != used/11 {
		t.Fatalf("%d bytes for %d of the data: %q", len(got), used, got)
	}
}

// parseCRI puts a log back together: what each stream printed. An F record adds the newline that it stands for.
func parseCRI(log []byte) (map[string][]byte, error) {
	out := map[string][]byte{}
	for i, line := range bytes.SplitAfter(log, []byte("\n")) {
		if len(line) == 0 {
			continue
		}
		if line[len(line)-1] != '\n' {
			return nil, fmt.Errorf("record %d has no end: %.80q", i, line)
		}
		f := bytes.SplitN(line[:len(line)-1], []byte(" "), 4)
		if len(f) != 4 {
			return nil, fmt.Errorf("record %d: %.80q", i, line)
		}
		if _, err := time.Parse(time.RFC3339Nano, string(f[0])); err != nil {
			return nil, err
		}
		if len(f[3]) > lineMax {
			return nil, fmt.Errorf("record %d has %d bytes", i, len(f[3]))
		}
		name := string(f[1])
		out[name] = append(out[name], f[3]...)
		switch string(f[2]) {
		case "F":
			out[name] = append(out[name], '\n')
		case "P":
		default:
			return nil, fmt.Errorf("record %d has the tag %q", i, f[2])
		}
	}
	return out, nil
}

func FuzzAppendCRI(f *testing.F) {
	f.Add([]byte("a\nb"), 3, uint16(100))
	f.Add(bytes.Repeat([]byte("x"), 3*lineMax), 40, uint16(9))
	f.Fuzz(func(t *testing.T, data []byte, chunk int, room uint16) {
		if chunk <= 0 || len(data) > 8*lineMax || len(data)/chunk > 4096 {
			return
		}
		limit := recordOverhead + lineMax + int(room)
		var log, pending []byte
		step := func(final bool) {
			for {
				b, used := appendCRI(nil, pending, time.Now(), "stdout", final, limit)
				if len(b) > limit || used > len(pending) {
					t.Fatalf("%d bytes, limit %d; used %d of %d", len(b), limit, used, len(pending))
				}
				log = append(log, b...)
				pending = pending[used:]
				if used == 0 {
					return
				}
			}
		}
		for rest := data; len(rest) > 0; {
			n := min(chunk, len(rest))
			pending = append(pending, rest[:n]...)
			rest = rest[n:]
			step(false)
			if len(pending) > lineMax {
				t.Fatalf("%d bytes are held back", len(pending))
			}
		}
		step(true)
		if len(pending) != 0 {
			t.Fatalf("%d bytes are left", len(pending))
		}
		got, err := parseCRI(log)
		if err != nil {
			t.Fatal(err)
		}
		want := append([]byte(nil), data...)
		if len(want) > 0 && want[len(want)-1] != '\n' {
			want = append(want, '\n')
		}
		if !bytes.Equal(got["stdout"], want) {
			t.Fatalf("got %d bytes, want %d", len(got["stdout"]), len(want))
		}
	})
}
