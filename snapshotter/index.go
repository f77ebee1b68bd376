package snapshotter

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// index is what the Snapshotter knows. Its mutex guards all of it, nodes and layers included.
type index struct {
	nodes   map[string]*node
	layers  map[uint64]*layer
	keyed   map[digest.Digest]*layer // by diffID or chainID; only layers that may be shared
	flights map[digest.Digest]*flight
	busy    map[uint64]bool // directories that are being made, removed, or written, and have no record
	next    uint64          // number of the next directory

	problems []error // what was broken when the records were read
}

func newIndex() index {
	return index{
		nodes: map[string]*node{}, layers: map[uint64]*layer{}, keyed: map[digest.Digest]*layer{},
		flights: map[digest.Digest]*flight{}, busy: map[uint64]bool{}, next: 1,
	}
}

// state of a node; only published ones are seen by others.
//
//	reserved --settle--> published --hide--> leaving --drop--> (gone)
//	    \--drop--> (gone)     ^-----settle------/
type state int

const (
	reserved  state = iota // the name is taken, the record not yet written
	published              // the record is there
	leaving                // the record is being removed or replaced
)

// node is a snapshot of any kind.
type node struct {
	name             string
	kind             snapshots.Kind
	parent           *node
	labels           map[string]string
	created, updated time.Time
	state            state
	settled          chan struct{} // closed when the node leaves reserved or leaving
	children         int           // nodes whose parent this is, of any state

	number   uint64 // the directory, of an active snapshot or a view
	volatile bool   // made with LabelVolatile; never for a committed snapshot
	layer    *layer // of a committed snapshot
}

func (n *node) info() snapshots.Info {
	info := snapshots.Info{
		Kind: n.kind, Name: n.name, Labels: maps.Clone(n.labels), Created: n.created, Updated: n.updated,
	}
	if n.parent != nil {
		info.Parent = n.parent.name
	}
	return info
}

// layer is a committed layer directory.
type layer struct {
	number      uint64
	key         digest.Digest // "" for one that is not shared
	size        int64
	inodes      int64
	rootImplied bool
	opaque      bool // its root hides all layers below
	created     time.Time
	retired     []string // snapshots that may have it mounted; it was replaced by another directory (Rewrite)

	snapshots int  // committed snapshots that use it
	holds     int  // Layers that hold it
	missing   bool // its directory was found to be gone
	leaving   bool // its record is being removed
}

// get finds a snapshot that others may see.
func (x *index) get(key string) (*node, error) {
	n := x.nodes[key]
	if n == nil || n.state != published {
		return nil, fmt.Errorf("snapshot %q: %w", key, errdefs.ErrNotFound)
	}
	return n, nil
}

// parentFor finds a committed snapshot to build on; "" is none.
func (x *index) parentFor(name string) (*node, error) {
	if name == "" {
		return nil, nil
	}
	n, err := x.get(name)
	if err != nil {
		return nil, fmt.Errorf("parent: %w", err)
	}
	if n.kind != snapshots.KindCommitted {
		return nil, fmt.Errorf("parent snapshot %q is not committed: %w", name, errdefs.ErrInvalidArgument)
	}
	return n, nil
}

// reserve takes a name for a snapshot that is about to be recorded.
func (x *index) reserve(n *node) error {
	if n.name == "" {
		return fmt.Errorf("a snapshot needs a name: %w", errdefs.ErrInvalidArgument)
	}
	if x.nodes[n.name] != nil {
		return fmt.Errorf("snapshot %q: %w", n.name, errdefs.ErrAlreadyExists)
	}
	n.state, n.settled = reserved, make(chan struct{})
	x.nodes[n.name] = n
	if n.parent != nil {
		n.parent.children++
	}
	if n.layer != nil {
		n.layer.snapshots++
	}
	return nil
}

// settle ends a change of the node's record.
func (x *index) settle(n *node, to state) {
	n.state = to
	close(n.settled)
}

// hide begins a change that ends with the node gone, or with settle.
func (x *index) hide(n *node) {
	n.state, n.settled = leaving, make(chan struct{})
}

// drop forgets a snapshot whose record is not there (any more). It settles the node.
func (x *index) drop(n *node) {
	close(n.settled)
	delete(x.nodes, n.name)
	if n.parent != nil {
		n.parent.children--
	}
	if n.layer != nil {
		n.layer.snapshots--
	}
}

// dropAll forgets reserved snapshots, children first.
func (x *index) dropAll(nodes []*node) {
	for _, n := range slices.Backward(nodes) {
		x.drop(n)
	}
}

// number gives out a directory, which is busy until it has a record.
func (x *index) number() uint64 {
	n := x.next
	x.next++
	x.busy[n] = true
	return n
}

// addLayer makes a committed layer known.
func (x *index) addLayer(l *layer) {
	x.layers[l.number] = l
	delete(x.busy, l.number)
	if l.key != "" && x.keyed[l.key] == nil {
		x.keyed[l.key] = l
	}
}

// dropLayer forgets a layer; its directory is busy until it is gone.
func (x *index) dropLayer(l *layer) {
	delete(x.layers, l.number)
	x.busy[l.number] = true
	x.unkey(l)
}

// hideLayer begins the removal of a layer: nobody finds it any more.
func (x *index) hideLayer(l *layer) {
	l.leaving = true
	x.unkey(l)
}

// showLayer undoes hideLayer. When someone has begun to write the same layer anew, it is not shared any more.
func (x *index) showLayer(l *layer) {
	l.leaving = false
	if l.key != "" && x.keyed[l.key] == nil && x.flights[l.key] == nil {
		x.keyed[l.key] = l
	}
}

func (x *index) unkey(l *layer) {
	if x.keyed[l.key] == l {
		delete(x.keyed, l.key)
	}
}

// chain lists the layers of a snapshot, uppermost first, as overlayfs gets them: a layer that occurs twice only at its
// uppermost place, where it hides the other whole, and none beneath one whose root is opaque.
func chain(n *node) []*layer {
	var layers []*layer
	seen := map[*layer]bool{}
	for ; n != nil; n = n.parent {
		if n.layer == nil || seen[n.layer] {
			continue
		}
		seen[n.layer] = true
		layers = append(layers, n.layer)
		if n.layer.opaque {
			break
		}
	}
	return layers
}
