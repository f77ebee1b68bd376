package keeper

import (
	"strconv"

	"golang.org/x/sys/unix"
)

// serve answers the messages of one shim until its end of the socket is closed. It calls worked after each.
func (k *keeper) serve(sock int, worked func()) {
	buffer := make([]byte, MaxMessage)
	oob := make([]byte, unix.CmsgSpace(4*MaxDescriptors))
	for {
		message, fds, err := Receive(sock, buffer, oob)
		switch err {
		case nil:
			err = k.handle(sock, message, fds)
		case ErrClosed:
			return
		default:
			if _, errno := err.(unix.Errno); errno {
				say("receive from the shim: " + err.Error())
				return
			}
			err = Send(sock, []byte(VerbError+"\t"+err.Error()+"\n"), nil)
		}
		if err != nil {
			say("answer the shim: " + err.Error())
			return
		}
		worked()
	}
}

// handle carries out one message and answers it. The error is that of the answer.
func (k *keeper) handle(sock int, message string, fds []int) error {
	verb, fields := Split(message)
	switch {
	case verb == VerbPut:
		e, err := ParseEntry(fields)
		e.FDs = fds
		if err == nil && len(e.Names) != len(fds) {
			err = errMismatch
		}
		if err != nil {
			e.Close()
			return refuse(sock, err.Error())
		}
		k.replace(e.Key, &e)
	case verb == VerbDrop && len(fields) == 1:
		k.replace(fields[0], nil)
	case verb == VerbList:
		return k.list(sock)
	default:
		(&Entry{FDs: fds}).Close()
		return refuse(sock, "unknown message "+strconv.Quote(message))
	}
	return Send(sock, []byte(VerbOK+"\n"), nil)
}

const errMismatch = constError("keeper message: as many names as descriptors are wanted")

type constError string

func (e constError) Error() string { return string(e) }

func refuse(sock int, why string) error {
	return Send(sock, []byte(VerbError+"\t"+why+"\n"), nil)
}

func (k *keeper) replace(key string, e *Entry) {
	k.mu.Lock()
	old := k.entries[key]
	if e == nil {
		delete(k.entries, key)
	} else {
		k.entries[key] = e
	}
	k.mu.Unlock()
	if old != nil {
		old.Close()
	}
}

// list sends every entry. Only this goroutine changes the entries, so they may be read without the lock, which must not
// be held while a send waits for the shim to read.
func (k *keeper) list(sock int) error {
	for _, e := range k.entries {
		message, err := e.Message(VerbEntry)
		if err != nil {
			return err
		}
		if err := Send(sock, message, e.FDs); err != nil {
			return err
		}
	}
	return Send(sock, []byte(VerbEnd+"\n"), nil)
}
