package shimd

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/shim/keeper"
)

// A slot keeps one chunk of output, and a line that has no end yet, where a kill of the shim does not lose them: in
// memory that the keeper holds too. Its state is one word, changed by single atomic stores:
//
//	ready   --splice--> (bytes in the staging pipe) --begin--> reading --read--> ready --> writing --> ready
//
// and every state tells a successor what is left to do (recover). Only the stream that has the slot touches it.
const (
	slotSize   = 64 << 10
	slotHeader = 256
	slotData   = slotSize - slotHeader
	chunkSize  = 16 << 10 // at most read at once; also the size of FIFOs and staging pipes
	groupSlots = 32       // slots of one memfd; two descriptors each besides it fit one message to the keeper
	maxKey     = 192
)

// Offsets in a slot's header. The owner's key follows at offKey, its length before it; length 0 means that the slot is free.
const (
	offWord  = 0
	offStamp = 8  // when the last chunk was read, ns since the epoch
	offBase  = 16 // length of the log before the write in progress
	offOwner = 24
	offKey   = 32
)

type slotKind uint64

const (
	slotReady slotKind = iota
	slotReading
	slotWriting
)

// slotWord is the state: data[done:fill] waits to be logged; with slotReading n bytes are coming at fill.
type slotWord struct {
	kind          slotKind
	done, fill, n int
}

func (w slotWord) pack() uint64 {
	return uint64(w.kind)<<60 | uint64(w.done)<<40 | uint64(w.fill)<<20 | uint64(w.n)
}

func unpackWord(v uint64) slotWord {
	const mask = 1<<20 - 1
	return slotWord{kind: slotKind(v >> 60), done: int(v >> 40 & mask), fill: int(v >> 20 & mask), n: int(v & mask)}
}

func (w slotWord) valid() bool {
	return w.kind <= slotWriting && w.done <= w.fill && w.fill+w.n <= slotData
}

type slot struct {
	mem     []byte
	in, out int // staging pipe: read end, write end; the group owns them
}

func (s *slot) u64(offset int) *uint64 { return (*uint64)(unsafe.Pointer(&s.mem[offset])) }

func (s *slot) word() slotWord     { return unpackWord(atomic.LoadUint64(s.u64(offWord))) }
func (s *slot) setWord(w slotWord) { atomic.StoreUint64(s.u64(offWord), w.pack()) }
func (s *slot) stamp() int64       { return int64(atomic.LoadUint64(s.u64(offStamp))) }
func (s *slot) setStamp(ns int64)  { atomic.StoreUint64(s.u64(offStamp), uint64(ns)) }
func (s *slot) base() int64        { return int64(atomic.LoadUint64(s.u64(offBase))) }
func (s *slot) setBase(n int64)    { atomic.StoreUint64(s.u64(offBase), uint64(n)) }

// owner is the key of the stream that has the slot, "" when it is free.
func (s *slot) owner() string {
	n := atomic.LoadUint64(s.u64(offOwner))
	if n > maxKey {
		return ""
	}
	return string(s.mem[offKey : offKey+n])
}

func (s *slot) setOwner(key string) {
	copy(s.mem[offKey:offKey+maxKey], key)
	atomic.StoreUint64(s.u64(offOwner), uint64(len(key)))
}

func (s *slot) data() []byte { return s.mem[slotHeader:slotSize] }

// pending is what waits to be logged.
func (s *slot) pending() []byte {
	w := s.word()
	return s.data()[w.done:w.fill]
}

func (s *slot) empty() bool {
	w := s.word()
	return w.kind == slotReady && w.done == w.fill
}

// receive takes n bytes, which are in the staging pipe, into memory. At is when they were read from the workload.
func (s *slot) receive(n int, at int64) error {
	w := s.compact(n)
	s.setStamp(at)
	s.setWord(slotWord{kind: slotReading, done: w.done, fill: w.fill, n: n})
	return s.drainStaging()
}

// compact makes room for n bytes and answers the new state. What is pending is never more than a line and a chunk, so it
// moves to a place that does not overlap: until the one store that says so, the old place is whole.
func (s *slot) compact(n int) slotWord {
	w := s.word()
	if w.fill+n <= slotData {
		return w
	}
	size := copy(s.data(), s.data()[w.done:w.fill])
	w = slotWord{fill: size}
	s.setWord(w)
	return w
}

// drainStaging finishes the state slotReading: of the n bytes that were announced, those that are not in the staging pipe
// have been read already.
func (s *slot) drainStaging() error {
	w := s.word()
	left, err := unix.IoctlGetInt(s.in, unix.TIOCINQ)
	if err != nil {
		return fmt.Errorf("size of a staging pipe: %w", err)
	}
	for at := w.fill + w.n - left; left > 0; {
		n, err := unix.Read(s.in, s.data()[at:at+left])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return fmt.Errorf("read a staging pipe, %d bytes: %w", left, err)
		}
		at += n
		left -= n
	}
	s.setWord(slotWord{done: w.done, fill: w.fill + w.n})
	return nil
}

