package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// testPart is the size of the parts of a large blob in these tests, which has ten and a half.
const testPart = 64 << 10

// large is a blob that is served by range, unless answer does; it is told of the first byte that is asked for, -1 for all.
type large struct {
	*Repository
	ocispec.Descriptor
	data  []byte
	asked atomic.Int32
}

func newLarge(t *testing.T, ranges *Ranges, answer func(w http.ResponseWriter, r *http.Request, data []byte, from int) bool) *large {
	t.Helper()
	l := &large{data: make([]byte, 10*testPart+testPart/2)}
	_, _ = rand.NewChaCha8([32]byte{1}).Read(l.data)
	l.Descriptor = ocispec.Descriptor{Digest: digest.FromBytes(l.data), Size: int64(len(l.data))}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.asked.Add(1)
		from := -1
		_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
		if answer == nil || !answer(w, r, l.data, from) {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(l.data))
		}
	}))
	t.Cleanup(server.Close)
	var err error
	l.Repository, err = Open(t.Context(), Config{Backoff: time.Millisecond, Ranges: ranges}, strings.TrimPrefix(server.URL, "http://")+"/a:1", Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Repository.Close)
	return l
}

// read gets the whole and holds it against what was served.
func (l *large) read(ctx context.Context) error {
	stream, err := l.Fetch(ctx, l.Descriptor)
	if err != nil {
		return err
	}
	defer stream.Close()
	got, err := io.ReadAll(stream)
	if err == nil && !bytes.Equal(got, l.data) {
		err = errors.New("it is not what was served")
	}
	return err
}

func testRanges() *Ranges { return newRanges(3, testPart, 2*testPart, 6*testPart) }

// whole answers without regard to ranges.
func whole(w http.ResponseWriter, data []byte) bool {
	_, _ = w.Write(data)
	return true
}

// TestRanges reads a blob by parts from registries that do so well and badly.
func TestRanges(t *testing.T) {
	var once sync.Once
	var resumed atomic.Bool
	var busy atomic.Int32
	second, third := make(chan struct{}), make(chan struct{})
	for name, test := range map[string]struct {
		answer func(w http.ResponseWriter, r *http.Request, data []byte, from int) bool
		asked  int32 // at most, if not 0
		kind   func(error) bool
	}{
		"good": {asked: 11},
		"the first part last": {asked: 11, answer: func(w http.ResponseWriter, r *http.Request, data []byte, from int) bool {
			switch from {
			case 0:
				w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", testPart-1, len(data)))
				w.WriteHeader(http.StatusPartialContent)
				w.(http.Flusher).Flush()
				for _, later := range []chan struct{}{third, second} {
					select {
					case <-later:
					case <-r.Context().Done():
					}
				}
				_, _ = w.Write(data[:testPart])
				return true
			case testPart, 2 * testPart:
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
				close(map[int]chan struct{}{testPart: second, 2 * testPart: third}[from])
				return true
			}
			return false
		}},
		"no ranges": {asked: 1, answer: func(w http.ResponseWriter, _ *http.Request, data []byte, _ int) bool { return whole(w, data) }},
		"ranges are an error": {asked: 2, answer: func(w http.ResponseWriter, _ *http.Request, _ []byte, from int) bool {
			if from >= 0 {
				w.WriteHeader(http.StatusBadRequest)
			}
			return from >= 0
		}},
		"ranges at first only": {answer: func(w http.ResponseWriter, _ *http.Request, data []byte, from int) bool {
			return from >= 3*testPart && whole(w, data)
		}},
		"one request at once": {answer: func(w http.ResponseWriter, r *http.Request, data []byte, from int) bool {
			defer busy.Add(-1)
			if busy.Add(1) > 1 {
				w.WriteHeader(http.StatusTooManyRequests)
				return true
			}
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
			return true
		}},
		"a part is cut": {asked: 12, answer: func(w http.ResponseWriter, _ *http.Request, data []byte, from int) bool {
			if from > testPart && from < 2*testPart {
				resumed.Store(true)
			}
			if from != testPart {
				return false
			}
			once.Do(func() {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, 2*testPart-1, len(data)))
				w.Header().Set("Content-Length", fmt.Sprint(testPart))
				w.WriteHeader(http.StatusPartialContent)
				_, _ = w.Write(data[from : from+testPart/2])
			})
			return true
		}},
		"a part of another size": {kind: errdefs.IsDataLoss, answer: func(w http.ResponseWriter, r *http.Request, data []byte, from int) bool {
			if from == 2*testPart {
				data = append(bytes.Clone(data), 0)
			}
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
			return true
		}},
		"a part from elsewhere": {kind: errdefs.IsDataLoss, answer: func(w http.ResponseWriter, r *http.Request, _ []byte, from int) bool {
			if from == testPart {
				r.Header.Set("Range", "bytes=0-1")
			}
			return false
		}},
		"gone": {kind: errdefs.IsNotFound, answer: func(w http.ResponseWriter, r *http.Request, _ []byte, from int) bool {
			if from >= testPart {
				http.NotFound(w, r)
			}
			return from >= testPart
		}},
	} {
		t.Run(name, func(t *testing.T) {
			ranges := testRanges()
			l := newLarge(t, ranges, test.answer)
			err := l.read(t.Context())
			if test.kind == nil && err != nil || test.kind != nil && (err == nil || !test.kind(err)) {
				t.Errorf("error: %v", err)
			}
			if n := l.asked.Load(); test.asked > 0 && n > test.asked {
				t.Errorf("%d requests, want %d", n, test.asked)
			}
			if n := len(ranges.slots); n != 0 {
				t.Errorf("%d parts are still in memory", n)
			}
		})
	}
	if !resumed.Load() {
		t.Error("the part that was cut was not resumed where it broke off")
	}
}

