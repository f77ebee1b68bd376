package seccomp

import (
	"container/list"
	"crypto/sha256"
	"encoding/binary"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Cache compiles each profile once. It keeps the programs of the profiles that were asked for last. It is safe for
// concurrent use; profiles that are asked for for the first time at the same time may be compiled more than once.
type Cache struct {
	limit int

	mu      sync.Mutex
	entries map[[sha256.Size]byte]*list.Element
	recent  *list.List // of *cached, the last used first
}

type cached struct {
	key     [sha256.Size]byte
	program *Program
}

// NewCache makes a cache of at most limit programs, at least one. A program of the default profile takes 3 KiB.
func NewCache(limit int) *Cache {
	return &Cache{limit: max(limit, 1), entries: map[[sha256.Size]byte]*list.Element{}, recent: list.New()}
}

// Compile is the package's Compile, from the cache where the same profile was compiled before. The program is shared
// and must not be changed. Errors are not kept.
func (c *Cache) Compile(s *specs.LinuxSeccomp) (*Program, error) {
	key := digest(s)
	if p := c.get(key); p != nil {
		return p, nil
	}
	p, err := Compile(s)
	if err != nil {
		return nil, err
	}
	c.put(key, p)
	return p, nil
}

// digest names a profile by its content. Every field is written with its length or a mark of its own, so that no two
// profiles are written alike; encoding as JSON would take ten times as long and would not tell missing flags from none.
func digest(s *specs.LinuxSeccomp) [sha256.Size]byte {
	b := make([]byte, 0, 16<<10)
	text := func(v string) { b = append(binary.AppendUvarint(b, uint64(len(v))), v...) }
	number := func(v uint64) { b = binary.AppendUvarint(b, v) }
	optional := func(v *uint) {
		if v == nil {
			number(0)
			return
		}
		number(1)
		number(uint64(*v))
	}
	text(string(s.DefaultAction))
	optional(s.DefaultErrnoRet)
	number(uint64(len(s.Architectures)))
	for _, a := range s.Architectures {
		text(string(a))
	}
	if s.Flags == nil { // not the same as an empty list
		number(0)
	} else {
		number(1)
		number(uint64(len(s.Flags)))
	}
	for _, f := range s.Flags {
		text(string(f))
	}
	text(s.ListenerPath)
	text(s.ListenerMetadata)
	for _, call := range s.Syscalls {
		number(uint64(len(call.Names)))
		for _, name := range call.Names {
			text(name)
		}
		text(string(call.Action))
		optional(call.ErrnoRet)
		number(uint64(len(call.Args)))
		for _, a := range call.Args {
			number(uint64(a.Index))
			number(a.Value)
			number(a.ValueTwo)
			text(string(a.Op))
		}
	}
	return sha256.Sum256(b)
}

func (c *Cache) get(key [sha256.Size]byte) *Program {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[key]
	if !ok {
		return nil
	}
	c.recent.MoveToFront(e)
	return e.Value.(*cached).program
}

func (c *Cache) put(key [sha256.Size]byte, p *Program) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.entries[key]; ok {
		return
	}
	c.entries[key] = c.recent.PushFront(&cached{key, p})
	for c.recent.Len() > c.limit {
		oldest := c.recent.Remove(c.recent.Back()).(*cached)
		delete(c.entries, oldest.key)
	}
}
