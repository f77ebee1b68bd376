package native

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/native/plan"
	"github.com/criserver/criserver/shim/native/stage"
)

// Gate is what a process waits at that is started by another program than the one that made it: two FIFOs, both open for reading
// and writing. The process takes them with it. A byte in Start lets it go; Report then ends when its program runs, or has the call
// that failed (Late.Wait).
type Gate struct{ Start, Report *os.File }

// gateSize is how many descriptors of the stage a gate takes.
const gateSize = 2

// firstOurs is the first descriptor that is of no use any more once the container's root was entered.
func (c *compiler) firstOurs() int {
	if c.in.gate {
		return stage.Extra + gateSize
	}
	return stage.Extra
}

// waitForStart is wait, at the gate if there is one: until there the pipes of whoever made the process count, whose end ends it.
func (c *compiler) waitForStart() {
	defer func() { c.gate = c.Len() }()
	if !c.in.gate {
		c.wait()
		return
	}
	start, report := stage.Extra, stage.Extra+1
	c.Simple(unix.SYS_WRITE, "write", stage.Report, plan.Struct{Data: make([]byte, 8), Text: "{0}"}, 8)
	c.Simple(unix.SYS_DUP3, "dup3", report, stage.Report, unix.O_CLOEXEC)
	c.Simple(unix.SYS_DUP3, "dup3", start, stage.Start, unix.O_CLOEXEC)
	again := c.Label()
	c.Mark(again)
	c.Await(stage.Start, plan.Else(again, unix.EINTR))
}

// Late are the calls that a process still makes once it was started, so that another program can tell which one failed. It is
// plain data, for a file.
type Late struct {
	Program string       `json:"program"`
	Calls   []plan.Error `json:"calls"`
}

// Detach lets go of a process that was created with a Gate and waits there. It stays the caller's child.
func (p *Process) Detach() Late {
	l := Late{Program: p.argv[0]}
	for i := p.gate; i < p.run.Len(); i++ {
		l.Calls = append(l.Calls, *p.run.Explain(i, 0))
	}
	p.run.Close()
	_ = p.Pidfd.Close()
	return l
}

// Wait reads the report of a process that was let go. It returns nil once its program runs, or it was killed.
func (l *Late) Wait(report io.Reader) error {
	var b [8]byte
	if _, err := io.ReadFull(report, b[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return nil
		}
		return fmt.Errorf("the report of the process: %w", err)
	}
	index, errno := int(binary.LittleEndian.Uint32(b[:])), unix.Errno(binary.LittleEndian.Uint32(b[4:]))
	for i := range l.Calls {
		if e := &l.Calls[i]; e.Index == index {
			e.Errno = errno
			return explainCall(e, l.Program)
		}
	}
	return fmt.Errorf("call %d: %w", index, errno)
}
