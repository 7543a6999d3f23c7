package view

import (
	"maps"
	"slices"
)

// Layer holds changes to the rows below it in memory. The zero Layer is of no use; see NewLayer. It is not
// safe for concurrent use.
type Layer struct {
	below Getter
	rows  map[string][]byte // nil: deleted
	slab  []byte            // from which values are cut, to spare the allocator
	size  int               // bytes of keys and values, about

	sessions map[string][]byte // session rows read from below: each of thousands of blocks asks for the same one
}

// slabSize is the size of the pieces in which a Layer takes memory for values, bytes.
const slabSize = 32 << 10

// maxSessions bounds the session rows that a Layer remembers.
const maxSessions = 4096

// NewLayer returns an empty layer above below.
func NewLayer(below Getter) *Layer { return &Layer{below: below, rows: map[string][]byte{}} }

// Get is part of Rows.
func (l *Layer) Get(key []byte) ([]byte, error) {
	if v, ok := l.rows[string(key)]; ok {
		return v, nil
	}
	if key[0] != rowSession {
		return l.below.Get(key)
	}
	if v, ok := l.sessions[string(key)]; ok {
		return v, nil
	}
	v, err := l.below.Get(key)
	if err == nil && v != nil {
		if l.sessions == nil || len(l.sessions) >= maxSessions {
			l.sessions = map[string][]byte{}
		}
		l.sessions[string(key)] = v
	}
	return v, err
}

// Put is part of Rows.
func (l *Layer) Put(key, val []byte) error {
	if old, ok := l.rows[string(key)]; ok && old != nil && len(old) == len(val) {
		copy(old, val)
		return nil
	}
	l.size += len(key) + len(val)
	l.rows[string(key)] = l.keep(val)
	return nil
}

// Delete is part of Rows.
func (l *Layer) Delete(key []byte) error {
	l.rows[string(key)] = nil
	return nil
}

// keep copies v.
func (l *Layer) keep(v []byte) []byte {
	if len(v) > slabSize/4 {
		return slices.Clone(v)
	}
	if len(l.slab)+len(v) > cap(l.slab) {
		l.slab = make([]byte, 0, slabSize)
	}
	n := len(l.slab)
	l.slab = append(l.slab, v...)
	return l.slab[n:len(l.slab):len(l.slab)]
}

// Size returns how many bytes the changes take, about.
func (l *Layer) Size() int { return l.size }

// Reset forgets all changes.
func (l *Layer) Reset() {
	clear(l.rows)
	l.size, l.slab = 0, nil
}

// Overlay is everything that is sequenced: the Store, and above it what segments changed that are not
// acknowledged yet. It is not safe for concurrent use, except that a Store may be read and committed to
// by others at the same time.
type Overlay struct {
	store *Store
	rows  map[string]change
}

// change is the newest value of a row and the layer that it came from.
type change struct {
	val   []byte
	layer *Layer
}

// NewOverlay returns an overlay without changes.
func NewOverlay(s *Store) *Overlay { return &Overlay{s, map[string]change{}} }

// Get is part of Getter.
func (o *Overlay) Get(key []byte) ([]byte, error) {
	if c, ok := o.rows[string(key)]; ok {
		return c.val, nil
	}
	return o.store.Get(key)
}

// Add makes the changes of tx, a layer above o, part of o and of the segment's layer. tx is of no more use.
func (o *Overlay) Add(tx, seg *Layer) {
	for k, v := range tx.rows {
		o.rows[k] = change{v, seg}
		seg.rows[k] = v
	}
	seg.size += tx.size
}

// Drop forgets what seg, the oldest layer, changed: it has been committed to the store.
func (o *Overlay) Drop(seg *Layer) {
	for k := range seg.rows {
		if o.rows[k].layer == seg {
			delete(o.rows, k)
		}
	}
}

// Pending returns the keys of the rows that differ from the store's.
func (o *Overlay) Pending() []string {
	return slices.Collect(maps.Keys(o.rows))
}
