package cgstat

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

var errFormat = errors.New("not in the format of the kernel")

// parseNumber reads a number and the white space around it; "max" is 0.
func parseNumber(data []byte) (uint64, error) {
	data = bytes.TrimSpace(data)
	if string(data) == "max" {
		return 0, nil
	}
	n, ok := digits(data)
	if !ok {
		return 0, fmt.Errorf("%.40q is not a number: %w", data, errFormat)
	}
	return n, nil
}

// parseLimit is false for "max" and for a file that is not there.
func parseLimit(data []byte) (limit uint64, limited bool, err error) {
	if data == nil || string(bytes.TrimSpace(data)) == "max" {
		return 0, false, nil
	}
	limit, err = parseNumber(data)
	return limit, err == nil, err
}

// digits reads a decimal number without the allocation of a string. More than 64 bits is no number.
func digits(data []byte) (uint64, bool) {
	if len(data) == 0 {
		return 0, false
	}
	var n uint64
	for _, c := range data {
		if c < '0' || c > '9' || n > math.MaxUint64/10 {
			return 0, false
		}
		next := n*10 + uint64(c-'0')
		if next < n*10 {
			return 0, false
		}
		n = next
	}
	return n, true
}

// eachPair calls fn for each line "key value".
func eachPair(data []byte, fn func(key []byte, value uint64)) error {
	for len(data) > 0 {
		var line []byte
		line, data, _ = bytes.Cut(data, []byte{'\n'})
		if len(line) == 0 {
			continue
		}
		key, text, _ := bytes.Cut(line, []byte{' '})
		value, ok := digits(bytes.TrimSpace(text))
		if !ok {
			return fmt.Errorf("line %.60q: %w", line, errFormat)
		}
		fn(key, value)
	}
	return nil
}

// parseCPUStat reads cpu.stat of v2, which is in microseconds.
func parseCPUStat(data []byte, c *CPU) error {
	const unit = uint64(time.Microsecond)
	return eachPair(data, func(key []byte, value uint64) {
		switch string(key) {
		case "usage_usec":
			c.Usage = value * unit
		case "user_usec":
			c.User = value * unit
		case "system_usec":
			c.System = value * unit
		case "nr_periods":
			c.Periods = value
		case "nr_throttled":
			c.Throttled = value
		case "throttled_usec":
			c.ThrottledTime = value * unit
		}
	})
}

func parseMemoryStatV2(data []byte, m *Memory) error {
	err := eachPair(data, func(key []byte, value uint64) {
		switch string(key) {
		case "anon":
			m.Anon = value
		case "file":
			m.File = value
		case "file_mapped":
			m.Mapped = value
		case "active_file":
			m.ActiveFile = value
		case "inactive_file":
			m.InactiveFile = value
		case "kernel":
			m.Kernel = value
		case "pgfault":
			m.PageFaults = value
		case "pgmajfault":
			m.MajorFaults = value
		}
	})
	m.OwnPageFaults, m.OwnMajorFaults = m.PageFaults, m.MajorFaults
	return err
}

// parseMemoryStatV1 leaves the limit of memory and swap together in SwapLimit.
func parseMemoryStatV1(data []byte, m *Memory) error {
	return eachPair(data, func(key []byte, value uint64) {
		switch string(key) {
		case "total_rss":
			m.Anon = value
		case "total_cache":
			m.File = value
		case "total_mapped_file":
			m.Mapped = value
		case "total_active_file":
			m.ActiveFile = value
		case "total_inactive_file":
			m.InactiveFile = value
		case "total_swap":
			m.Swap, m.HasSwap = value, true
		case "hierarchical_memsw_limit":
			m.SwapLimit = limitV1(value)
		case "total_pgfault":
			m.PageFaults = value
		case "total_pgmajfault":
			m.MajorFaults = value
		case "pgfault":
			m.OwnPageFaults = value
		case "pgmajfault":
			m.OwnMajorFaults = value
		}
	})
}

// parsePressure reads lines as "some avg10=0.00 avg60=0.00 avg300=0.00 total=0". Linux before 5.13 has no "full" for CPU.
func parsePressure(data []byte) (*Pressure, error) {
	p := &Pressure{}
	for len(data) > 0 {
		var line []byte
		line, data, _ = bytes.Cut(data, []byte{'\n'})
		if len(line) == 0 {
			continue
		}
		kind, rest, _ := bytes.Cut(line, []byte{' '})
		var to *Stall
		switch string(kind) {
		case "some":
			to = &p.Some
		case "full":
			to = &p.Full
		default:
			continue // a kind that this kernel has added
		}
		if !parseStall(rest, to) {
			return nil, fmt.Errorf("line %.80q: %w", line, errFormat)
		}
	}
	return p, nil
}

