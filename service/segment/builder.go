package segment

import (
	"encoding/binary"
	"fmt"
	"slices"

	"holdfast"
)

// Builder gathers the blocks and records of one segment in memory. It is not safe for concurrent use.
//
// Between calls: what Seal would make of the content is accepted by ParseTrailer, once a record is there.
type Builder struct {
	cell     holdfast.CellID
	buf      []byte // blocks; after Seal the whole object
	rec      []byte // encoded records
	n        int    // records in rec
	first    int64  // time of the first record, ms
	last     int64  // time of the last record, ms
	sessions []holdfast.SessionID
	index    map[holdfast.SessionID]uint64 // place in sessions
	takeover *Takeover                     // the first record, if it is one
	sealed   bool
}

// Sealed is a finished segment.
type Sealed struct {
	Body       []byte // the whole object: blocks and trailer; the Builder's memory until its Reset
	Hash       [32]byte
	TrailerLen uint32
}

// Key returns the segment's key under a nonce. cell and pos are those it was sealed with.
func (s Sealed) Key(cell holdfast.CellID, pos Position, nonce [8]byte) Key {
	return Key{Cell: cell, Position: pos, Nonce: nonce, Trailer: s.TrailerLen, Hash: s.Hash}
}

// NewBuilder returns an empty Builder.
func NewBuilder(cell holdfast.CellID) *Builder {
	return &Builder{cell: cell, index: map[holdfast.SessionID]uint64{}}
}

// Reset empties b and keeps its memory. Whatever Seal returned must be out of use.
func (b *Builder) Reset() {
	clear(b.index)
	*b = Builder{cell: b.cell, buf: b.buf[:0], rec: b.rec[:0], sessions: b.sessions[:0], index: b.index}
}

// AddBlock copies a sealed block into the segment and returns where it begins. It panics if the block
// exceeds holdfast.MaxBlock or the segment MaxBody: the caller seals a segment when Size reaches Target.
func (b *Builder) AddBlock(sealed []byte) (off uint32) {
	b.open()
	if len(sealed) > holdfast.MaxBlock || len(b.buf)+len(sealed) > MaxBody {
		panic(fmt.Sprintf("segment: a block of %d bytes does not fit after %d", len(sealed), len(b.buf)))
	}
	off = uint32(len(b.buf))
	b.buf = append(b.buf, sealed...)
	return off
}

// spaceForTrailer is what Space takes beside, so that Seal need not copy the blocks, bytes.
const spaceForTrailer = 1 << 20

// Space adds n bytes of zeros and returns them, to be filled with blocks until the next call that adds any; record them with
// their offsets from off on. It panics as AddBlock does. What no record names is dead from the beginning.
func (b *Builder) Space(n int) (space []byte, off uint32) {
	b.open()
	at := len(b.buf)
	if n < 0 || at+n > MaxBody {
		panic(fmt.Sprintf("segment: %d bytes do not fit after %d", n, at))
	}
	b.buf = slices.Grow(b.buf, n+spaceForTrailer)[:at+n]
	clear(b.buf[at:])
	return b.buf[at:], uint32(at)
}

// AddRecord appends a record made at the journal time timeMS (ms since 1970). It refuses what could not
// be read back: a malformed record, a time before the last record's, a block outside the segment, a
// takeover that is not first. A failed AddRecord changes nothing.
func (b *Builder) AddRecord(timeMS int64, rec Record) error {
	b.open()
	err := rec.check()
	switch r := rec.(type) {
	case Stored:
		if err == nil && uint64(r.Off)+uint64(r.Len) > uint64(len(b.buf)) {
			err = fmt.Errorf("block %s ends after the last block", r.Name)
		}
	case Moved:
		if err == nil && uint64(r.Off)+uint64(r.Len) > uint64(len(b.buf)) {
			err = fmt.Errorf("block %s ends after the last block", r.Name)
		}
	case Takeover:
		if err == nil && b.n > 0 {
			err = fmt.Errorf("not the first record")
		}
		if err == nil {
			b.takeover = &r
		}
	}
	if err == nil && (timeMS < 0 || b.n > 0 && timeMS < b.last) {
		err = fmt.Errorf("time %d ms is before %d ms", timeMS, max(b.last, 0))
	}
	if err != nil {
		return fmt.Errorf("add %s record: %w", rec.Type(), err)
	}
	if b.n == 0 {
		b.first, b.last = timeMS, timeMS
	}
	b.rec = binary.AppendUvarint(b.rec, uint64(timeMS-b.last))
	b.rec = append(b.rec, byte(rec.Type()))
	b.rec = rec.append(b.rec, b.session)
	b.last = timeMS
	b.n++
	return nil
}

