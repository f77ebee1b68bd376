package inflate

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"

	kgzip "github.com/klauspost/compress/gzip"
)

// decode gives all that comes out, by buffers of one size.
func decode(r io.Reader, size int) ([]byte, error) {
	d := NewDecoder(r)
	buf := make([]byte, size)
	var all []byte
	for {
		n, err := d.Next(buf)
		all = append(all, buf[Window:Window+n]...)
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return all, err
		}
	}
}

// samples are contents of different kinds.
func samples() map[string][]byte {
	random := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 300_000)
	for i := range noise {
		noise[i] = byte(random.Uint32())
	}
	text, runs, few := []byte{}, []byte{}, make([]byte, 100_000)
	for len(text) < 500_000 {
		text = fmt.Appendf(text, "line %d of %x\n", len(text), random.Uint32N(1000))
	}
	for len(runs) < 500_000 { // each distance up to 20, at each length up to 300
		unit := noise[:1+random.IntN(20)]
		for range random.IntN(300) / len(unit) {
			runs = append(runs, unit...)
		}
		runs = append(runs, byte(random.Uint32()))
	}
	for i := range few {
		few[i] = byte(random.ExpFloat64() * 8) // codes of very different lengths
	}
	return map[string][]byte{
		"empty": nil, "one": {1}, "noise": noise, "text": text, "runs": runs, "few": few, "zeros": make([]byte, 1<<20),
		"far": append(append(append([]byte{}, noise[:32768]...), noise[:32768]...), noise[:40000]...),
	}
}

func TestDecodes(t *testing.T) {
	for name, content := range samples() {
		for level := gzip.HuffmanOnly; level <= gzip.BestCompression; level++ {
			var packed bytes.Buffer
			w, err := gzip.NewWriterLevel(&packed, level)
			if err != nil {
				t.Fatal(err)
			}
			w.Name, w.Comment, w.Extra = "name", "comment", []byte("extra")
			_, _ = w.Write(content)
			_ = w.Flush() // an empty stored block
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			for _, size := range []int{MinBuffer, Window + 256<<10} {
				got, err := decode(bytes.NewReader(packed.Bytes()), size)
				if err != nil || !bytes.Equal(got, content) {
					t.Errorf("%s, level %d, buffers of %d: %d bytes of %d, %v", name, level, size, len(got), len(content), err)
				}
			}
			got, err := decode(iotest.HalfReader(iotest.DataErrReader(bytes.NewReader(packed.Bytes()))), MinBuffer)
			if err != nil || !bytes.Equal(got, content) {
				t.Errorf("%s, level %d, small reads: %d bytes of %d, %v", name, level, len(got), len(content), err)
			}
		}
	}
}

// Each cut and each flipped bit is an error, or leaves what the standard library finds, too.
func TestBrokenInput(t *testing.T) {
	content := samples()["text"][:3000]
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, _ = w.Write(content)
	_ = w.Close()
	whole := packed.Bytes()
	for n := range whole {
		if _, err := decode(bytes.NewReader(whole[:n]), MinBuffer); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut after %d bytes: %v, want io.ErrUnexpectedEOF", n, err)
		}
		broken := bytes.Clone(whole)
		broken[n] ^= 1 << (n % 8)
		compare(t, broken)
	}
	for _, read := range []error{errors.New("the line is cut"), io.ErrUnexpectedEOF} {
		r := io.MultiReader(bytes.NewReader(whole[:len(whole)/2]), iotest.ErrReader(read))
		if _, err := decode(r, MinBuffer); !errors.Is(err, read) {
			t.Errorf("reading ends with %v: %v", read, err)
		}
	}
	if _, err := decode(bytes.NewReader(append(bytes.Clone(whole), 'x')), MinBuffer); err == nil {
		t.Error("garbage behind the stream is no error")
	}
	if _, err := NewDecoder(bytes.NewReader(whole)).Next(make([]byte, 100)); err != io.ErrShortBuffer {
		t.Errorf("a short buffer: %v", err)
	}
}

