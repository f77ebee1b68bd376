package api

import (
	"context"
	"io"
)

// The transport of ExecStream and Attach ends a stream whose receiver lags, so both sides count: one has at most Window
// messages with bytes on the way, each of at most Chunk, that the other has not said to have taken.
const (
	Window = 32
	Chunk  = 16 << 10
)

// takenEvery is how many messages are taken before that is said.
const takenEvery = Window / 4

// Streams are a client's ends of a process's standard streams; nil: there is none. Stdin is read until it ends, by a goroutine
// that may outlive the call: who passes it sees to it that its reads end.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Resize tells the size of the client's terminal, first and whenever it changes.
	Resize <-chan WindowSize
}

// WindowSize is the size of a terminal in characters.
type WindowSize struct{ Width, Height uint16 }

// Credit is what a sender may still send. It may be used concurrently.
type Credit chan struct{}

// NewCredit is that of a new stream.
func NewCredit() Credit {
	c := make(Credit, Window)
	c.Give(Window)
	return c
}

// Take waits for room for a message. Once ctx has ended it answers false.
func (c Credit) Take(ctx context.Context) bool {
	if ctx.Err() != nil {
		return false
	}
	select {
	case <-c:
		return true
	case <-ctx.Done():
		return false
	}
}

// Give adds what the other side says to have taken. It never blocks, whatever that is.
func (c Credit) Give(n uint32) {
	for range min(n, Window) {
		select {
		case c <- struct{}{}:
		default:
			return
		}
	}
}

// Taken counts messages that were passed on. It is for one goroutine.
type Taken uint32

// Add counts one; when it is time to say so, it answers with the number to say, else with 0.
func (t *Taken) Add() uint32 {
	*t++
	if *t < takenEvery {
		return 0
	}
	n := uint32(*t)
	*t = 0
	return n
}
