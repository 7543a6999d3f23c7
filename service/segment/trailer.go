package segment

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"holdfast"
	"holdfast/internal/blake3"
	"holdfast/internal/enc"
)

const (
	magic    = "HOLDSEG1"
	endMagic = "HOLDEND1"
	// minTrailer is the size of a trailer without sessions and records.
	minTrailer = 8 + 8 + 8 + 8 + 32 + 8 + 4 + 1 + 1 + 4 + 8
	// FooterSize is how many of an object's last bytes FindTrailer wants.
	FooterSize = 4 + 8
)

// Trailer is a decoded trailer. Its records satisfy the rules in the package comment: times in order,
// takeover first in sequence 0 and nowhere else, blocks inside the body.
type Trailer struct {
	Cell     holdfast.CellID
	Position Position
	Prev     [32]byte
	BodySize uint32
	Records  []Timed // at least one
}

// HashOf returns the hash of a trailer, which is also the chain hash of its segment.
func HashOf(trailer []byte) [32]byte { return sha256.Sum256(trailer) }

// SumOf returns the checksum of a sealed block: the first 16 bytes of its BLAKE3 hash.
func SumOf(sealed []byte) (sum [16]byte) {
	h := blake3.Sum(sealed)
	copy(sum[:], h[:])
	return sum
}

// FindTrailer returns the length of the trailer of an object of which footer holds the last FooterSize
// bytes: the way in where the object's key was lost. The error wraps ErrFormat.
func FindTrailer(footer []byte) (int, error) {
	if len(footer) != FooterSize || string(footer[4:]) != endMagic {
		return 0, fmt.Errorf("%w: it does not end with %q", ErrFormat, endMagic)
	}
	n := binary.BigEndian.Uint32(footer)
	if n < minTrailer || n > MaxTrailer {
		return 0, fmt.Errorf("%w: trailer of %d bytes", ErrFormat, n)
	}
	return int(n), nil
}

// ParseTrailer decodes a trailer that fills raw; the result shares no memory with raw. It does not know
// what the trailer's hash should be: see Key.Parse. The error wraps ErrFormat.
func ParseTrailer(raw []byte) (*Trailer, error) {
	t, err := parseTrailer(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: trailer: %w", ErrFormat, err)
	}
	return t, nil
}

func parseTrailer(raw []byte) (*Trailer, error) {
	if len(raw) < minTrailer || len(raw) > MaxTrailer {
		return nil, fmt.Errorf("%d bytes", len(raw))
	}
	if n, err := FindTrailer(raw[len(raw)-FooterSize:]); err != nil || n != len(raw) {
		return nil, errors.New("its length or end mark is wrong")
	}
	r := enc.NewReader(raw[:len(raw)-FooterSize])
	if !bytes.Equal(r.Bytes(len(magic)), []byte(magic)) {
		return nil, fmt.Errorf("it does not begin with %q", magic)
	}
	var t Trailer
	r.Fixed(t.Cell[:])
	t.Position = Position{r.U64(), r.U64()}
	r.Fixed(t.Prev[:])
	now := r.I64()
	if now < 0 {
		return nil, fmt.Errorf("time %d", now)
	}
	t.BodySize = r.U32()
	if t.BodySize > MaxBody {
		return nil, fmt.Errorf("body of %d bytes", t.BodySize)
	}
	sessions := make([]holdfast.SessionID, r.UvarintMax(uint64(r.Len()/16)))
	seen := make(map[holdfast.SessionID]bool, len(sessions))
	for i := range sessions {
		r.Fixed(sessions[i][:])
		seen[sessions[i]] = true
	}
	if len(seen) != len(sessions) {
		return nil, errors.New("a session is listed twice")
	}
	n := r.UvarintMax(uint64(r.Len() / minRecord))
	if r.Err() == nil && n == 0 {
		return nil, errors.New("no records")
	}
	t.Records = make([]Timed, 0, n)
	named := 0
	var takeover *Takeover
	for i := range n {
		delta := r.UvarintMax(uint64(math.MaxInt64 - now))
		if i == 0 && delta != 0 {
			r.Fail("the first record is later than the trailer says")
		}
		now += int64(delta)
		rec := readRecord(r, sessions, &named)
		if r.Err() != nil {
			return nil, fmt.Errorf("record %d: %w", i, r.Err())
		}
		if err := rec.check(); err != nil {
			return nil, fmt.Errorf("record %d: %w", i, err)
		}
		switch rec := rec.(type) {
		case Stored:
			if uint64(rec.Off)+uint64(rec.Len) > uint64(t.BodySize) {
				return nil, fmt.Errorf("record %d: block %s ends outside the segment", i, rec.Name)
			}
		case Moved:
			if uint64(rec.Off)+uint64(rec.Len) > uint64(t.BodySize) {
				return nil, fmt.Errorf("record %d: block %s ends outside the segment", i, rec.Name)
			}
		case Takeover:
			if i > 0 {
				return nil, fmt.Errorf("record %d: a takeover that is not first", i)
			}
			takeover = &rec
		}
		t.Records = append(t.Records, Timed{now, rec})
	}
	if err := r.Done(); err != nil {
		return nil, err
	}
	if named != len(sessions) {
		return nil, errors.New("a session is listed and not named")
	}
	if err := checkTakeover(t.Position, t.Prev, takeover); err != nil {
		return nil, err
	}
	return &t, nil
}

// readRecord reads a type and its fields. The error stays in r.
func readRecord(r *enc.Reader, sessions []holdfast.SessionID, named *int) Record {
	switch typ := Type(r.U8()); typ {
	case TypeTakeover:
		return readTakeover(r)
	case TypeStored:
		s, n := readStored(r, sessions, *named)
		*named = n
		return s
	case TypeHistory:
		return readHistory(r)
	case TypeAccount:
		return readAccount(r)
	case TypeToken:
		return readToken(r)
	case TypeRedeemed:
		return readRedeemed(r)
	case TypeFrozen:
		return readFrozen(r)
	case TypeThawed:
		return readThawed(r)
	case TypeCondemned:
		c, n := readCondemned(r, sessions, *named)
		*named = n
		return c
	case TypeMetered:
		return readMetered(r)
	case TypeMoved:
		m, n := readMoved(r, sessions, *named)
		*named = n
		return m
	case TypeRetired:
		return Retired{Position{r.U64(), r.U64()}}
	case TypeRemoved:
		return Removed{Position{r.U64(), r.U64()}}
	case TypeDamaged:
		d, n := readDamaged(r, sessions, *named)
		*named = n
		return d
	case TypeTransfer:
		return ReadTransfer(r)
	case TypeCharge:
		return readCharge(r)
	case TypeStep:
		return readStep(r)
	case TypeTold:
		return readTold(r)
	default:
		r.Fail("unknown record type %d: written by a newer version?", uint8(typ))
		return nil
	}
}

// checkTakeover says whether a segment at pos after prev may have t (nil for none) as its takeover record.
func checkTakeover(pos Position, prev [32]byte, t *Takeover) error {
	if (pos.Seq == 0) != (t != nil) {
		return errors.New("sequence 0 and only it begins with a takeover record")
	}
	if t == nil {
		if prev == [32]byte{} {
			return errors.New("no previous segment")
		}
		return nil
	}
	var last [32]byte
	if n := len(t.Table); n > 0 {
		last = t.Table[n-1].Hash
	}
	switch {
	case t.Epoch != pos.Epoch:
		return fmt.Errorf("the takeover record is of epoch %d", t.Epoch)
	case prev != last:
		return errors.New("the previous segment is not the last one accepted")
	}
	return nil
}
