package registry

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Ranges says how large blobs are fetched by several requests at once, and bounds what all of them hold in memory.
type Ranges struct {
	count   int           // parts of one blob that are under way at once
	part    int64         // size of one
	least   int64         // smaller blobs are one stream
	slots   chan struct{} // one is taken for each part that is in memory
	buffers sync.Pool
}

const (
	partSize  = 8 << 20
	leastSize = 32 << 20
	maxAhead  = 48 << 20 // in memory, of all blobs together
	// stretch is how many parts are one request when no memory is free for parts ahead.
	stretch = 4
)

// NewRanges is for so many requests at once for one blob; nil, which is one stream a blob, for less than two.
func NewRanges(count int) *Ranges {
	if count < 2 {
		return nil
	}
	return newRanges(count, partSize, leastSize, maxAhead)
}

func newRanges(count int, part, least, memory int64) *Ranges {
	r := &Ranges{count: count, part: part, least: least, slots: make(chan struct{}, memory/part)}
	r.buffers.New = func() any { b := make([]byte, part); return &b }
	return r
}

// fetchParts opens a large blob. The first part's answer decides: an endpoint that knows no ranges sends the whole.
func (r *Repository) fetchParts(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	p := &parted{r: r, d: d, outer: ctx, next: min(r.ranges.part, d.Size)}
	p.ctx, p.cancel = context.WithCancel(ctx)
	head, err := r.fetch(p.ctx, d, 0, 0, p.next)
	if err != nil {
		p.cancel()
		if ctx.Err() == nil && rangeRefused(err) {
			return opened(r.fetch(ctx, d, 0, 0, d.Size))
		}
		return nil, err
	}
	if p.head = head; head.source.StatusCode != http.StatusPartialContent {
		head.end, p.next = d.Size, d.Size
	}
	return p, nil
}

// rangeRefused says whether an error may be due to the request's being one for a range.
func rangeRefused(err error) bool {
	var answer *answerError
	status := []int{http.StatusBadRequest, http.StatusRequestedRangeNotSatisfiable, http.StatusNotImplemented}
	return errdefs.IsDataLoss(err) || errors.As(err, &answer) && slices.Contains(status, answer.status)
}

// parted is a blob's stream of which parts are fetched at once. Nobody waits for memory: a blob that gets none for parts ahead
// goes on by a longer request that is read as it comes.
type parted struct {
	r      *Repository
	d      ocispec.Descriptor
	outer  context.Context // the caller's
	ctx    context.Context // of the parts; ends by cancel
	cancel context.CancelFunc
	head   *body   // read as it comes, before the parts ahead; nil for none
	ahead  []*part // in order
	next   int64   // what was not asked for begins here
	at     int64   // what was not handed out begins here
	single bool    // head is all the rest
	fills  sync.WaitGroup
}

// Read implements io.Reader.
func (p *parted) Read(b []byte) (int, error) {
	for {
		p.begin()
		var source io.Reader
		switch {
		case p.head != nil:
			source = p.head
		case len(p.ahead) > 0:
			source = p.ahead[0]
		case p.next == p.d.Size:
			return 0, io.EOF
		default:
			to := min(p.next+stretch*p.r.ranges.part, p.d.Size)
			head, err := p.r.fetch(p.ctx, p.d, p.next, p.next, to)
			if err == nil {
				p.head, p.next = head, to
			} else if err := p.alone(err, true); err != nil {
				return 0, err
			}
			continue
		}
		n, err := source.Read(b)
		p.at += int64(n)
		switch {
		case n > 0 || err == nil:
			return n, nil
		case err != io.EOF:
			if err := p.alone(err, p.head != nil); err != nil {
				return 0, err
			}
		case p.head != nil:
			p.head = nil
		default:
			p.drop(p.ahead[0])
			p.ahead = p.ahead[1:]
		}
	}
}

// begin has parts fetched, as many as may be under way and find memory.
func (p *parted) begin() {
	most := p.r.ranges.count
	if p.head != nil {
		most--
	}
	for len(p.ahead) < most && p.next < p.d.Size {
		select {
		case p.r.ranges.slots <- struct{}{}:
		default:
			return
		}
		from, to := p.next, min(p.next+p.r.ranges.part, p.d.Size)
		a := &part{buffer: p.r.ranges.buffers.Get().(*[]byte)}
		a.more.L = &a.mu
		p.next, p.ahead = to, append(p.ahead, a)
		p.fills.Go(func() { a.fill(p.ctx, p.r, p.d, from, to) })
	}
}

// alone goes on as one stream where parts do not work out: an endpoint that knows no ranges after all, or that bears fewer
// requests at once. Another error of the head, and content that is not the blob's, is final.
func (p *parted) alone(err error, head bool) error {
	if p.single || p.outer.Err() != nil || errdefs.IsDataLoss(err) || head && !errdefs.IsNotImplemented(err) {
		return err
	}
	p.stop()
	rest, err := p.r.fetch(p.outer, p.d, 0, p.at, p.d.Size)
	if err != nil {
		return err
	}
	p.head, p.next, p.single = rest, p.d.Size, true
	return nil
}

// stop ends all requests and gives the memory back.
func (p *parted) stop() {
	p.cancel()
	p.fills.Wait()
	if p.head != nil {
		p.head.close()
		p.head = nil
	}
	for _, a := range p.ahead {
		p.drop(a)
	}
	p.ahead = nil
}

// drop gives back the memory of a part that nobody fills.
func (p *parted) drop(a *part) {
	p.r.ranges.buffers.Put(a.buffer)
	a.buffer = nil
	<-p.r.ranges.slots
}

// Close implements io.Closer. When it returns nothing is fetched any more.
func (p *parted) Close() error {
	p.stop()
	p.next = p.d.Size
	return nil
}

// part is a part of a blob in memory. It is read while it is filled.
type part struct {
	buffer *[]byte
	read   int // by the reader alone
	mu     sync.Mutex
	more   sync.Cond
	filled int
	err    error // that it ends with; io.EOF when it is whole
}

// fill fetches the part. The bytes count as fetched when they are read; that they come is a sign of life.
func (a *part) fill(ctx context.Context, r *Repository, d ocispec.Descriptor, from, to int64) {
	stream, err := r.fetch(ctx, d, from, from, to)
	if err == nil {
		defer stream.close()
	}
	for n := 0; ; {
		if err == nil {
			n, err = stream.Read((*a.buffer)[a.filled : to-from])
		}
		if n > 0 && r.moved != nil {
			r.moved(1)
		}
		a.mu.Lock()
		a.filled, a.err = a.filled+n, err
		a.mu.Unlock()
		a.more.Signal()
		if err != nil {
			return
		}
	}
}

// Read implements io.Reader.
func (a *part) Read(b []byte) (int, error) {
	a.mu.Lock()
	for a.read == a.filled && a.err == nil {
		a.more.Wait()
	}
	filled, err := a.filled, a.err
	a.mu.Unlock()
	if a.read == filled {
		return 0, err
	}
	n := copy(b, (*a.buffer)[a.read:filled])
	a.read += n
	return n, nil
}
