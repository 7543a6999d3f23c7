package view

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"holdfast"
	"holdfast/internal/enc"
	"holdfast/service/segment"
)

// Hints make it cheap to find what can be freed, and links that are like others: nobody walks all blocks or segments. Commit leaves one for every block
// that has no references, under the time since when, and one for every segment of which something is dead, or which is
// tiny, under how much of it is live. Rows that say so have their hint, always; a hint whose row says something
// else is met by the next who looks, and removed.

const (
	// sparseClasses is into how many classes segments are sorted by how much of them is live.
	sparseClasses = 16
	// classTiny is that of segments with little in them, however much of that is live.
	classTiny = 0x80
	// Tiny is the size of a body below which a segment is tiny, bytes.
	Tiny = 1 << 20
)

// SparseClass returns the class of a segment by how much of it is live, from 0 for nothing on: the order of Store.Sparse. It
// says no if nothing of it is dead.
func (s Segment) SparseClass() (class byte, ok bool) {
	body := s.Body()
	switch {
	case s.Blocks == 0:
		return 0, true
	case s.Bytes >= body:
		return 0, false
	}
	return byte(s.Bytes * sparseClasses / body), true
}

func (s Segment) tiny() bool { return s.Blocks > 0 && s.Body() < Tiny }

// unusedKey returns the hint of the block in row k, without references since then (ms).
func unusedKey[K string | []byte](k K, since int64) []byte {
	h := make([]byte, 2, 2+8+blockKeySize-1)
	h[0], h[1] = rowLocal, localUnused
	h = binary.BigEndian.AppendUint64(h, uint64(since))
	return append(h, k[1:blockKeySize]...)
}

func sparseKey[K string | []byte](class byte, pos K) []byte {
	return append([]byte{rowLocal, localSparse, class}, pos...)
}

// likeKey returns the hint, at the smallest link of the links in row k, of which block has links like these: the name of
// the one that was stored last. There is one at most for each block, and it goes with that.
func likeKey[K string | []byte, N string | []byte](k K, link N) []byte {
	h := make([]byte, 2, 2+blockKeySize-1)
	h[0], h[1] = rowLocal, localLike
	return append(append(h, k[1:5]...), link...)
}

// hints calls put with the hints of a row that is committed, and with those that are to be removed, which have no value.
func hints[K string | []byte](k K, v []byte, put func(key, value []byte) error) error {
	switch {
	case v == nil:
		if k[0] == rowBlock && len(k) == blockKeySize {
			return put(likeKey(k, k[5:]), nil)
		}
	case k[0] == rowLinks && len(v) >= 32:
		return put(likeKey(k, v[:32]), []byte(k[5:]))
	case k[0] == rowBlock && len(v) == blockSize:
		if binary.BigEndian.Uint64(v[41:]) == 0 { // its count
			return put(unusedKey(k, int64(binary.BigEndian.Uint64(v[49:]))), []byte{})
		}
	case k[0] == rowSegment:
		var s Segment
		r := enc.NewReader(v)
		s.decode(r)
		if r.Done() != nil {
			return nil // whoever reads the row says so
		}
		if class, ok := s.SparseClass(); ok {
			if err := put(sparseKey(class, k[1:]), []byte{}); err != nil {
				return err
			}
		}
		if s.tiny() {
			return put(sparseKey(classTiny, k[1:]), []byte{})
		}
	}
	return nil
}

// Like returns a block of a group that probably has links like these, which are sorted, and its links; none if none is
// known. That is the last that was acknowledged of those with the same smallest link: of the two forms of a tree of which
// one link changed, that one is the same but for one time in as many as it has links.
func (r Reader) Like(v holdfast.VaultID, g holdfast.GroupID, links []holdfast.Name) (name holdfast.Name, of []holdfast.Name, err error) {
	n, ok, err := loadGroup(r.rows, v, g)
	if err != nil || !ok || len(links) == 0 {
		return name, nil, err
	}
	k := blockKey(rowLinks, n, links[0])
	raw, err := r.rows.Get(likeKey(k[:], links[0][:]))
	if err != nil || len(raw) != len(name) {
		return name, nil, err
	}
	k = blockKey(rowLinks, n, holdfast.Name(raw))
	of, err = loadLinks(r.rows, k[:])
	return holdfast.Name(raw), of, err
}

