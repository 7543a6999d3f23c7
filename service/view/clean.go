package view

import (
	"errors"
	"fmt"
	"time"

	"holdfast"
	"holdfast/internal/enc"
	"holdfast/service/segment"
)

// Grace is how long the objects of a retired segment stay: for those who looked up before where a block is, and for
// people, who may find out that something is wrong. It is part of the rules by which the journal is replayed.
const Grace = 7 * 24 * time.Hour

const graceMS = int64(Grace / time.Millisecond)

// What Apply refuses about segments that are freed.
var (
	// ErrLive refuses to retire a segment that holds live blocks, or that a start needs.
	ErrLive = errors.New("the segment is needed")
	// ErrNoSegment reports that there is no such segment, or that it is retired or removed already.
	ErrNoSegment = errors.New("no such segment")
	// ErrGrace refuses to remove a segment that was retired too recently.
	ErrGrace = errors.New("the segment was retired too recently")
)

// applyMoved gives a block that is at the place that the record names the place that the record has (JOURNAL 18, 19). It
// may be an alternate.
func applyMoved(rows Rows, pos segment.Position, rec segment.Moved) error {
	if err := checkFreezes(rows); err != nil {
		return err
	}
	s, err := namedSession(rows, rec.Session)
	if err != nil {
		return err
	}
	here := func(b Block) bool {
		return b.Session == rec.Session && b.Pos == rec.From && b.Off == rec.FromOff && b.Len == rec.Len && b.Sum == rec.Sum && b.Pos != pos
	}
	main := blockKey(rowBlock, s.group, rec.Name)
	k := main[:]
	b, ok, err := loadBlock(rows, k)
	for i := uint32(0); err == nil && ok && !here(b); i++ {
		at := blockKey(rowAlternate, s.group, rec.Name)
		k = append(at[:], u32(i)...)
		b, ok, err = loadBlock(rows, k)
	}
	if err != nil {
		return err
	}
	if !ok {
		return notThere(rec.Name, rec.From, rec.FromOff)
	}

	// From here on nothing is refused.
	if err := leave(rows, b); err != nil {
		return err
	}
	b.Pos, b.Off = pos, rec.Off
	if b.Damaged { // what was copied had the right checksum
		b.Damaged = false
		if k[0] == rowBlock {
			if err := rows.Delete(damagedKey(s.group, rec.Name)); err != nil {
				return err
			}
		}
	}
	var v [blockSize]byte
	return rows.Put(k, b.encode(&v))
}

// applyRetired takes a segment without live blocks out of use. The takeover record of the newest epoch stays: a start begins
// with it.
func applyRetired(rows Rows, pos segment.Position, timeMS int64, rec segment.Retired) error {
	if err := checkFreezes(rows); err != nil {
		return err
	}
	s, ok, err := loadSegment(rows, rec.Place)
	switch {
	case err != nil:
		return err
	case !ok:
		return fmt.Errorf("segment %s: %w", rec.Place, ErrNoSegment)
	case s.Blocks > 0:
		return fmt.Errorf("segment %s: %w: %d blocks in it are live", rec.Place, ErrLive, s.Blocks)
	case rec.Place.Seq == 0 && rec.Place.Epoch == pos.Epoch:
		return fmt.Errorf("segment %s: %w: it is the takeover of this epoch", rec.Place, ErrLive)
	}
	if err := rows.Delete(posKey(rec.Place)); err != nil {
		return err
	}
	s.Retired = timeMS
	if err := s.putRetired(rows); err != nil {
		return err
	}
	m, _, err := loadMeta(rows)
	if err != nil {
		return err
	}
	m.segments--
	m.retired++
	return m.put(rows)
}

// applyRemoved forgets a retired segment after its grace: nothing of it is in the bucket but its trailer, in a bundle.
func applyRemoved(rows Rows, timeMS int64, rec segment.Removed) error {
	if err := checkFreezes(rows); err != nil {
		return err
	}
	s, ok, err := loadRetired(rows, rec.Place)
	switch {
	case err != nil:
		return err
	case !ok:
		return fmt.Errorf("segment %s: %w that is retired", rec.Place, ErrNoSegment)
	case !s.Removable(timeMS):
		return fmt.Errorf("segment %s: %w", rec.Place, ErrGrace)
	}
	for _, k := range [][]byte{retiredKey(rec.Place), nonceKey(rec.Place)} {
		if err := rows.Delete(k); err != nil {
			return err
		}
	}
	m, _, err := loadMeta(rows)
	if err != nil {
		return err
	}
	m.retired--
	m.removed++
	m.objects -= s.Size
	return m.put(rows)
}

// Removable reports whether a retired segment may be removed at that journal time (ms).
func (s Segment) Removable(now int64) bool { return now >= s.Retired+graceMS }

func damagedKey(group uint32, name holdfast.Name) []byte {
	k := blockKey(rowDamaged, group, name)
	return k[:]
}

// applyDamaged notes that the bytes of a block are wrong at the place where it is, or right again. What is said already is
// ErrDuplicate.
func applyDamaged(rows Rows, timeMS int64, rec segment.Damaged) error {
	s, k, b, err := namedBlock(rows, rec.Session, rec.Name, rec.Place, rec.Off)
	if err != nil {
		return err
	}
	if b.Damaged != rec.Whole {
		return fmt.Errorf("block %s at %d in segment %s: %w", rec.Name, rec.Off, rec.Place, ErrDuplicate)
	}
	b.Damaged = !rec.Whole
	var v [blockSize]byte
	if err := rows.Put(k[:], b.encode(&v)); err != nil {
		return err
	}
	if rec.Whole {
		return rows.Delete(damagedKey(s.group, rec.Name))
	}
	at := append(u64(b.Pos.Epoch), u64(b.Pos.Seq)...)
	return rows.Put(damagedKey(s.group, rec.Name), append(append(at, u32(b.Off)...), u64(uint64(timeMS))...))
}

// decodeDamaged reads a damaged row: where the block is, and since when it is known to be damaged.
func decodeDamaged(r *enc.Reader) (pos segment.Position, off uint32, since int64) {
	return segment.Position{Epoch: r.U64(), Seq: r.U64()}, r.U32(), r.I64()
}
