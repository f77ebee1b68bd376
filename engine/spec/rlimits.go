package spec

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// RlimitNumbers are the limits of getrlimit(2) by name.
var RlimitNumbers = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_DATA": unix.RLIMIT_DATA,
	"RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK,
	"RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE,
	"RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS, "RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO,
	"RLIMIT_RTTIME": unix.RLIMIT_RTTIME, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
}

// ParseRlimit reads "nofile=1024:524288" or "core=unlimited": a limit, its soft and its hard value. One value is both.
func ParseRlimit(text string) (Rlimit, error) {
	name, values, ok := strings.Cut(text, "=")
	r := Rlimit{Type: "RLIMIT_" + strings.ToUpper(name)}
	if _, known := RlimitNumbers[r.Type]; !known || !ok {
		return r, fmt.Errorf("%q is not a limit such as nofile=1024:524288", text)
	}
	soft, hard, both := strings.Cut(values, ":")
	if !both {
		hard = soft
	}
	for _, v := range []struct {
		text string
		to   *uint64
	}{{soft, &r.Soft}, {hard, &r.Hard}} {
		if v.text == "unlimited" {
			*v.to = math.MaxUint64
			continue
		}
		n, err := strconv.ParseUint(v.text, 10, 64)
		if err != nil {
			return r, fmt.Errorf("%q: %q is neither a number nor \"unlimited\"", text, v.text)
		}
		*v.to = n
	}
	if r.Soft > r.Hard {
		return r, fmt.Errorf("%q: the soft limit is above the hard limit", text)
	}
	return r, nil
}
