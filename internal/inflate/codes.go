package inflate

import "encoding/binary"

// codes decodes symbols until the block ends (done), the output has no room for the longest match, or the input has to be read
// on. The first byte that a match may reach is at oldest.
func (d *Decoder) codes(buf []byte, at, oldest int) (_ int, done bool, err error) {
	in, pos, bits, count := d.in, d.pos, d.bits, d.count
	literals, distances := d.literals, d.distances
	room, last := len(buf)-slack, d.end-margin
	if d.readErr != nil {
		last = d.end + padding - margin
	}
	for at <= room && pos <= last {
		bits |= binary.LittleEndian.Uint64(in[pos:]) << (count & 63)
		pos += int((63 - count) >> 3)
		count |= 56
		e := literals[bits&(1<<literalBits-1)]
		// Three times up to 11 bits, and 20 for a length, are not more than 56.
		if e&anyLiteral != 0 {
			binary.LittleEndian.PutUint16(buf[at:], uint16(e>>8))
			at += int(e >> literalsShift & 3)
			bits >>= e & entryBits
			count -= uint(e & entryBits)
			e = literals[bits&(1<<literalBits-1)]
			if e&anyLiteral != 0 {
				binary.LittleEndian.PutUint16(buf[at:], uint16(e>>8))
				at += int(e >> literalsShift & 3)
				bits >>= e & entryBits
				count -= uint(e & entryBits)
				e = literals[bits&(1<<literalBits-1)]
				if e&anyLiteral != 0 {
					binary.LittleEndian.PutUint16(buf[at:], uint16(e>>8))
					at += int(e >> literalsShift & 3)
					bits >>= e & entryBits
					count -= uint(e & entryBits)
					continue
				}
			}
		}
		if e&special != 0 {
			if e&elsewhere != 0 {
				bits >>= literalBits
				count -= literalBits
				e = literals[uint64(e>>16)+bits&(1<<(e>>8&31)-1)]
			}
			if e&anyLiteral != 0 {
				buf[at] = byte(e >> 8)
				at++
				bits >>= e & entryBits
				count -= uint(e & entryBits)
				continue
			}
			if e&special != 0 {
				if e&endOfBlock == 0 {
					err = corrupt("a code that is not in the block's")
					break
				}
				bits >>= e & entryBits
				count -= uint(e & entryBits)
				done = true
				break
			}
		}
		length := int(e>>16) + int(bits&(1<<(e&entryBits)-1)>>(e>>8&31))
		bits >>= e & entryBits
		count -= uint(e & entryBits)

		bits |= binary.LittleEndian.Uint64(in[pos:]) << (count & 63)
		pos += int((63 - count) >> 3)
		count |= 56
		e = distances[bits&(1<<distanceBits-1)]
		if e&special != 0 {
			if e&elsewhere != 0 {
				bits >>= distanceBits
				count -= distanceBits
				e = distances[uint64(e>>16)+bits&(1<<(e>>8&31)-1)]
			}
			if e&special != 0 {
				err = corrupt("a code that is not in the block's")
				break
			}
		}
		distance := int(e>>16) + int(bits&(1<<(e&entryBits)-1)>>(e>>8&31))
		bits >>= e & entryBits
		count -= uint(e & entryBits)
		from := at - distance
		if from < oldest {
			err = corrupt("a match lies before the beginning")
			break
		}
		end := at + length
		if distance >= 8 {
			for {
				binary.LittleEndian.PutUint64(buf[at:], binary.LittleEndian.Uint64(buf[from:]))
				at += 8
				from += 8
				if at >= end {
					break
				}
			}
			at = end
			continue
		}
		repeat(buf, at, distance, length)
		at = end
	}
	d.pos, d.bits, d.count = pos, bits, count
	return at, done, err
}

// repeat copies a match that overlaps itself within eight bytes.
func repeat(buf []byte, at, distance, length int) {
	from := at - distance
	if distance == 1 {
		word := uint64(buf[from]) * 0x0101010101010101
		for i := 0; i < length; i += 8 {
			binary.LittleEndian.PutUint64(buf[at+i:], word)
		}
		return
	}
	for i := 0; i < length; i++ { // not copy, which does not repeat what it has just written
		buf[at+i] = buf[from+i]
	}
}