// recover brings a slot whose user was killed at any instant to slotReady. It answers to what length the log must be cut
// first, or -1.
func (s *slot) recover(now int64) (cut int64, err error) {
	w := s.word()
	if !w.valid() {
		s.setWord(slotWord{})
		return -1, fmt.Errorf("a log slot of %s is damaged, what it held is lost", s.owner())
	}
	cut = -1
	switch w.kind {
	case slotReading:
		if err := s.drainStaging(); err != nil {
			return -1, err
		}
	case slotWriting:
		cut = s.base()
		s.setWord(slotWord{done: w.done, fill: w.fill})
	}
	left, err := unix.IoctlGetInt(s.in, unix.TIOCINQ)
	if err == nil && left > 0 {
		err = s.receive(left, now)
	}
	return cut, err
}

// slotPool hands out slots and makes more when all are taken. It may be used concurrently.
type slotPool struct {
	hold func(keeper.Entry) error // gives a new group to the keeper

	mu     sync.Mutex
	free   []*slot
	groups int
}

// get takes a slot for the stream named key.
func (p *slotPool) get(key string) (*slot, error) {
	if len(key) > maxKey {
		return nil, fmt.Errorf("log slot: the name %q is longer than %d bytes", key, maxKey)
	}
	for {
		p.mu.Lock()
		if n := len(p.free); n > 0 {
			s := p.free[n-1]
			p.free = p.free[:n-1]
			p.mu.Unlock()
			s.setWord(slotWord{})
			s.setOwner(key)
			return s, nil
		}
		p.groups++
		number := p.groups
		p.mu.Unlock()
		slots, entry, err := newSlotGroup(number)
		if err != nil {
			return nil, err
		}
		if err := p.hold(entry); err != nil {
			entry.Close()
			_ = unix.Munmap(slots[0].mem[: groupSlots*slotSize : groupSlots*slotSize])
			return nil, fmt.Errorf("give log slots to the keeper: %w", err)
		}
		p.mu.Lock()
		p.free = append(p.free, slots...)
		p.mu.Unlock()
	}
}

// put gives an empty slot back.
func (p *slotPool) put(s *slot) {
	s.setOwner("")
	p.mu.Lock()
	p.free = append(p.free, s)
	p.mu.Unlock()
}

// adopt takes over a group of an earlier shim and answers its slots that belong to a stream. The descriptors become the pool's.
func (p *slotPool) adopt(e keeper.Entry) ([]*slot, error) {
	number, err := strconv.Atoi(strings.TrimPrefix(e.Key, slotPrefix))
	if err != nil || len(e.FDs) != 1+2*groupSlots {
		return nil, fmt.Errorf("the keeper's entry %q with %d descriptors is no group of log slots", e.Key, len(e.FDs))
	}
	slots, err := mapSlots(e.FDs)
	if err != nil {
		return nil, err
	}
	var owned []*slot
	p.mu.Lock()
	defer p.mu.Unlock()
	p.groups = max(p.groups, number)
	for _, s := range slots {
		if s.owner() != "" {
			owned = append(owned, s)
		} else {
			p.free = append(p.free, s)
		}
	}
	return owned, nil
}

const slotPrefix = "slots/"

// newSlotGroup makes the descriptors of a group. They stay open as long as the process lives.
func newSlotGroup(number int) (slots []*slot, e keeper.Entry, err error) {
	e = keeper.Entry{Key: slotPrefix + strconv.Itoa(number), Names: []string{"memory"}}
	defer func() {
		if err != nil {
			e.Close()
		}
	}()
	fd, err := unix.MemfdCreate("criserver-log-slots", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, e, fmt.Errorf("memory for log slots: %w", err)
	}
	e.FDs = append(e.FDs, fd)
	if err := unix.Ftruncate(fd, groupSlots*slotSize); err != nil {
		return nil, e, fmt.Errorf("memory for log slots: %w", err)
	}
	for i := range groupSlots {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			return nil, e, fmt.Errorf("staging pipe of a log slot: %w", err)
		}
		e.FDs = append(e.FDs, p[0], p[1])
		e.Names = append(e.Names, "in"+strconv.Itoa(i), "out"+strconv.Itoa(i))
		if _, err := unix.FcntlInt(uintptr(p[0]), unix.F_SETPIPE_SZ, chunkSize); err != nil {
			return nil, e, fmt.Errorf("size of a staging pipe: %w", err)
		}
	}
	slots, err = mapSlots(e.FDs)
	return slots, e, err
}

func mapSlots(fds []int) ([]*slot, error) {
	mem, err := unix.Mmap(fds[0], 0, groupSlots*slotSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map log slots: %w", err)
	}
	slots := make([]*slot, groupSlots)
	for i := range slots {
		slots[i] = &slot{mem: mem[i*slotSize : (i+1)*slotSize], in: fds[1+2*i], out: fds[2+2*i]}
	}
	return slots, nil
}
