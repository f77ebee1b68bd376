package spec

import (
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The range of realtime signals as C libraries give it to programs: the first two are their own (signal(7)).
const (
	sigRTMin = 34
	sigRTMax = 64
)

// ParseSignal reads a signal's number, or its name with or without SIG, SIGRTMIN+n and SIGRTMAX-n included.
func ParseSignal(s string) (syscall.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > sigRTMax {
			return 0, invalid("signal %q: must be from 1 to %d", s, sigRTMax)
		}
		return syscall.Signal(n), nil
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if n := unix.SignalNum(name); n != 0 {
		return n, nil
	}
	for _, edge := range []struct {
		prefix string
		from   int
	}{{"SIGRTMIN", sigRTMin}, {"SIGRTMAX", sigRTMax}} {
		rest, ok := strings.CutPrefix(name, edge.prefix)
		if !ok {
			continue
		}
		n := 0
		if rest != "" {
			var err error
			if n, err = strconv.Atoi(rest); err != nil {
				break
			}
		}
		if n += edge.from; n >= sigRTMin && n <= sigRTMax {
			return syscall.Signal(n), nil
		}
	}
	return 0, invalid("signal %q is not known", s)
}

// SignalName is the name of a signal, SIGRTMIN+n for realtime ones.
func SignalName(s syscall.Signal) string {
	if name := unix.SignalName(s); name != "" {
		return name
	}
	if s >= sigRTMin {
		return "SIGRTMIN+" + strconv.Itoa(int(s)-sigRTMin)
	}
	return strconv.Itoa(int(s))
}

// StopSignal is the signal that asks a container to end: its own, else the image's, else SIGTERM.
func StopSignal(container, image string) (syscall.Signal, error) {
	for _, s := range []string{container, image} {
		if s != "" {
			return ParseSignal(s)
		}
	}
	return unix.SIGTERM, nil
}
