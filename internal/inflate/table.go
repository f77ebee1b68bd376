package inflate

import "math/bits"

// Sizes of the tables. A code longer than the index of its table leads to a part of the same array behind it that is
// indexed by the rest of the code; each such part begins at the prefix that at least two long codes share.
const (
	maxCode = 15 // bits of the longest code

	literalBits = 11
	literalSize = 1<<literalBits + (maxLiterals/2)<<(maxCode-literalBits)
	maxLiterals = 288

	distanceBits = 9
	distanceSize = 1<<distanceBits + (maxDistances/2)<<(maxCode-distanceBits)
	maxDistances = 32

	lengthBits = 7 // of the codes that the lengths of codes are in; none is longer
	maxLengths = 19
)

// An entry of a table says what the bits at its index begin with. Bits 0 to 5 are how many bits are used up, extra bits
// included; bits 6 and 7 are how many literals the bits stand for, one to three, and then bits 8 to 31 are those literals.
// With no literal:
//
//	bits 8-12   the length of the code without the extra bits, or of the index into another part of the table
//	bit 13      the end of the block
//	bit 14      another part of the table has the entry
//	bit 15      not a length or distance: bit 13 or 14 says what, or there is no such code
//	bits 16-31  the base of the length or distance, or where the part begins
type entry = uint32

const (
	entryBits     = 0x3f
	oneLiteral    = 1 << 6
	anyLiteral    = 3 << 6
	endOfBlock    = 1 << 13
	elsewhere     = 1 << 14
	special       = 1 << 15
	noCode        = special
	literalsShift = 6
)

// lengthEntries are entries for the symbols of the first alphabet, without the length of the code.
var lengthEntries = func() (e [maxLiterals]entry) {
	for i := range 256 {
		e[i] = oneLiteral | entry(i)<<8
	}
	e[256] = special | endOfBlock
	base, extra := entry(3), entry(0)
	for i := 257; i < 285; i++ {
		if i >= 265 && (i-265)%4 == 0 {
			extra++
		}
		e[i] = base<<16 | extra
		base += 1 << extra
	}
	e[285] = 258 << 16
	e[286], e[287] = noCode, noCode
	return e
}()

var distanceEntries = func() (e [maxDistances]entry) {
	base, extra := entry(1), entry(0)
	for i := range 30 {
		if i >= 4 && i%2 == 0 {
			extra++
		}
		e[i] = base<<16 | extra
		base += 1 << extra
	}
	e[30], e[31] = noCode, noCode
	return e
}()

// fixed are the tables of blocks with fixed codes.
var fixed = func() (t struct {
	literals  [literalSize]entry
	distances [distanceSize]entry
}) {
	var lengths [maxLiterals]uint8
	for i := range lengths {
		switch {
		case i < 144:
			lengths[i] = 8
		case i < 256:
			lengths[i] = 9
		case i < 280:
			lengths[i] = 7
		default:
			lengths[i] = 8
		}
	}
	build(t.literals[:], literalBits, lengths[:], lengthEntries[:])
	combine(&t.literals)
	for i := range maxDistances {
		lengths[i] = 5
	}
	build(t.distances[:], distanceBits, lengths[:maxDistances], distanceEntries[:])
	return t
}()

// build makes a table of the canonical code with the given lengths (RFC 1951, 3.2.2). False when no code has them: there
// are too many short ones, or some bits mean nothing. As every decoder does it allows one code of a single bit, and none.
func build(table []entry, index int, lengths []uint8, symbols []entry) bool {
	var count, next [maxCode + 1]int
	for _, n := range lengths {
		count[n]++
	}
	count[0] = 0
	longest, code := 0, 0
	for n := 1; n <= maxCode; n++ {
		next[n] = code << 1
		code = next[n] + count[n]
		if code > 1<<n {
			return false
		}
		if count[n] > 0 {
			longest = n
		}
	}
	if code != 1<<maxCode { // incomplete
		if longest > 1 || count[1] > 1 {
			return false
		}
		clearTo(table[:1<<index], noCode)
	}
	// The canonical codes of one length are consecutive numbers in the order of their symbols, and the longer follow the
	// shorter; so all that have one prefix come one after the other if lengths come in order.
	var sorted [maxLiterals]uint16
	begin := 0
	var place [maxCode + 1]int
	for n := 1; n <= longest; n++ {
		place[n] = begin
		begin += count[n]
	}
	for symbol, n := range lengths {
		if n > 0 {
			sorted[place[n]] = uint16(symbol)
			place[n]++
		}
	}
	free, part, partAt := 1<<index, -1, 0
	for _, symbol := range sorted[:begin] {
		n := int(lengths[symbol])
		code := int(bits.Reverse16(uint16(next[n])) >> (16 - n))
		next[n]++
		if n <= index {
			e := finish(symbols[symbol], n)
			for i := code; i < 1<<index; i += 1 << n {
				table[i] = e
			}
			continue
		}
		prefix, width := code&(1<<index-1), longest-index
		if prefix != part {
			part, partAt = prefix, free
			table[prefix] = special | elsewhere | entry(free)<<16 | entry(width)<<8 | entry(index)
			free += 1 << width
		}
		e := finish(symbols[symbol], n-index)
		for i := code >> index; i < 1<<width; i += 1 << (n - index) {
			table[partAt+i] = e
		}
	}
	return true
}

// finish puts the length of the code, or of what remains of it, into an entry.
func finish(e entry, length int) entry {
	if e&(anyLiteral|special) != 0 {
		return e + entry(length)
	}
	return e + entry(length)<<8 + entry(length)
}

func clearTo(table []entry, e entry) {
	for i := range table {
		table[i] = e
	}
}

// combine makes entries for two and three literals where their codes together are no longer than the index.
func combine(table *[literalSize]entry) {
	// What stands at a lower index is for the bits that remain; from above they are still single.
	for i := 1<<literalBits - 1; i >= 0; i-- {
		first := table[i]
		if first&anyLiteral != oneLiteral {
			continue
		}
		used := first & entryBits
		second := table[(i>>used)&(1<<literalBits-1)]
		more := second & entryBits
		if second&anyLiteral != oneLiteral || used+more > literalBits {
			continue
		}
		table[i] = used + more | 2<<literalsShift | first&0xff00 | second&0xff00<<8
	}
}
