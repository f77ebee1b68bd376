package keeper

import (
	"errors"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Verbs of the messages between shim and keeper.
const (
	VerbPut   = "put"
	VerbDrop  = "drop"
	VerbList  = "list"
	VerbOK    = "ok"
	VerbError = "error"
	VerbEntry = "entry"
	VerbEnd   = "end"
)

// Entry is what the keeper holds under one key.
type Entry struct {
	Key string
	// PID is the process whose exit record is to be written when it ends as an orphan; 0: none.
	PID int
	// Dir is the directory of the exit record; "" means that none is written.
	Dir string
	// Names say what the descriptors are, one each. The one named "pidfd" identifies PID.
	Names []string
	// Extra is text that the keeper keeps and does not read.
	Extra string
	// FDs are the descriptors, in the order of Names. Who received an entry owns them.
	FDs []int
}

// Close closes the entry's descriptors.
func (e *Entry) Close() {
	for _, fd := range e.FDs {
		_ = unix.Close(fd)
	}
	e.FDs = nil
}

// FD returns the descriptor with that name, or -1.
func (e *Entry) FD(name string) int {
	for i, n := range e.Names {
		if n == name && i < len(e.FDs) {
			return e.FDs[i]
		}
	}
	return -1
}

// Message encodes the entry behind a verb. An error means that a field holds a tab or a newline, or that the entry is
// too large for one datagram.
func (e *Entry) Message(verb string) ([]byte, error) {
	fields := []string{verb, e.Key, strconv.Itoa(e.PID), e.Dir, strings.Join(e.Names, ","), e.Extra}
	for _, f := range fields {
		if strings.ContainsAny(f, "\t\n") {
			return nil, errors.New("keeper message: a tab or newline in " + strconv.Quote(f))
		}
	}
	b := []byte(strings.Join(fields, "\t") + "\n")
	if len(b) > MaxMessage || len(e.FDs) > MaxDescriptors {
		return nil, errors.New("keeper message: " + e.Key + " has " + strconv.Itoa(len(b)) + " bytes and " + strconv.Itoa(len(e.FDs)) + " descriptors")
	}
	return b, nil
}

// Split separates a message's verb from its fields.
func Split(message string) (verb string, fields []string) {
	parts := strings.Split(strings.TrimSuffix(message, "\n"), "\t")
	return parts[0], parts[1:]
}

// ParseEntry decodes the fields of a put or an entry. It does not set FDs.
func ParseEntry(fields []string) (Entry, error) {
	if len(fields) != 5 {
		return Entry{}, errors.New("keeper message: " + strconv.Itoa(len(fields)) + " fields instead of 5")
	}
	e := Entry{Key: fields[0], Dir: fields[2], Extra: fields[4]}
	if e.Key == "" {
		return Entry{}, errors.New("keeper message: no key")
	}
	pid, err := strconv.Atoi(fields[1])
	if err != nil || pid < 0 {
		return Entry{}, errors.New("keeper message: " + e.Key + ": pid " + strconv.Quote(fields[1]))
	}
	e.PID = pid
	if fields[3] != "" {
		e.Names = strings.Split(fields[3], ",")
	}
	return e, nil
}

// Send sends one message with descriptors, which stay the caller's. On a blocking socket it waits for room; on another
// it can answer EAGAIN.
func Send(sock int, message []byte, fds []int) error {
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	for {
		err := unix.Sendmsg(sock, message, rights, nil, unix.MSG_NOSIGNAL)
		if err != unix.EINTR {
			return err
		}
	}
}

// ErrClosed means that the other end of the socket pair is gone.
var ErrClosed = errors.New("the other end is closed")

// Receive receives one message and its descriptors, which are close-on-exec and the caller's. Buffer holds MaxMessage
// bytes, oob unix.CmsgSpace(4*MaxDescriptors).
func Receive(sock int, buffer, oob []byte) (message string, fds []int, err error) {
	var n, oobn, flags int
	for {
		n, oobn, flags, _, err = unix.Recvmsg(sock, buffer, oob, unix.MSG_CMSG_CLOEXEC)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		if err == unix.ECONNRESET {
			err = ErrClosed
		}
		return "", nil, err
	}
	fds = rights(oob[:oobn])
	switch {
	case n == 0:
		err = ErrClosed
	case flags&(unix.MSG_CTRUNC|unix.MSG_TRUNC) != 0:
		err = errors.New("keeper message: truncated, the limit of open files may be reached")
	}
	if err != nil {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
		return "", nil, err
	}
	return string(buffer[:n]), fds, nil
}

func rights(oob []byte) []int {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var fds []int
	for i := range messages {
		if got, err := unix.ParseUnixRights(&messages[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds
}
