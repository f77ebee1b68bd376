// Package inflate decompresses gzip (RFC 1952) with DEFLATE (RFC 1951), a large piece at a time.
//
// The libraries' readers keep the window that matches are copied from apart from what they give out. Here each piece is
// decoded in place behind the end of the one before, so that nothing is copied twice, and the loop that decodes has room
// enough in front of it, in input and output, to check neither for each symbol. It reads eight bytes of input at once, and an
// entry of its table may stand for two literals.
package inflate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// Window is how far back a match may lie. A buffer for Next begins with as many bytes for the decoder's own use.
const Window = 32 << 10

const (
	// slack is what the longest match takes, and what copying by words writes beyond.
	slack = 258 + 16
	// padding is what is read beyond the end of the input, as zeros.
	padding = 64
	// margin is what the loop may read of the input before it looks again: two loads of eight bytes, each behind at most seven.
	margin = 16
	// header is more than the head of any block takes.
	header = 1 << 10

	inputSize = 128 << 10
)

// MinBuffer is the smallest buffer for Next.
const MinBuffer = Window + 4<<10

// ErrCorrupt says that the input is not gzip.
var ErrCorrupt = errors.New("not valid gzip data")

func corrupt(what string) error { return fmt.Errorf("%w: %s", ErrCorrupt, what) }

// stage is what comes next in the input.
type stage int

const (
	atMember  stage = iota // the head of a member, or the end
	atBlock                // the head of a block
	inStored               // the bytes of a block that is not compressed
	inCodes                // the symbols of one that is
	atTrailer              // checksum and size
)

// Decoder decompresses one stream, which may have several members. It is not for concurrent use.
type Decoder struct {
	r       io.Reader
	stage   stage
	final   bool // the block is the last of its member
	members int
	err     error // sticky

	in      []byte // with room for the padding behind end
	pos     int    // of the next byte that is not in bits
	end     int    // of what was read
	readErr error  // of r; io.EOF means that the input is whole and padded
	bits    uint64 // the lowest are next; bits above the number in count are right, too, or zero
	count   uint

	stored   int // bytes left of a stored block
	history  [Window]byte
	valid    int // bytes of the history, from its end, that belong to this member
	size     uint32
	checksum uint32

	literals  *[literalSize]entry
	distances *[distanceSize]entry
	own       struct {
		literals  [literalSize]entry
		distances [distanceSize]entry
	}
}

// NewDecoder decompresses r, which it reads in large pieces and to its end.
func NewDecoder(r io.Reader) *Decoder {
	d := &Decoder{in: make([]byte, inputSize+padding)}
	d.Reset(r)
	return d
}

// Reset makes the decoder begin anew with r.
func (d *Decoder) Reset(r io.Reader) {
	d.r, d.stage, d.final, d.members, d.err = r, atMember, false, 0, nil
	d.pos, d.end, d.readErr, d.bits, d.count = 0, 0, nil, 0, 0
	d.valid, d.size, d.checksum = 0, 0, 0
}

// Next decompresses into buf, from buf[Window] on, and says how many bytes it put there. The last bytes of buf may stay
// unused. What is before and after those bytes has no meaning. buf has at least MinBuffer bytes. The error is io.EOF after
// the last byte, and io.ErrUnexpectedEOF when input is missing; with an error there may be bytes, too.
func (d *Decoder) Next(buf []byte) (int, error) {
	if len(buf) < MinBuffer {
		return 0, io.ErrShortBuffer
	}
	if d.err != nil {
		return 0, d.err
	}
	copy(buf[Window-d.valid:Window], d.history[Window-d.valid:])
	at := Window  // where the next byte goes
	counted := at // where those begin that are not in the checksum yet
	oldest := Window - d.valid
	for d.err == nil && at <= len(buf)-slack {
		stage := d.stage
		if stage == inStored || stage == inCodes {
			at = d.block(buf, at, oldest)
			continue
		}
		if stage == atTrailer || stage == atMember {
			d.sum(buf[counted:at])
			counted = at
		}
		d.err = d.head(stage)
		if stage == atMember {
			oldest = at
		}
	}
	d.sum(buf[counted:at])
	d.valid = min(at-oldest, Window)
	copy(d.history[Window-d.valid:], buf[at-d.valid:at])
	if at > Window && errors.Is(d.err, io.EOF) {
		return at - Window, nil
	}
	return at - Window, d.err
}

func (d *Decoder) sum(p []byte) {
	if len(p) > 0 {
		d.checksum = crc32.Update(d.checksum, crc32.IEEETable, p)
		d.size += uint32(len(p))
	}
}

// block decodes a part of a block.
func (d *Decoder) block(buf []byte, at, oldest int) int {
	if d.stage == inStored {
		return d.copyStored(buf, at)
	}
	if d.err = d.ensure(margin); d.err != nil {
		return at
	}
	at, done, err := d.codes(buf, at, oldest)
	switch {
	case d.overrun():
		d.err = d.inputErr()
	case err != nil:
		d.err = err
	case done:
		d.endBlock()
	}
	return at
}

func (d *Decoder) endBlock() {
	d.stage = atBlock
	if d.final {
		d.stage = atTrailer
	}
}

// copyStored gives out bytes of a stored block.
func (d *Decoder) copyStored(buf []byte, at int) int {
	if d.stored == 0 {
		d.endBlock()
		return at
	}
	if d.err = d.ensure(1); d.err != nil {
		return at
	}
	if d.pos >= d.end {
		d.err = d.inputErr()
		return at
	}
	n := copy(buf[at:len(buf)-slack+1], d.in[d.pos:min(d.end, d.pos+d.stored)])
	d.pos += n
	d.stored -= n
	return at + n
}

// ensure has n bytes of input from pos on, zeros behind the end counted.
func (d *Decoder) ensure(n int) error {
	if d.end-d.pos >= n || d.readErr != nil {
		if d.readErr != nil && d.pos > d.end+margin {
			return d.inputErr()
		}
		return nil
	}
	// Whole bytes go back from bits, so that what is in there has its place in the buffer.
	d.pos -= int(d.count >> 3)
	d.count &= 7
	d.bits &= 1<<d.count - 1
	d.end = copy(d.in, d.in[d.pos:d.end])
	d.pos = 0
	for empty := 0; d.end < n && d.readErr == nil; {
		got, err := d.r.Read(d.in[d.end : len(d.in)-padding])
		d.end += got
		d.readErr = err
		if empty++; got > 0 {
			empty = 0
		}
		if empty > 100 {
			d.readErr = io.ErrNoProgress
		}
	}
	if d.readErr != nil {
		clear(d.in[d.end : d.end+padding])
	}
	return nil
}

// overrun says whether more was used than there is.
func (d *Decoder) overrun() bool { return d.pos-int(d.count>>3) > d.end }

// inputErr is why input is missing.
func (d *Decoder) inputErr() error {
	if d.readErr != nil && d.readErr != io.EOF {
		return d.readErr
	}
	return io.ErrUnexpectedEOF
}

// load makes count at least 56.
func (d *Decoder) load() {
	d.bits |= binary.LittleEndian.Uint64(d.in[d.pos:]) << (d.count & 63)
	d.pos += int((63 - d.count) >> 3)
	d.count |= 56
}

// take uses up to 32 bits, which were loaded.
func (d *Decoder) take(n uint) uint32 {
	v := uint32(d.bits & (1<<n - 1))
	d.bits >>= n
	d.count -= n
	return v
}

// align goes on at the next whole byte, with no bits loaded.
func (d *Decoder) align() {
	d.pos -= int(d.count >> 3)
	d.bits, d.count = 0, 0
}
