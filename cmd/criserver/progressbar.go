package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/admin/api"
)

// pullBar shows how far a pull is on one line of a terminal, or nothing without one.
type pullBar struct {
	w     io.Writer
	drawn bool
}

func (b *pullBar) show(p *api.PullProgress) {
	if b.w == nil || p == nil {
		return
	}
	b.drawn = true
	fmt.Fprintf(b.w, "\r\x1b[K%s", barText(p)) // CSI K: erase to the end of the line
}

// end leaves the line.
func (b *pullBar) end() {
	if b.drawn {
		fmt.Fprintln(b.w)
		b.drawn = false
	}
}

const barWidth = 30

// barText is a pull's progress in at most 79 columns.
func barText(p *api.PullProgress) string {
	if p.GetBytesTotal() == 0 {
		return fmt.Sprintf("%s, %s", p.GetPhase(), since(p))
	}
	done := int(barWidth * p.GetBytesDone() / p.GetBytesTotal())
	return fmt.Sprintf("[%s%s] %s of %s, %d of %d layers, %s", strings.Repeat("#", done), strings.Repeat(".", barWidth-done),
		byteSize(p.GetBytesDone()), byteSize(p.GetBytesTotal()), p.GetLayersDone(), p.GetLayersTotal(), since(p))
}

func since(p *api.PullProgress) string {
	return time.Since(time.Unix(0, p.GetBeganAt())).Round(time.Second).String()
}

// byteSize is a number of bytes as a person reads it.
func byteSize(n int64) string {
	const units = "kMGTPE"
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n)/1000, 0
	for value >= 999.95 && unit < len(units)-1 {
		value, unit = value/1000, unit+1
	}
	return fmt.Sprintf("%.1f %cB", value, units[unit])
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
