package shimd

import (
	"bytes"
	"time"
)

// lineMax is the longest content of one log record in bytes; a longer line becomes several, all but the last tagged P.
const lineMax = 16 << 10

// stampLayout is RFC 3339 with nanoseconds of a fixed width, which keeps columns aligned and parses as RFC3339Nano.
const stampLayout = "2006-01-02T15:04:05.000000000Z07:00"

// recordOverhead is what a record has beside its content: time, stream, tag, spaces and newline, rounded up.
const recordOverhead = 64

// appendCRI formats data as records of the CRI log format, "<time> <stdout|stderr> <P|F> <content>\n", and returns them
// behind dst with the number of bytes of data that they hold. A line without its newline is held back, unless it is
// longer than lineMax (then lineMax bytes of it become a partial record) or final is set. It stops before dst has more
// than limit bytes, which must leave room for one record.
func appendCRI(dst, data []byte, at time.Time, stream string, final bool, limit int) ([]byte, int) {
	var prefix [recordOverhead]byte
	head := at.UTC().AppendFormat(prefix[:0], stampLayout)
	head = append(head, ' ')
	head = append(head, stream...)
	used := 0
	for used < len(data) {
		rest := data[used:]
		window := rest[:min(len(rest), lineMax+1)]
		content, tag, step := window, " F ", 0
		switch i := bytes.IndexByte(window, '\n'); {
		case i >= 0:
			content, step = window[:i], i+1
		case len(window) > lineMax:
			content, tag, step = window[:lineMax], " P ", lineMax
		case final:
			step = len(window)
		default:
			return dst, used
		}
		if len(dst)+len(content)+recordOverhead > limit {
			return dst, used
		}
		dst = append(dst, head...)
		dst = append(dst, tag...)
		dst = append(dst, content...)
		dst = append(dst, '\n')
		used += step
	}
	return dst, used
}