// Heads are taken and refused as the standard library does.
func TestHeads(t *testing.T) {
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, _ = w.Write([]byte("content"))
	_ = w.Close()
	body := packed.Bytes()[10:]
	head := func(flags byte, more string) []byte {
		return append([]byte{0x1f, 0x8b, 8, flags, 1, 2, 3, 4, 0, 3}, more...)
	}
	summed := func(head []byte, off uint16) []byte {
		return binary.LittleEndian.AppendUint16(head, uint16(crc32.ChecksumIEEE(head))+off)
	}
	name := strings.Repeat("n", maxName-1) + "\x00"
	for what, tt := range map[string]struct {
		head []byte
		good bool
	}{
		"plain":            {head(0, ""), true},
		"checksum":         {summed(head(flagChecksum, ""), 0), true},
		"wrong checksum":   {summed(head(flagChecksum, ""), 1), false},
		"all":              {summed(head(flagChecksum|flagExtra|flagName|flagComment, "\x03\x00abcname\x00comment\x00"), 0), true},
		"all, wrong":       {summed(head(flagChecksum|flagExtra|flagName|flagComment, "\x03\x00abcname\x00comment\x00"), 256), false},
		"longest name":     {head(flagName, name), true},
		"too long a name":  {head(flagName, "n"+name), false},
		"too long comment": {head(flagName|flagComment, name+"n"+name), false},
	} {
		t.Run(what, func(t *testing.T) {
			stream := append(tt.head, body...)
			compare(t, stream)
			if got, err := decode(bytes.NewReader(stream), MinBuffer); (err == nil) != tt.good || tt.good && string(got) != "content" {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

func TestMembers(t *testing.T) {
	var packed bytes.Buffer
	var want []byte
	for i := range 50 {
		w := gzip.NewWriter(&packed)
		part := bytes.Repeat([]byte{byte(i), 1}, i*50)
		_, _ = w.Write(part)
		_ = w.Close()
		want = append(want, part...)
	}
	got, err := decode(&packed, MinBuffer)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d, %v", len(got), len(want), err)
	}
}

func TestReset(t *testing.T) {
	content := samples()["text"]
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, _ = w.Write(content)
	_ = w.Close()
	d := NewDecoder(bytes.NewReader(packed.Bytes()))
	buf := make([]byte, MinBuffer)
	if _, err := d.Next(buf); err != nil {
		t.Fatal(err)
	}
	d.Reset(bytes.NewReader(packed.Bytes()))
	var got []byte
	for {
		n, err := d.Next(buf)
		got = append(got, buf[Window:Window+n]...)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got, content) {
		t.Errorf("%d bytes of %d", len(got), len(content))
	}
}

// compare wants what the standard library wants: the same bytes, and an error where it has one.
func compare(t *testing.T, packed []byte) {
	t.Helper()
	var want []byte
	r, wantErr := gzip.NewReader(bytes.NewReader(packed))
	const most = 4 << 20
	if wantErr == nil {
		want, wantErr = io.ReadAll(io.LimitReader(r, most))
	}
	if len(want) == most {
		return
	}
	got, err := decode(bytes.NewReader(packed), MinBuffer)
	if (err == nil) != (wantErr == nil) {
		t.Fatalf("the error is %v, the standard library's %v", err, wantErr)
	}
	if wantErr == nil && !bytes.Equal(got, want) {
		t.Fatalf("%d bytes are not the standard library's %d", len(got), len(want))
	}
}

func FuzzDecode(f *testing.F) {
	for _, content := range samples() {
		for _, level := range []int{gzip.HuffmanOnly, gzip.NoCompression, gzip.BestSpeed, gzip.BestCompression} {
			var packed bytes.Buffer
			w, _ := gzip.NewWriterLevel(&packed, level)
			_, _ = w.Write(content[:min(len(content), 2000)])
			_ = w.Close()
			f.Add(packed.Bytes())
		}
	}
	f.Fuzz(func(t *testing.T, packed []byte) {
		compare(t, packed)
		// The tail of a stream without a checksum that would hide what came before it.
		compare(t, append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff}, packed...))
	})
}

func BenchmarkDecode(b *testing.B) {
	content := benchContent()
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, _ = w.Write(content)
	_ = w.Close()
	b.Run("inflate", func(b *testing.B) {
		b.SetBytes(int64(len(content)))
		d, buf := NewDecoder(nil), make([]byte, Window+256<<10)
		for b.Loop() {
			d.Reset(bytes.NewReader(packed.Bytes()))
			for {
				if _, err := d.Next(buf); err == io.EOF {
					break
				} else if err != nil {
					b.Fatal(err)
				}
			}
		}
	})
	library := func(open func() (io.Reader, error)) func(*testing.B) {
		return func(b *testing.B) {
			b.SetBytes(int64(len(content)))
			buf := make([]byte, 256<<10)
			for b.Loop() {
				r, err := open()
				if err == nil {
					_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, buf)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	b.Run("klauspost", library(func() (io.Reader, error) { return kgzip.NewReader(bytes.NewReader(packed.Bytes())) }))
	b.Run("standard", library(func() (io.Reader, error) { return gzip.NewReader(bytes.NewReader(packed.Bytes())) }))
}

// benchContent is shaped as the content of hack/testimages' big images.
func benchContent() []byte {
	random := rand.New(rand.NewPCG(1, 42))
	words := make([][]byte, 2048)
	for i := range words {
		words[i] = make([]byte, 3+random.IntN(9))
		for j := range words[i] {
			words[i][j] = byte('a' + random.IntN(26))
		}
	}
	var out []byte
	for len(out) < 16<<20 {
		f := random.Float64()
		out = append(append(out, words[int(2048*f*f*f)]...), ' ')
		if random.IntN(16) == 0 {
			out = append(out, byte(random.Uint32()), byte(random.Uint32()), byte(random.Uint32()), byte(random.Uint32()))
		}
	}
	return out
}
