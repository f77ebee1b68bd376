package shimd

import (
	"bytes"
	"sync"
	"testing"

	"github.com/criserver/criserver/shim/api"
)

func newQueue() (*tapQueue, *int) {
	lagged := new(int)
	return &tapQueue{news: make(chan struct{}, 1), lags: func() { *lagged++ }}, lagged
}

func TestTapQueueKeepsOrder(t *testing.T) {
	q, lagged := newQueue()
	out, errs := &tap{queue: q}, &tap{queue: q, stream: 1}
	b := []byte("a")
	out.offer(b)
	b[0] = 'b' // what is kept is a copy
	out.offer(b)
	errs.offer([]byte("c"))
	out.offer(bytes.Repeat([]byte("d"), api.Chunk))
	out.offer([]byte("e"))
	var got []string
	for _, c := range q.take() {
		text := string(c.data)
		got = append(got, string(rune('0'+c.stream))+text[:min(2, len(text))])
	}
	want := []string{"0ab", "1c", "0dd", "0e"}
	if len(got) != len(want) {
		t.Fatalf("%q, want %q", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if len(q.take()) > 0 || *lagged > 0 {
		t.Error("what was taken is there again, or the client counts as lagging")
	}
}

func TestTapQueueIsBounded(t *testing.T) {
	q, lagged := newQueue()
	b := make([]byte, 64<<10)
	for range tapLimit / len(b) {
		q.add(0, b)
	}
	if *lagged != 0 {
		t.Fatal("the client counts as lagging while all fits")
	}
	q.add(1, b[:1])
	q.add(1, b[:1])
	if *lagged != 1 || len(q.take()) != 0 {
		t.Errorf("told %d times, want once and nothing kept", *lagged)
	}
}

// TestTapListChanges adds and removes clients while a stream writes.
func TestTapListChanges(t *testing.T) {
	var list tapList
	stop := make(chan struct{})
	var writing, changing sync.WaitGroup
	writing.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				list.write([]byte("x"))
			}
		}
	})
	for range 4 {
		changing.Go(func() {
			for range 200 {
				q, _ := newQueue()
				mine := &tap{queue: q}
				list.add(mine)
				list.remove(mine)
			}
		})
	}
	changing.Wait()
	close(stop)
	writing.Wait()
	if list.any() {
		t.Error("a client is left")
	}
}
