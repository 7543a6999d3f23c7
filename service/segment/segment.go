// Package segment is the format of the journal: immutable objects, each holding sealed blocks and the
// records that give them meaning.
//
// # Object
//
// A segment is the sealed blocks, one after another in no order that means anything, then a trailer.
// The trailer holds everything that replay needs, so a ranged read of it is enough to rebuild the view.
// Integers are big-endian; uvarint is the unsigned LEB128 varint of encoding/binary in its shortest form.
//
//	blocks   body bytes
//	trailer  magic     8    "HOLDSEG1"
//	         cell      8
//	         epoch     u64
//	         seq       u64
//	         prev      32   hash of the trailer of the segment before this one; zeros for the cell's first
//	         time      i64  journal time of the first record, ms since 1970, not negative
//	         body      u32  bytes before the trailer; at most 64 MiB
//	         sessions  uvarint n, n x 16, in the order in which Stored, Condemned, Moved and Damaged
//	                   records first name them, each named
//	         records   uvarint n, at least 1; n x (uvarint ms since the record before it, 0 for the first;
//	                   type u8; fields)
//	         length    u32  of the trailer from magic to end, so that it can be found from an object's last
//	                   12 bytes; at most 48 MiB
//	         end       8    "HOLDEND1"
//
// The fields by type; names are block names, vlp(x) is a uvarint length and x:
//
//	1 takeover  epoch u64, claim 16, host 16, uvarint n, n x (epoch u64, last seq u64, hash 32)
//	2 stored    uvarint index into sessions, name 32, kind u8, uvarint off, uvarint len, sum 16,
//	            uvarint n, n x name 32 (the links: sorted, unique)
//	3 history   vault 32, entry (package history: n u64, time i64, head 32, logSig 64, record)
//	4 account   id 16, vlp(name) of 1 to 200 bytes of UTF-8
//	5 token     hash 32, account 16, expires i64
//	6 redeemed  hash 32, tlsKey 32
//	8 frozen    reason u8, clock i64, store i64, vlp(text) of 1 to 500 bytes of UTF-8
//	9 thawed    reason u8, since i64, clock i64, store i64, vlp(by) of up to 500 bytes, vlp(text) of 1 to 500
//	10 condemned  uvarint index into sessions, name 32, uvarint epoch, uvarint seq, uvarint off, before i64
//	7 asked     account 16, uvarint names, at least 1
//	11 moved    uvarint index into sessions, name 32, uvarint from epoch, uvarint from seq, uvarint from off,
//	            uvarint off, uvarint len, sum 16
//	12 retired  epoch u64, seq u64
//	13 removed  epoch u64, seq u64
//	14 damaged  uvarint index into sessions, name 32, uvarint epoch, uvarint seq, uvarint off, whole u8 (0 or 1)
//
// The journal of a cell is its segments by (epoch, seq). Sequence 0 of every epoch begins with its only
// takeover record; no other segment has one. The chain is a chain of trailer hashes: a segment's hash is
// SHA-256 of its trailer, and the next segment's prev repeats it. Blocks are covered by the sums in their
// stored records (the first 16 bytes of BLAKE3).
//
// # Key
//
// The object's key carries what is needed to read and check the trailer before anything else is known:
//
//	<cell 16 hex>/log/<epoch 16 hex>/<seq 16 hex>-<nonce 16 hex>-<trailer length 8 hex>-<hash 64 hex>
//
// so that the order of keys is the order of the journal. The nonce is not in the bytes: a segment that
// could not be written under one key is written under another with equal bytes (JOURNAL 6). The epoch
// object, the only one that is ever replaced, is <cell 16 hex>/epoch; see Claim.
package segment

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"holdfast"
	"holdfast/internal/enc"
)

// Sizes in bytes.
const (
	// Target is the size at which a segment is sealed.
	Target = 16 << 20
	// MaxBody bounds the blocks of one segment.
	MaxBody = 64 << 20
	// MaxTrailer bounds one trailer.
	MaxTrailer = 48 << 20
	// MaxTable bounds the epochs that one takeover record can accept.
	MaxTable = 1 << 18
	// MaxAccountName bounds the name of an account.
	MaxAccountName = 200
	// MaxText bounds what Frozen and Thawed records say to people.
	MaxText = 500
	// MaxTransferID bounds the id of a transfer of money, bytes.
	MaxTransferID = 100
)

// ErrFormat reports bytes that are not what they claim to be; every error of this package's parsers wraps it.
var ErrFormat = errors.New("malformed segment")

// Position is the place of a segment in a cell's journal.
type Position struct {
	Epoch, Seq uint64
}

// Compare returns -1, 0 or +1 as p comes before, is, or comes after q.
func (p Position) Compare(q Position) int {
	return cmp.Or(cmp.Compare(p.Epoch, q.Epoch), cmp.Compare(p.Seq, q.Seq))
}

// Next returns the position after p in the same epoch.
func (p Position) Next() Position { return Position{p.Epoch, p.Seq + 1} }

// String returns p as "epoch/seq" in decimal.
func (p Position) String() string { return fmt.Sprintf("%d/%d", p.Epoch, p.Seq) }