func (b *Builder) session(id holdfast.SessionID) uint64 {
	i, ok := b.index[id]
	if !ok {
		i = uint64(len(b.sessions))
		b.index[id] = i
		b.sessions = append(b.sessions, id)
	}
	return i
}

// Mark is a state of a Builder to which it can return.
type Mark struct {
	buf, rec, n, sessions int
	first, last           int64
}

// Mark returns the present state.
func (b *Builder) Mark() Mark {
	return Mark{len(b.buf), len(b.rec), b.n, len(b.sessions), b.first, b.last}
}

// Undo takes back everything that was added after m was taken. There must have been no Seal or Reset
// since, and no Undo to an earlier mark.
func (b *Builder) Undo(m Mark) {
	b.open()
	for _, id := range b.sessions[m.sessions:] {
		delete(b.index, id)
	}
	b.buf, b.rec, b.sessions = b.buf[:m.buf], b.rec[:m.rec], b.sessions[:m.sessions]
	b.n, b.first, b.last = m.n, m.first, m.last
	if b.n == 0 {
		b.takeover = nil
	}
}

// Records returns how many records were added.
func (b *Builder) Records() int { return b.n }

// Size returns the size in bytes that the object would have, give or take a few bytes.
func (b *Builder) Size() int {
	return len(b.buf) + minTrailer + 16*len(b.sessions) + len(b.rec)
}

// Seal finishes the segment at pos, after the one whose trailer has the hash prev (zeros for the cell's
// first). Equal content gives equal bytes. It panics if there are no records or if a takeover record is
// not exactly where it belongs; the Builder then takes nothing more until Reset.
func (b *Builder) Seal(pos Position, prev [32]byte) Sealed {
	b.open()
	if b.n == 0 {
		panic("segment: seal without records")
	}
	if err := checkTakeover(pos, prev, b.takeover); err != nil {
		panic("segment: seal " + pos.String() + ": " + err.Error())
	}
	b.sealed = true
	body := len(b.buf)
	t := append(b.buf, magic...)
	t = append(t, b.cell[:]...)
	t = appendU64(t, pos.Epoch)
	t = appendU64(t, pos.Seq)
	t = append(t, prev[:]...)
	t = appendU64(t, uint64(b.first))
	t = binary.BigEndian.AppendUint32(t, uint32(body))
	t = binary.AppendUvarint(t, uint64(len(b.sessions)))
	for _, id := range b.sessions {
		t = append(t, id[:]...)
	}
	t = binary.AppendUvarint(t, uint64(b.n))
	t = append(t, b.rec...)
	n := len(t) - body + 4 + len(endMagic)
	if n > MaxTrailer {
		panic(fmt.Sprintf("segment: seal %s: a trailer of %d bytes exceeds %d", pos, n, MaxTrailer))
	}
	t = binary.BigEndian.AppendUint32(t, uint32(n))
	t = append(t, endMagic...)
	b.buf = t
	return Sealed{Body: t, Hash: HashOf(t[body:]), TrailerLen: uint32(n)}
}

func (b *Builder) open() {
	if b.sealed {
		panic("segment: the Builder was sealed and not Reset")
	}
}
