package shimd

import (
	"errors"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stream carries the output of one FIFO or terminal to a log. While nothing comes it holds no buffer.
type stream struct {
	key  string // names its slot
	name string // "stdout" or "stderr"
	src  *os.File
	log  *logFile // nil: the output is thrown away
	pool *slotPool
	note *slog.Logger

	slot   *slot
	direct bool          // splice is not possible: a read goes straight to the slot
	done   chan struct{} // closed when all was read and logged
	taps   tapList
}

// adopt takes over the slot that an earlier shim's stream had. The error says what is lost.
func (s *stream) adopt(slot *slot) error {
	cut, err := slot.recover(time.Now().UnixNano())
	if cut >= 0 && s.log != nil {
		err = errors.Join(err, s.log.cut(cut))
	}
	s.slot = slot
	return err
}

// run ends when every writer has closed its end, or src is closed.
func (s *stream) run() {
	defer close(s.done)
	if s.log == nil {
		s.discard()
		return
	}
	if s.slot != nil {
		s.log.drain(s.slot, s.name, false)
	}
	for {
		n, err := s.fill()
		if n == 0 {
			if err != nil {
				s.note.Error("output is not read any more", "stream", s.key, "error", err)
			}
			break
		}
		if s.taps.any() {
			fill := s.slot.word().fill
			s.taps.write(s.slot.data()[fill-n : fill])
		}
		s.log.drain(s.slot, s.name, false)
		s.release()
	}
	if s.slot != nil {
		s.log.drain(s.slot, s.name, true)
		s.release()
	}
}

func (s *stream) release() {
	if s.slot != nil && s.slot.empty() {
		s.pool.put(s.slot)
		s.slot = nil
	}
}

// fill waits for output and takes a chunk of it into the slot. 0 means that there will be no more.
func (s *stream) fill() (n int, err error) {
	raw, err := s.src.SyscallConn()
	if err != nil {
		return 0, nil // closed
	}
	waited := raw.Read(func(fd uintptr) bool {
		if s.slot == nil {
			if s.slot, err = s.pool.get(s.key); err != nil {
				return true
			}
		}
		n, err = s.take(int(fd))
		if err == unix.EAGAIN {
			s.release()
			return false
		}
		return true
	})
	if waited != nil { // closed, or its deadline passed
		return 0, nil
	}
	if err == unix.EIO { // a terminal whose other side is closed
		return 0, nil
	}
	return n, err
}

// take moves what is there into the slot.
func (s *stream) take(fd int) (int, error) {
	if s.direct {
		return s.takeDirect(fd)
	}
	var n int64
	var err error
	for {
		n, err = splice(fd, s.slot.out, chunkSize)
		if err != unix.EINTR {
			break
		}
	}
	if err == unix.EINVAL {
		s.direct = true
		return s.takeDirect(fd)
	}
	if n <= 0 {
		return 0, err
	}
	return int(n), s.slot.receive(int(n), time.Now().UnixNano())
}

// takeDirect reads into the slot without a staging pipe. A kill between the read and the store after it loses the chunk.
func (s *stream) takeDirect(fd int) (int, error) {
	w := s.slot.compact(chunkSize)
	var n int
	var err error
	for {
		n, err = unix.Read(fd, s.slot.data()[w.fill:w.fill+chunkSize])
		if err != unix.EINTR {
			break
		}
	}
	if n <= 0 {
		return 0, err
	}
	s.slot.setStamp(time.Now().UnixNano())
	s.slot.setWord(slotWord{done: w.done, fill: w.fill + n})
	return n, nil
}

func splice(from, to, size int) (int64, error) {
	n, err := unix.Splice(from, nil, to, nil, size, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
	return int64(n), err
}

var discards = sync.Pool{New: func() any { b := make([]byte, chunkSize); return &b }}

// discard reads to the end and keeps nothing.
func (s *stream) discard() {
	raw, err := s.src.SyscallConn()
	if err != nil {
		return
	}
	for more := true; more; {
		err := raw.Read(func(fd uintptr) bool {
			b := discards.Get().(*[]byte)
			defer discards.Put(b)
			n, err := syscall.Read(int(fd), *b)
			if err == syscall.EAGAIN {
				return false
			}
			if n > 0 && s.taps.any() {
				s.taps.write((*b)[:n])
			}
			more = n > 0 || err == syscall.EINTR
			return true
		})
		if err != nil {
			return
		}
	}
}
