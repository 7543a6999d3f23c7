package view

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"hash/maphash"
	"slices"
)

// A bulk holds the rows that many segments changed, as a Layer does those of one: its memory is taken in large
// pieces and used again, and the collector has nothing to look at in it. The zero bulk is of no use; see newBulk.
//
// It may be read by several goroutines at once while nobody changes it.
type bulk struct {
	seed  maphash.Seed
	slots []uint32 // place in rows, plus 1, of the row that hashes here or before; 0 for none
	rows  []bulkRow
	slabs [][]byte
	used  int // slabs that have something in them; the last of them is being filled
	size  int // bytes of keys and values, about
}

// bulkRow is where the key of a row is, and its value behind it.
type bulkRow struct {
	hash     uint32
	slab     uint32
	at       uint32
	key, val uint32 // bytes
}

// gone is the size of the value of a row that was deleted.
const gone = 1<<32 - 1

// bulkSlab is the size of a bulk's pieces of memory, bytes.
const bulkSlab = 1 << 20

func newBulk(seed maphash.Seed) *bulk {
	return &bulk{seed: seed, slots: make([]uint32, 1<<10)}
}

// hash is of use for every bulk with that seed.
func (t *bulk) hash(key []byte) uint64 { return maphash.Bytes(t.seed, key) }

func (t *bulk) bytes(r *bulkRow) (key, val []byte) {
	s := t.slabs[r.slab][r.at:]
	if r.val == gone {
		return s[:r.key:r.key], nil
	}
	return s[:r.key:r.key], s[r.key : r.key+r.val : r.key+r.val]
}

// find returns the row of key, of that hash, or nil and the slot where it belongs.
func (t *bulk) find(key []byte, hash uint64) (*bulkRow, uint32) {
	mask := uint32(len(t.slots) - 1)
	for i := uint32(hash>>32) & mask; ; i = (i + 1) & mask {
		n := t.slots[i]
		if n == 0 {
			return nil, i
		}
		r := &t.rows[n-1]
		if r.hash != uint32(hash) || int(r.key) != len(key) {
			continue
		}
		if k, _ := t.bytes(r); string(k) == string(key) {
			return r, i
		}
	}
}

// get returns the value of key, nil if it was deleted, and whether t has anything to say about it.
func (t *bulk) get(key []byte, hash uint64) ([]byte, bool) {
	r, _ := t.find(key, hash)
	if r == nil {
		return nil, false
	}
	_, val := t.bytes(r)
	return val, true
}

// put sets the value of key; one that is nil deletes it.
func (t *bulk) put(key []byte, hash uint64, val []byte) {
	r, slot := t.find(key, hash)
	switch {
	case r == nil:
		t.rows = append(t.rows, bulkRow{hash: uint32(hash)})
		t.slots[slot] = uint32(len(t.rows))
		r = &t.rows[len(t.rows)-1]
	case val == nil:
		r.val = gone // the value's place is lost until reset
		return
	case r.val == uint32(len(val)):
		_, old := t.bytes(r)
		copy(old, val)
		return
	}
	t.place(r, key, val)
	if 2*len(t.rows) > len(t.slots) {
		t.grow()
	}
}

// place gives r memory.
func (t *bulk) place(r *bulkRow, key, val []byte) {
	n := len(key) + len(val)
	if t.used == 0 || cap(t.slabs[t.used-1])-len(t.slabs[t.used-1]) < n {
		if t.used == len(t.slabs) || cap(t.slabs[t.used]) < n {
			t.slabs = slices.Insert(t.slabs, t.used, make([]byte, 0, max(bulkSlab, n)))
		}
		t.used++
	}
	s := &t.slabs[t.used-1]
	r.slab, r.at = uint32(t.used-1), uint32(len(*s))
	r.key, r.val = uint32(len(key)), uint32(len(val))
	if val == nil {
		r.val = gone
	}
	*s = append(append(*s, key...), val...)
	t.size += n
}

func (t *bulk) grow() {
	t.slots = make([]uint32, 2*len(t.slots))
	mask := uint32(len(t.slots) - 1)
	for n := range t.rows {
		key, _ := t.bytes(&t.rows[n])
		i := uint32(t.hash(key)>>32) & mask
		for t.slots[i] != 0 {
			i = (i + 1) & mask
		}
		t.slots[i] = uint32(n + 1)
	}
}

// reset forgets all rows and keeps the memory.
func (t *bulk) reset() {
	clear(t.slots)
	for i := range t.slabs[:t.used] {
		t.slabs[i] = t.slabs[i][:0]
	}
	t.rows, t.used, t.size = t.rows[:0], 0, 0
}

// sorted returns the rows in the order of their keys. scratch is memory to work in, of which the result is part.
func (t *bulk) sorted(scratch *[]sortKey) []sortKey {
	all := (*scratch)[:0]
	for n := range t.rows {
		key, _ := t.bytes(&t.rows[n])
		var k [16]byte
		copy(k[:], key)
		all = append(all, sortKey{binary.BigEndian.Uint64(k[:]), binary.BigEndian.Uint64(k[8:]), uint32(n)})
	}
	*scratch = all
	slices.SortFunc(all, func(a, b sortKey) int {
		if a.hi != b.hi {
			if a.hi < b.hi {
				return -1
			}
			return 1
		}
		if a.lo != b.lo {
			return cmp.Compare(a.lo, b.lo)
		}
		ka, _ := t.at(a)
		kb, _ := t.at(b)
		return bytes.Compare(ka, kb)
	})
	return all
}

// at returns the row of p; the value of one that was deleted is nil.
func (t *bulk) at(p sortKey) (key, val []byte) { return t.bytes(&t.rows[p.row]) }

// sortKey is a row of a bulk and how its key begins.
type sortKey struct {
	hi, lo uint64
	row    uint32
}