// scan calls fn with at most max rows from from (inclusive) to to (exclusive), in order of their keys, and returns the last
// key and their number. fn may keep the key and not the value, and must not call s.
func (s *Store) scan(from, to []byte, max int, fn func(key, value []byte) error) (last []byte, n int, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return nil, 0, ErrClosed
	}
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: to})
	if err != nil {
		return nil, 0, fmt.Errorf("read view: %w", err)
	}
	for ok := it.First(); ok && n < max && err == nil; ok = it.Next() {
		last = slices.Clone(it.Key())
		err = fn(last, it.Value())
		n++
	}
	if no := it.Close(); no != nil {
		return nil, 0, s.failed("read view", no)
	}
	return last, n, err
}

// hinted returns at most max keys from from to to, after after unless that is nil, and where to go on: nil if there are
// no more.
func (s *Store) hinted(from, to, after []byte, max int) (keys [][]byte, next []byte, err error) {
	if after != nil {
		from = append(slices.Clone(after), 0)
	}
	last, n, err := s.scan(from, to, max, func(k, _ []byte) error {
		keys = append(keys, k)
		return nil
	})
	if n == max {
		next = last
	}
	return keys, next, err
}

// holds removes a hint unless it holds, which is asked while nothing is committed.
func (s *Store) holds(hint []byte, holds func() (bool, error)) (bool, error) {
	s.hints.Lock()
	defer s.hints.Unlock()
	ok, err := holds()
	if err != nil || ok {
		return ok, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return false, ErrClosed
	}
	if err := s.db.Delete(hint, pebble.NoSync); err != nil {
		return false, s.failed("write view", err)
	}
	return false, nil
}

// Unreferenced is a block that has no references.
type Unreferenced struct {
	Name  holdfast.Name
	Block Block
}

// Unreferenced returns blocks that lost their last reference before that time (ms), in the order in which they did. At
// most max hints are looked at, from after on (nil for the beginning); next is where to go on, nil if there are no more.
func (s *Store) Unreferenced(before int64, after []byte, max int) (all []Unreferenced, next []byte, err error) {
	from := []byte{rowLocal, localUnused}
	keys, next, err := s.hinted(from, binary.BigEndian.AppendUint64(slices.Clone(from), uint64(before)), after, max)
	if err != nil {
		return nil, nil, err
	}
	for _, h := range keys {
		since := int64(binary.BigEndian.Uint64(h[2:]))
		k := append([]byte{rowBlock}, h[10:]...)
		var b Block
		ok, err := s.holds(h, func() (ok bool, err error) {
			b, ok, err = loadBlock(s, k)
			return ok && b.Count == 0 && b.Since == since, err
		})
		if err != nil {
			return nil, nil, err
		}
		if ok {
			all = append(all, Unreferenced{holdfast.Name(k[5:]), b})
		}
	}
	return all, next, nil
}

// Sparse returns segments of whose bodies at most that many percent are live, about the deadest first; those without
// live blocks come first. At most max hints are looked at, from after on (nil for the beginning); next is where to go on,
// nil if there are no more. It includes the newest epoch's takeover, which cannot be retired.
func (s *Store) Sparse(percent int, after []byte, max int) (all []Segment, next []byte, err error) {
	to := min(sparseClasses, percent*sparseClasses/100+1)
	keys, next, err := s.hinted([]byte{rowLocal, localSparse, 0}, []byte{rowLocal, localSparse, byte(to)}, after, max)
	if err != nil {
		return nil, nil, err
	}
	for _, h := range keys {
		x, ok, err := s.hintedSegment(h, func(x Segment) bool {
			class, ok := x.SparseClass()
			return ok && class == h[2]
		})
		if err != nil {
			return nil, nil, err
		}
		if ok && (x.Blocks == 0 || x.Bytes*100 <= uint64(percent)*x.Body()) {
			all = append(all, x)
		}
	}
	return all, next, nil
}

// Tiny returns segments with live blocks and a body of less than Tiny bytes, in the order of the journal; after, max and
// next are as for Sparse.
func (s *Store) Tiny(after []byte, max int) (all []Segment, next []byte, err error) {
	keys, next, err := s.hinted([]byte{rowLocal, localSparse, classTiny}, []byte{rowLocal, localSparse, classTiny + 1}, after, max)
	if err != nil {
		return nil, nil, err
	}
	for _, h := range keys {
		x, ok, err := s.hintedSegment(h, Segment.tiny)
		if err != nil {
			return nil, nil, err
		}
		if ok {
			all = append(all, x)
		}
	}
	return all, next, nil
}

