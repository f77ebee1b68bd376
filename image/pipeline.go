package image

import (
	"crypto/sha256"
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"github.com/criserver/criserver/image/layer"
	"github.com/criserver/criserver/internal/inflate"
)

// A layer goes through four stages, each a goroutine, that hand on pieces of it:
//
//	feed     reads the blob, which hashes it and writes it to the content store
//	unpack   inflates
//	hash     has the digest of the tar
//	write    reads the tar and makes the files; it runs in the caller's goroutine
//
// So even one layer keeps both cores of a small machine busy. The pieces are pooled and few of a layer are under way at once.
const (
	// feedSize and pieceSize are those of the pieces before and after inflating. A core's second cache holds some.
	feedSize  = 128 << 10
	pieceSize = inflate.Window + 256<<10
	// queued is how many pieces wait for each stage at most.
	queued = 2
)

var (
	feedPool  = sync.Pool{New: func() any { return &piece{buf: make([]byte, feedSize)} }}
	piecePool = sync.Pool{New: func() any { return &piece{buf: make([]byte, pieceSize)} }}
	// decoders are some 200 KiB each.
	decoders = sync.Pool{New: func() any { return inflate.NewDecoder(nil) }}
)

// piece is a part of a stream. Whoever has read it releases it.
type piece struct {
	buf  []byte
	data []byte // of buf
	uses atomic.Int32
	pool *sync.Pool
}

func newPiece(pool *sync.Pool, uses int32) *piece {
	p := pool.Get().(*piece)
	p.pool = pool
	p.uses.Store(uses)
	return p
}

func (p *piece) release() {
	if p.uses.Add(-1) == 0 {
		p.data = nil
		p.pool.Put(p)
	}
}

// queue leads from one stage to the next. It has one reader, and is its io.Reader.
type queue struct {
	pieces chan *piece
	quit   chan struct{} // closed by the reader: nothing more is wanted
	err    error         // why the stream ended; set before pieces is closed
	now    *piece        // the reader's
	rest   []byte        // of now
}

func newQueue() *queue {
	return &queue{pieces: make(chan *piece, queued), quit: make(chan struct{})}
}

// put hands on a piece, and says whether more is wanted.
func (q *queue) put(p *piece) bool {
	select {
	case q.pieces <- p:
		return true
	case <-q.quit:
		p.release()
		return false
	}
}

// end is the last the writer does.
func (q *queue) end(err error) {
	q.err = err
	close(q.pieces)
}

// abandon is the last the reader does.
func (q *queue) abandon() {
	close(q.quit)
	q.rest = nil
	if q.now != nil {
		q.now.release()
		q.now = nil
	}
	for p := range q.pieces { // until the writer ends
		p.release()
	}
}

// next makes sure that there is something to read.
func (q *queue) next() error {
	for len(q.rest) == 0 {
		if q.now != nil {
			q.now.release()
			q.now = nil
		}
		p, ok := <-q.pieces
		if !ok {
			return q.err
		}
		q.now, q.rest = p, p.data
	}
	return nil
}

// Read implements io.Reader.
func (q *queue) Read(b []byte) (int, error) {
	if err := q.next(); err != nil {
		return 0, err
	}
	n := copy(b, q.rest)
	q.rest = q.rest[n:]
	return n, nil
}

// pipeline writes what source, a compressed tar, holds by way of the stages, and gives the digest of the tar. count is told of
// the bytes of the tar. When it returns no stage runs. After an error some of the source may not have been read.
func pipeline(source io.Reader, count func(int), write func(tar io.Reader) (layer.Result, error)) (layer.Result, digest.Digest, error) {
	var stages sync.WaitGroup
	packed, tar, hashed := newQueue(), newQueue(), newQueue()
	sum := sha256.New()
	stages.Go(func() { feed(source, packed) })
	stages.Go(func() {
		// The reader of the tar decides when it is enough; what is hashed is what that reads.
		tar.end(unpackTo(packed, func(p *piece) bool {
			count(len(p.data))
			return hashed.put(p) && tar.put(p)
		}))
		hashed.end(io.EOF)
		packed.abandon()
	})
	stages.Go(func() {
		for p := range hashed.pieces {
			sum.Write(p.data)
			p.release()
		}
	})
	result, err := write(tar)
	tar.abandon()
	stages.Wait()
	return result, digest.NewDigest(digest.SHA256, sum), err
}

// feed reads a stream to its end, or until it is enough.
func feed(source io.Reader, to *queue) {
	for {
		p := newPiece(&feedPool, 1)
		n, err := fill(source, p.buf)
		p.data = p.buf[:n]
		if !to.put(p) || err != nil {
			to.end(err)
			return
		}
	}
}

// fill reads until buf is full or the stream ends. Unlike io.ReadFull it gives the stream's own error.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var got int
		got, err = r.Read(buf[n:])
		n += got
	}
	return n, err
}

// errEnough says that nobody wants the rest.
var errEnough = errors.New("the rest is not wanted")

// unpackTo inflates a stream into pieces that two stages use. It ends with io.EOF when all is well.
func unpackTo(packed io.Reader, emit func(*piece) bool) error {
	next, done, err := inflater(packed)
	if err != nil {
		return err
	}
	defer done()
	for {
		p := newPiece(&piecePool, 2)
		n, err := next(p.buf)
		p.data = p.buf[inflate.Window : inflate.Window+n]
		if !emit(p) {
			return errEnough
		}
		if err != nil {
			return err
		}
	}
}
