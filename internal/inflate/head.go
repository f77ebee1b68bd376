package inflate

import (
	"encoding/binary"
	"hash/crc32"
	"io"
)

// head reads what is not the content of a block.
func (d *Decoder) head(s stage) error {
	var err error
	switch s {
	case atMember:
		err = d.member()
	case atTrailer:
		err = d.trailer()
	default:
		if err = d.ensure(header); err == nil {
			err = d.blockHead()
		}
	}
	if err != io.EOF && d.overrun() {
		return d.inputErr()
	}
	return err
}

// bytes gives the next n bytes.
func (d *Decoder) bytes(n int) ([]byte, error) {
	if err := d.ensure(n); err != nil {
		return nil, err
	}
	if d.end-d.pos < n {
		return nil, d.inputErr()
	}
	p := d.in[d.pos : d.pos+n]
	d.pos += n
	return p, nil
}

// The flags of a member's head.
const (
	flagChecksum = 1 << 1
	flagExtra    = 1 << 2
	flagName     = 1 << 3
	flagComment  = 1 << 4
)

// maxName is the most bytes of a name or comment, with the zero at the end, as in the standard library. RFC 1952 has no limit.
const maxName = 512

// member reads the head of a member. io.EOF when there is none.
func (d *Decoder) member() error {
	if err := d.ensure(1); err != nil {
		return err
	}
	if d.pos >= d.end {
		if d.readErr == io.EOF && d.members > 0 {
			return io.EOF
		}
		return d.inputErr()
	}
	sum := uint32(0) // of the head so far
	next := func(n int) ([]byte, error) {
		p, err := d.bytes(n)
		sum = crc32.Update(sum, crc32.IEEETable, p)
		return p, err
	}
	p, err := next(10)
	if err != nil {
		return err
	}
	if p[0] != 0x1f || p[1] != 0x8b || p[2] != 8 {
		return corrupt("there is no gzip header")
	}
	flags := p[3]
	if flags&flagExtra != 0 {
		if p, err = next(2); err != nil {
			return err
		}
		if _, err = next(int(binary.LittleEndian.Uint16(p))); err != nil {
			return err
		}
	}
	for _, flag := range []byte{flagName, flagComment} {
		for n := 0; flags&flag != 0; n++ {
			if n == maxName {
				return corrupt("a name or comment is too long")
			}
			if p, err = next(1); err != nil {
				return err
			}
			if p[0] == 0 {
				break
			}
		}
	}
	if flags&flagChecksum != 0 {
		want := uint16(sum)
		if p, err = d.bytes(2); err != nil {
			return err
		}
		if binary.LittleEndian.Uint16(p) != want {
			return corrupt("the checksum of a gzip header does not match")
		}
	}
	d.members++
	d.stage, d.size, d.checksum = atBlock, 0, 0
	return nil
}

// trailer compares checksum and size.
func (d *Decoder) trailer() error {
	d.align()
	p, err := d.bytes(8)
	if err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(p) != d.checksum || binary.LittleEndian.Uint32(p[4:]) != d.size {
		return corrupt("the checksum does not match")
	}
	d.stage = atMember
	return nil
}

// blockHead reads the head of a block with its codes.
func (d *Decoder) blockHead() error {
	d.load()
	d.final = d.take(1) == 1
	switch d.take(2) {
	case 0:
		d.align()
		p, err := d.bytes(4)
		if err != nil {
			return err
		}
		n := binary.LittleEndian.Uint16(p)
		if n != ^binary.LittleEndian.Uint16(p[2:]) {
			return corrupt("the length of a stored block")
		}
		d.stage, d.stored = inStored, int(n)
		return nil
	case 1:
		d.stage, d.literals, d.distances = inCodes, &fixed.literals, &fixed.distances
		return nil
	case 2:
		return d.dynamic()
	}
	return corrupt("a block of an unknown kind")
}

// order is that of the lengths of codes for lengths.
var order = [maxLengths]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// lengthSymbols are entries for lengths of codes: as bases of lengths, so that the value is in bits 16 and up.
var lengthSymbols = func() (e [maxLengths]entry) {
	for i := range e {
		e[i] = entry(i) << 16
	}
	return e
}()

// dynamic reads the codes of a block (RFC 1951, 3.2.7). All of it was read, or padded.
func (d *Decoder) dynamic() error {
	literals, distances, n := int(d.take(5))+257, int(d.take(5))+1, int(d.take(4))+4
	if literals > 286 || distances > 30 {
		return corrupt("a block has too many codes")
	}
	var lengths [maxLiterals + maxDistances]uint8
	for _, i := range order[:n] {
		d.load()
		lengths[i] = uint8(d.take(3))
	}
	var table [1 << lengthBits]entry
	if !build(table[:], lengthBits, lengths[:maxLengths], lengthSymbols[:]) {
		return corrupt("the code of lengths")
	}
	clear(lengths[:maxLengths])
	if err := d.lengths(&table, lengths[:literals+distances]); err != nil {
		return err
	}
	if !build(d.own.distances[:], distanceBits, lengths[literals:literals+distances], distanceEntries[:]) {
		return corrupt("the code of distances")
	}
	if !build(d.own.literals[:], literalBits, lengths[:literals], lengthEntries[:]) {
		return corrupt("the code of literals")
	}
	combine(&d.own.literals)
	d.stage, d.literals, d.distances = inCodes, &d.own.literals, &d.own.distances
	return nil
}

// lengths reads the lengths of both codes.
func (d *Decoder) lengths(table *[1 << lengthBits]entry, lengths []uint8) error {
	for i := 0; i < len(lengths); {
		if d.overrun() { // the padding is shorter than what lengths can take
			return d.inputErr()
		}
		d.load()
		e := table[d.bits&(1<<lengthBits-1)]
		if e&special != 0 {
			return corrupt("the code of lengths")
		}
		d.take(uint(e & entryBits))
		symbol := e >> 16
		if symbol < 16 {
			lengths[i] = uint8(symbol)
			i++
			continue
		}
		var value uint8
		var repeat int
		switch symbol {
		case 16:
			if i == 0 {
				return corrupt("a length is repeated before the first")
			}
			value, repeat = lengths[i-1], 3+int(d.take(2))
		case 17:
			repeat = 3 + int(d.take(3))
		default:
			repeat = 11 + int(d.take(7))
		}
		if repeat > len(lengths)-i {
			return corrupt("there are more lengths than codes")
		}
		for range repeat {
			lengths[i] = value
			i++
		}
	}
	return nil
}
