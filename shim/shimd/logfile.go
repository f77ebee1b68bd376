package shimd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// When the log cannot be written (the disk is full, say), the write is tried again for retryLimit, which holds the workload
// back by its full pipe. After that output is dropped, so that the workload goes on, until a write succeeds again: then
// a record says how much is missing.
const (
	retryFirst = 50 * time.Millisecond
	retryLast  = time.Second
	retryLimit = 10 * time.Second
)

// scratchSize is the size of the buffers in which records are formatted.
const scratchSize = 64 << 10

var scratches = sync.Pool{New: func() any { b := make([]byte, 0, scratchSize); return &b }}

// writers bounds the writes to log files that are in progress. A write to a dead filesystem blocks a thread, and a
// process with 10,000 threads is ended by Go's runtime.
var writers = make(chan struct{}, 4096)

// logFile is the log of one container. One write is in progress at a time: who has the token in turn owns the fields
// below it, so a log that stalls stops the streams of its own container and nothing else.
type logFile struct {
	path     string
	retryFor time.Duration
	closed   chan struct{} // closed by close: ends retries
	once     sync.Once

	turn    chan struct{}
	file    *os.File
	lost    int64 // bytes of output that were dropped since the last write that succeeded
	lostFor error
}

// openLog opens a log for appending and makes it if it is missing. The parent directory must exist. A symbolic link or
// anything else than a regular file is refused: the directory may be writable for others than us.
func openLog(path string) (*os.File, error) {
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("directory of the log %s: %w", path, err)
	}
	defer unix.Close(dir)
	// O_NONBLOCK, because opening a FIFO would wait for a reader; regular files ignore it.
	fd, err := unix.Openat(dir, filepath.Base(path), unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o640)
	if err != nil {
		return nil, fmt.Errorf("log %s: %w", path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("log %s is no regular file", path)
	}
	// Blocking from here on, lest the file be given to the poller.
	_ = unix.SetNonblock(fd, false)
	return os.NewFile(uintptr(fd), path), nil
}

func newLogFile(path string, file *os.File) *logFile {
	l := &logFile{path: path, retryFor: retryLimit, file: file, closed: make(chan struct{}), turn: make(chan struct{}, 1)}
	l.turn <- struct{}{}
	return l
}

// close ends retries, and closes the file when no write is in progress any more.
func (l *logFile) close() {
	l.once.Do(func() {
		close(l.closed)
		go func() { // a write to a dead filesystem may never return; it is left to itself
			<-l.turn
			_ = l.file.Close()
		}()
	})
}

// replace makes the log append to another file: rotation. Held is called with it before it is used.
func (l *logFile) replace(ctx context.Context, held func(*os.File) error) error {
	select {
	case <-l.turn:
	case <-l.closed:
		return os.ErrClosed
	case <-ctx.Done():
		return fmt.Errorf("log %s: a write to it does not return: %w", l.path, ctx.Err())
	}
	defer func() { l.turn <- struct{}{} }()
	file, err := openLog(l.path)
	if err != nil {
		return err
	}
	if err := held(file); err != nil {
		_ = file.Close()
		return err
	}
	_ = l.file.Close()
	l.file = file
	return nil
}

// drain logs what is pending in a slot; with final, a line without its newline too.
func (l *logFile) drain(s *slot, stream string, final bool) {
	select {
	case <-l.turn:
	case <-l.closed:
		s.setWord(slotWord{})
		return
	}
	defer func() { l.turn <- struct{}{} }()
	scratch := scratches.Get().(*[]byte)
	defer scratches.Put(scratch)
	for {
		w := s.word()
		at := time.Unix(0, s.stamp())
		b := l.note((*scratch)[:0], at)
		b, used := appendCRI(b, s.data()[w.done:w.fill], at, stream, final, scratchSize)
		if used == 0 {
			return
		}
		if err := l.write(s, b); err != nil {
			l.lost += int64(used)
			l.lostFor = err
		} else {
			l.lost, l.lostFor = 0, nil
		}
		w = slotWord{done: w.done + used, fill: w.fill}
		if w.done == w.fill {
			w = slotWord{}
		}
		s.setWord(w)
	}
}

// note begins a write with the record of what was lost before it.
func (l *logFile) note(b []byte, at time.Time) []byte {
	if l.lost == 0 {
		return b
	}
	b = at.UTC().AppendFormat(b, stampLayout)
	b = append(b, " stderr F criserver: "...)
	b = strconv.AppendInt(b, l.lost, 10)
	b = append(b, " bytes of output could not be logged: "...)
	b = append(b, l.lostFor.Error()...)
	return append(b, '\n')
}

// write appends b whole, or not at all.
func (l *logFile) write(s *slot, b []byte) error {
	writers <- struct{}{}
	defer func() { <-writers }()
	began, pause := time.Now(), retryFirst
	for {
		err := l.attempt(s, b)
		if err == nil || l.lost > 0 || time.Since(began) > l.retryFor {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-l.closed:
			timer.Stop()
			return err
		}
		pause = min(2*pause, retryLast)
	}
}

func (l *logFile) attempt(s *slot, b []byte) error {
	info, err := l.file.Stat()
	if err != nil {
		return errors.Unwrap(err)
	}
	base := info.Size()
	w := s.word()
	s.setBase(base)
	s.setWord(slotWord{kind: slotWriting, done: w.done, fill: w.fill})
	if _, err = l.file.Write(b); err != nil {
		// Not half a record: what was written of it goes again.
		_ = l.file.Truncate(base)
		s.setWord(slotWord{done: w.done, fill: w.fill})
		var path *os.PathError
		if errors.As(err, &path) {
			err = path.Err
		}
	}
	return err
}

// cut finishes the recovery of a slot whose write was interrupted.
func (l *logFile) cut(length int64) error {
	<-l.turn
	defer func() { l.turn <- struct{}{} }()
	info, err := l.file.Stat()
	if err != nil {
		return err
	}
	if info.Size() <= length { // nothing had been written, or someone emptied the file
		return nil
	}
	return l.file.Truncate(length)
}
