package view

import (
	"errors"
	"fmt"
	"time"

	"holdfast"
	"holdfast/service/segment"
)

// Keep is how long a block without references stays for the sessions that may have been told of it
// (JOURNAL 17). It is part of the rules by which the journal is replayed.
const Keep = 48 * time.Hour

const keepMS = int64(Keep / time.Millisecond)

// What Apply refuses about condemning.
var (
	// ErrMoved reports that the block is not, or no longer, at the place that the record names.
	ErrMoved = errors.New("the block is not at that place")
	// ErrReferenced reports that something needs the block.
	ErrReferenced = errors.New("the block has references")
	// ErrTooYoung reports that a session may have been told that the block is there.
	ErrTooYoung = errors.New("the block lost its last reference too recently")
)

// Promised reports whether a session that started at that journal time (ms) may rely on b, a block that is there,
// until the session ends: it has references, or will not be condemned before (JOURNAL 17).
func (b Block) Promised(start int64) bool { return b.Count > 0 || b.Since > start-keepMS }

// CondemnableBefore returns the journal time (ms) before which a block must have lost its last reference to be
// condemned, when the oldest session that is open in its vault started at that time: the Before of a
// segment.Condemned.
func CondemnableBefore(oldest int64) int64 { return oldest - keepMS }

// applyCondemned takes a block without references away (JOURNAL 17, 18): from here on it is not there for anybody,
// and what it links to has one reference less. With it go its alternates, which only its name kept.
//
// Which sessions are open is known to the sequencer alone. It put what follows from them into rec.Before;
// replay holds the record to that, so that it decides alike without them.
func applyCondemned(rows Rows, pos segment.Position, timeMS int64, rec segment.Condemned) error {
	if err := checkFreezes(rows); err != nil {
		return err
	}
	s, k, b, err := namedBlock(rows, rec.Session, rec.Name, rec.Place, rec.Off)
	switch {
	case err != nil:
		return err
	case b.Pos == pos:
		return notThere(rec.Name, rec.Place, rec.Off)
	case b.Count > 0:
		return fmt.Errorf("block %s: %w", rec.Name, ErrReferenced)
	case rec.Before > timeMS-keepMS || b.Since >= rec.Before: // strictly before
		return fmt.Errorf("block %s: %w", rec.Name, ErrTooYoung)
	}

	// From here on nothing is refused.
	if b.Damaged {
		if err := rows.Delete(damagedKey(s.group, rec.Name)); err != nil {
			return err
		}
	}
	if err := drop(rows, timeMS, s, k, blockKey(rowLinks, s.group, rec.Name), nil, b); err != nil {
		return err
	}
	for i := uint32(0); ; i++ {
		at := blockKey(rowAlternate, s.group, rec.Name)
		old, ok, err := loadBlock(rows, append(at[:], u32(i)...))
		if err != nil || !ok {
			return err
		}
		if err := drop(rows, timeMS, s, at, blockKey(rowAltLinks, s.group, rec.Name), u32(i), old); err != nil {
			return err
		}
	}
}

// namedSession returns the session that a record names. The error wraps ErrNoSession if there is none.
func namedSession(rows Getter, id holdfast.SessionID) (Session, error) {
	s, ok, err := loadSession(rows, id)
	if err == nil && !ok {
		err = fmt.Errorf("%w: %s", ErrNoSession, id)
	}
	return s, err
}

// namedBlock returns the block that a record names, the key of its row, and the session that stored it. The error wraps
// ErrMoved if the block is not at the place that the record names (JOURNAL 18).
func namedBlock(rows Getter, id holdfast.SessionID, name holdfast.Name, place segment.Position, off uint32) (s Session, k [blockKeySize]byte, b Block, err error) {
	if s, err = namedSession(rows, id); err != nil {
		return s, k, b, err
	}
	k = blockKey(rowBlock, s.group, name)
	b, ok, err := loadBlock(rows, k[:])
	if err == nil && (!ok || b.Session != id || b.Pos != place || b.Off != off) {
		err = notThere(name, place, off)
	}
	return s, k, b, err
}

func notThere(name holdfast.Name, place segment.Position, off uint32) error {
	return fmt.Errorf("block %s at %d in segment %s: %w", name, off, place, ErrMoved)
}

// drop takes one copy of a block out of the rows and out of all sums; at and links, followed by alternate, are the
// keys of its rows.
func drop(rows Rows, timeMS int64, s Session, at, links [blockKeySize]byte, alternate []byte, b Block) error {
	if err := rows.Delete(append(at[:], alternate...)); err != nil {
		return err
	}
	lk := append(links[:], alternate...)
	below, err := loadLinks(rows, lk)
	if err != nil {
		return err
	}
	for _, name := range below {
		if err := unreference(rows, blockKey(rowBlock, s.group, name), timeMS-keepMS); err != nil {
			return err
		}
	}
	if below != nil {
		if err := rows.Delete(lk); err != nil {
			return err
		}
	}

	if err := leave(rows, b); err != nil {
		return err
	}
	m, _, err := loadMeta(rows)
	if err != nil {
		return err
	}
	m.blocks--
	m.bytes -= uint64(b.Len)
	if err := m.put(rows); err != nil {
		return err
	}
	u, err := loadUsage(rows, usageKey(s.Account))
	if err != nil {
		return err
	}
	u.advance(timeMS)
	u.Bytes -= uint64(b.Len)
	u.Billed -= holdfast.Billed(int(b.Len))
	u.Blocks--
	var v [usageSize]byte
	return rows.Put(usageKey(s.Account), u.encode(&v))
}

// leave takes a block out of the count of its segment.
func leave(rows Rows, b Block) error {
	seg, ok, err := loadSegment(rows, b.Pos)
	if err == nil && (!ok || seg.Blocks == 0 || seg.Bytes < uint64(b.Len)) {
		err = fmt.Errorf("segment %s: %w: it has fewer live blocks than are in it", b.Pos, ErrDamaged)
	}
	if err != nil {
		return err
	}
	seg.Blocks--
	seg.Bytes -= uint64(b.Len)
	return seg.put(rows)
}

// unreference takes one reference from the block of row k; since is for one that has none then.
func unreference(rows Rows, k [blockKeySize]byte, since int64) error {
	b, ok, err := loadBlock(rows, k[:])
	if err == nil && (!ok || b.Count == 0) {
		err = fmt.Errorf("block %s: %w: it is linked to and has no references", holdfast.Name(k[5:]), ErrDamaged)
	}
	if err != nil {
		return err
	}
	if b.Count--; b.Count == 0 {
		b.Since = since
	}
	var v [blockSize]byte
	return rows.Put(k[:], b.encode(&v))
}