func parseStall(data []byte, s *Stall) bool {
	for len(data) > 0 {
		var field []byte
		field, data, _ = bytes.Cut(data, []byte{' '})
		key, value, _ := bytes.Cut(field, []byte{'='})
		ok := true
		switch string(key) {
		case "avg10":
			s.Avg10, ok = decimal(value)
		case "avg60":
			s.Avg60, ok = decimal(value)
		case "avg300":
			s.Avg300, ok = decimal(value)
		case "total":
			var usec uint64
			usec, ok = digits(value)
			s.Total = usec * uint64(time.Microsecond)
		}
		if !ok {
			return false
		}
	}
	return true
}

// decimal reads "12.34".
func decimal(data []byte) (float64, bool) {
	whole, part, _ := bytes.Cut(data, []byte{'.'})
	n, ok := digits(whole)
	if !ok || len(part) > 9 {
		return 0, false
	}
	if len(part) == 0 {
		return float64(n), true
	}
	m, ok := digits(part)
	scale := 1.0
	for range part {
		scale *= 10
	}
	return float64(n) + float64(m)/scale, ok
}

// parseIOStat reads lines as "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6". A device that saw nothing has a line
// without values, which is left out.
func parseIOStat(data []byte) ([]Device, error) {
	var all []Device
	for len(data) > 0 {
		var line []byte
		line, data, _ = bytes.Cut(data, []byte{'\n'})
		number, rest, _ := bytes.Cut(bytes.TrimSpace(line), []byte{' '})
		if len(rest) == 0 {
			continue
		}
		d, ok := deviceNumber(number)
		if !ok {
			// Cgroups that a controller such as iocost watches have keys of their own.
			return nil, fmt.Errorf("line %.80q: %w", line, errFormat)
		}
		for len(rest) > 0 {
			var field []byte
			field, rest, _ = bytes.Cut(rest, []byte{' '})
			key, text, _ := bytes.Cut(field, []byte{'='})
			value, ok := digits(text)
			if !ok {
				continue // such as cost.usage of iocost
			}
			switch string(key) {
			case "rbytes":
				d.ReadBytes = value
			case "wbytes":
				d.WriteBytes = value
			case "rios":
				d.Reads = value
			case "wios":
				d.Writes = value
			case "dbytes":
				d.DiscardBytes = value
			case "dios":
				d.Discards = value
			}
		}
		all = append(all, d)
	}
	sortDevices(all)
	return all, nil
}

// parseBlkio adds lines as "8:0 Read 123" to all; bytes says whether they are bytes or operations.
func parseBlkio(data []byte, inBytes bool, all []Device) ([]Device, error) {
	for len(data) > 0 {
		var line []byte
		line, data, _ = bytes.Cut(data, []byte{'\n'})
		number, rest, _ := bytes.Cut(bytes.TrimSpace(line), []byte{' '})
		operation, text, found := bytes.Cut(rest, []byte{' '})
		if !found {
			continue // the sum of all, or an empty line
		}
		d, ok := deviceNumber(number)
		value, isNumber := digits(text)
		if !ok || !isNumber {
			return nil, fmt.Errorf("line %.80q: %w", line, errFormat)
		}
		i := slices.IndexFunc(all, func(o Device) bool { return o.Major == d.Major && o.Minor == d.Minor })
		if i < 0 {
			i, all = len(all), append(all, d)
		}
		switch string(operation) {
		case "Read":
			*pick(inBytes, &all[i].ReadBytes, &all[i].Reads) = value
		case "Write":
			*pick(inBytes, &all[i].WriteBytes, &all[i].Writes) = value
		case "Discard":
			*pick(inBytes, &all[i].DiscardBytes, &all[i].Discards) = value
		}
	}
	return all, nil
}

func pick(first bool, a, b *uint64) *uint64 {
	if first {
		return a
	}
	return b
}

func deviceNumber(data []byte) (Device, bool) {
	major, minor, found := bytes.Cut(data, []byte{':'})
	a, ok := digits(major)
	b, ok2 := digits(minor)
	if !found || !ok || !ok2 || a > math.MaxUint32 || b > math.MaxUint32 {
		return Device{}, false
	}
	return Device{Major: uint32(a), Minor: uint32(b)}, true
}

func sortDevices(all []Device) {
	slices.SortFunc(all, func(a, b Device) int {
		return cmp.Or(cmp.Compare(a.Major, b.Major), cmp.Compare(a.Minor, b.Minor))
	})
}

// pageSizes lists sizes of huge pages as the files of the hugetlb controller name them, from the names of directories such
// as "hugepages-2048kB".
func pageSizes(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // a kernel without huge pages
	}
	var sizes []string
	for _, e := range entries {
		text := strings.TrimSuffix(strings.TrimPrefix(e.Name(), "hugepages-"), "kB")
		kib, err := strconv.ParseUint(text, 10, 40)
		if err != nil {
			continue
		}
		sizes = append(sizes, pageSizeName(kib))
	}
	return sizes
}

func pageSizeName(kib uint64) string {
	switch {
	case kib >= 1<<20:
		return strconv.FormatUint(kib>>20, 10) + "GB"
	case kib >= 1<<10:
		return strconv.FormatUint(kib>>10, 10) + "MB"
	}
	return strconv.FormatUint(kib, 10) + "KB"
}