// Key is the name of a segment in the bucket.
type Key struct {
	Cell     holdfast.CellID
	Position Position
	Nonce    [8]byte // random, fresh for every attempt that gave up its predecessor
	Trailer  uint32  // length of the trailer
	Hash     [32]byte
}

// EpochKey returns the key of the cell's epoch object.
func EpochKey(cell holdfast.CellID) string { return cell.String() + "/epoch" }

// CellPrefix begins all keys of a cell.
func CellPrefix(cell holdfast.CellID) string { return cell.String() + "/" }

// LogPrefix begins the keys of all segments of a cell.
func LogPrefix(cell holdfast.CellID) string { return cell.String() + "/log/" }

// EpochPrefix begins the keys of all segments of one epoch.
func EpochPrefix(cell holdfast.CellID, epoch uint64) string {
	return fmt.Sprintf("%s%016x/", LogPrefix(cell), epoch)
}

// Prefix begins the keys of every landing of the segment at p. Listing after it begins with p itself.
func Prefix(cell holdfast.CellID, p Position) string {
	return fmt.Sprintf("%s%016x-", EpochPrefix(cell, p.Epoch), p.Seq)
}

// String returns the object key.
func (k Key) String() string {
	return fmt.Sprintf("%s%x-%08x-%x", Prefix(k.Cell, k.Position), k.Nonce, k.Trailer, k.Hash)
}

// ParseKey is the inverse of String; it accepts nothing that String does not make. The error wraps ErrFormat.
func ParseKey(s string) (Key, error) {
	var k Key
	bad := func() (Key, error) { return Key{}, fmt.Errorf("%w: %.200q is not the key of a segment", ErrFormat, s) }
	part := strings.Split(s, "/")
	if len(part) != 4 || part[1] != "log" {
		return bad()
	}
	f := strings.Split(part[3], "-")
	if len(f) != 4 {
		return bad()
	}
	num := func(s string, digits int) uint64 {
		v, err := strconv.ParseUint(s, 16, 4*digits)
		if err != nil {
			return 0
		}
		return v
	}
	fixed := func(dst []byte, s string) {
		if len(s) == 2*len(dst) {
			_, _ = hex.Decode(dst, []byte(s))
		}
	}
	fixed(k.Cell[:], part[0])
	k.Position = Position{num(part[2], 16), num(f[0], 16)}
	fixed(k.Nonce[:], f[1])
	k.Trailer = uint32(num(f[2], 8))
	fixed(k.Hash[:], f[3])
	if k.String() != s || k.Trailer < minTrailer || k.Trailer > MaxTrailer {
		return bad()
	}
	return k, nil
}

// Parse decodes the trailer of the object that k names and checks it against k and the object's size:
// hash, length, cell, position, body. The error wraps ErrFormat.
func (k Key) Parse(trailer []byte, size int64) (*Trailer, error) {
	if len(trailer) != int(k.Trailer) || HashOf(trailer) != k.Hash {
		return nil, fmt.Errorf("segment %s: %w: the trailer is not the one that its key names", k.Position, ErrFormat)
	}
	t, err := ParseTrailer(trailer)
	if err != nil {
		return nil, fmt.Errorf("segment %s: %w", k.Position, err)
	}
	switch {
	case t.Cell != k.Cell || t.Position != k.Position:
		return nil, fmt.Errorf("segment %s of cell %s: %w: its trailer says %s of cell %s", k.Position, k.Cell, ErrFormat, t.Position, t.Cell)
	case int64(t.BodySize)+int64(len(trailer)) != size:
		return nil, fmt.Errorf("segment %s: %w: the object has %d bytes, its trailer says %d", k.Position, ErrFormat, size, int64(t.BodySize)+int64(len(trailer)))
	}
	return t, nil
}

// Claim is the content of the epoch object: who owns the cell. It is compared and replaced as a whole.
//
//	magic 8 "HOLDEPO1", epoch u64, claim 16, host 16
type Claim struct {
	Epoch uint64
	ID    [16]byte // random, so that a claim whose answer was lost is recognised
	Host  [16]byte // of the data directory that claimed it
}

const claimMagic = "HOLDEPO1"

// Encode returns the content of the epoch object.
func (c Claim) Encode() []byte {
	b := appendU64([]byte(claimMagic), c.Epoch)
	b = append(b, c.ID[:]...)
	return append(b, c.Host[:]...)
}

// ParseClaim decodes the content of the epoch object. The error wraps ErrFormat.
func ParseClaim(raw []byte) (Claim, error) {
	var c Claim
	r := enc.NewReader(raw)
	if m := r.Bytes(len(claimMagic)); r.Err() == nil && !bytes.Equal(m, []byte(claimMagic)) {
		r.Fail("it does not begin with %q", claimMagic)
	}
	c.Epoch = r.U64()
	r.Fixed(c.ID[:])
	r.Fixed(c.Host[:])
	if err := r.Done(); err != nil {
		return Claim{}, fmt.Errorf("epoch object: %w: %w", ErrFormat, err)
	}
	return c, nil
}