// TestRangesEnd closes and cancels while parts are on their way.
func TestRangesEnd(t *testing.T) {
	ranges := testRanges()
	waiting := make(chan struct{}, 100)
	l := newLarge(t, ranges, func(_ http.ResponseWriter, r *http.Request, _ []byte, from int) bool {
		if from == 0 {
			return false
		}
		waiting <- struct{}{}
		<-r.Context().Done()
		return true
	})
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	for _, cancelled := range []bool{false, true} {
		stream, err := l.Fetch(ctx, l.Descriptor)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(stream, make([]byte, testPart)); err != nil {
			t.Fatal(err)
		}
		<-waiting
		<-waiting
		if cancelled {
			why := errors.New("enough")
			cancel(why)
			if _, err := stream.Read(make([]byte, 1)); !errors.Is(err, why) {
				t.Errorf("cancelled: %v", err)
			}
		}
		if err := stream.Close(); err != nil {
			t.Error(err)
		}
		stacks := make([]byte, 1<<20)
		if stacks = stacks[:runtime.Stack(stacks, true)]; bytes.Contains(stacks, []byte("(*part).fill")) {
			t.Errorf("after Close a part is being filled:\n%s", stacks)
		}
		if n := len(ranges.slots); n != 0 {
			t.Errorf("%d parts are still in memory", n)
		}
	}
}

// TestRangesMemory reads more blobs at once than there is memory for parts of.
func TestRangesMemory(t *testing.T) {
	ranges := newRanges(3, testPart, 2*testPart, 3*testPart)
	var streams []io.ReadCloser
	var blobs []*large
	for range 4 {
		l := newLarge(t, ranges, nil)
		stream, err := l.Fetch(t.Context(), l.Descriptor)
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
		if _, err := io.ReadFull(stream, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		streams, blobs = append(streams, stream), append(blobs, l)
	}
	ahead := 0
	for _, s := range streams {
		ahead += len(s.(*parted).ahead)
	}
	if ahead != 3 {
		t.Errorf("%d parts are in memory, want the 3 that there is room for", ahead)
	}
	// The last finds no memory as long as the others hold it, and comes to its end none the less.
	for i := len(streams) - 1; i >= 0; i-- {
		got, err := io.ReadAll(streams[i])
		if err != nil || !bytes.Equal(got, blobs[i].data[1:]) {
			t.Errorf("blob %d: %d bytes, %v", i, len(got), err)
		}
	}
	if n := blobs[3].asked.Load(); n != 4 { // a part, two stretches of four, what is left
		t.Errorf("without memory there were %d requests, want 4", n)
	}
	var all sync.WaitGroup
	for _, l := range blobs {
		all.Go(func() {
			if err := l.read(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := len(ranges.slots); n != 0 {
		t.Errorf("%d parts are still in memory", n)
	}
}