// hintedSegment returns the segment that a hint names, unless it is not there any more or fn says no.
func (s *Store) hintedSegment(h []byte, fn func(Segment) bool) (x Segment, ok bool, err error) {
	pos := segment.Position{Epoch: binary.BigEndian.Uint64(h[3:]), Seq: binary.BigEndian.Uint64(h[11:])}
	ok, err = s.holds(h, func() (ok bool, err error) {
		x, ok, err = loadSegment(s, pos)
		return ok && fn(x), err
	})
	return x, ok, err
}

// Segments returns at most max segments that are neither retired nor removed, in the order of the journal, after the place
// after.
func (s *Store) Segments(after segment.Position, max int) ([]Segment, error) {
	return s.segments(rowSegment, after, max, (*Segment).decode)
}

// Retired returns at most max segments that are retired and not removed, in the order of the journal, after the place
// after.
func (s *Store) Retired(after segment.Position, max int) ([]Segment, error) {
	return s.segments(rowRetired, after, max, (*Segment).decodeRetired)
}

func (s *Store) segments(row byte, after segment.Position, max int, decode func(*Segment, *enc.Reader)) (all []Segment, err error) {
	from := key(row, u64(after.Epoch), u64(after.Seq), []byte{0})
	if after == (segment.Position{}) {
		from = []byte{row}
	}
	_, _, err = s.scan(from, []byte{row + 1}, max, func(k, v []byte) error {
		var x Segment
		r := enc.NewReader(v)
		decode(&x, r)
		if err := r.Done(); err != nil {
			return fmt.Errorf("row %q: %w: %w", k, ErrDamaged, err)
		}
		x.Key.Position = segment.Position{Epoch: binary.BigEndian.Uint64(k[1:]), Seq: binary.BigEndian.Uint64(k[9:])}
		all = append(all, x)
		return nil
	})
	if err != nil {
		return nil, err
	}
	m, _, err := loadMeta(s)
	if err != nil {
		return nil, err
	}
	found := all[:0]
	for _, x := range all {
		nonce, err := s.Get(nonceKey(x.Key.Position))
		if err != nil {
			return nil, err
		}
		if nonce == nil { // it was removed since
			continue
		}
		if err := x.named(m.cell, x.Key.Position, nonce); err != nil {
			return nil, err
		}
		found = append(found, x)
	}
	return found, nil
}

// Damage is a block that is known to be damaged.
type Damage struct {
	Name  holdfast.Name
	Group uint32 // number of its group in the view
	Block Block
	Since int64 // ms; when that was found
}

// Damaged returns at most max blocks that are damaged, after the one after (nil for the beginning).
func (s *Store) Damaged(after *Damage, max int) (all []Damage, err error) {
	from := []byte{rowDamaged}
	if after != nil {
		from = append(damagedKey(after.Group, after.Name), 0)
	}
	return s.damaged(from, []byte{rowDamaged + 1}, max)
}

// DamagedOf returns at most max damaged blocks of a group, in the order of their names, after the name after; the zero name
// begins.
func (s *Store) DamagedOf(v holdfast.VaultID, g holdfast.GroupID, after holdfast.Name, max int) ([]Damage, error) {
	n, ok, err := loadGroup(s, v, g)
	if err != nil || !ok {
		return nil, err
	}
	from := damagedKey(n, after)
	if after != (holdfast.Name{}) {
		from = append(from, 0)
	}
	end := damagedKey(n, holdfast.Name(bytes.Repeat([]byte{0xff}, 32)))
	return s.damaged(from, append(end, 0), max)
}

// damaged returns at most max damaged blocks of which the keys are from one up to before another.
func (s *Store) damaged(from, to []byte, max int) (all []Damage, err error) {
	_, _, err = s.scan(from, to, max, func(k, v []byte) error {
		d := Damage{Name: holdfast.Name(k[5:]), Group: binary.BigEndian.Uint32(k[1:])}
		r := enc.NewReader(v)
		d.Block.Pos, d.Block.Off, d.Since = decodeDamaged(r)
		if err := r.Done(); err != nil {
			return fmt.Errorf("row %q: %w: %w", k, ErrDamaged, err)
		}
		all = append(all, d)
		return nil
	})
	if err != nil {
		return nil, err
	}
	found := all[:0]
	for _, d := range all {
		k := blockKey(rowBlock, d.Group, d.Name)
		b, ok, err := loadBlock(s, k[:])
		if err != nil {
			return nil, err
		}
		if ok && b.Damaged { // neither condemned nor stored anew since
			d.Block = b
			found = append(found, d)
		}
	}
	return found, nil
}
