package archive

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"math/bits"

	"holdfast"
)

// MaxItemExtents bounds the extents of one item; a file with more has further items.
const MaxItemExtents = 512

const (
	minItemExtents    = 32
	spreadItemExtents = 96 // extents from minItemExtents to the next cut, on average
)

// Borders decides where lists are cut, from what they hold and a secret key, so that a change moves few
// cuts and sizes tell nothing to who lacks the key. It is not safe for concurrent use.
type Borders struct {
	mac hash.Hash
	sum [sha256.Size]byte
	buf []byte
}

// NewBorders returns the borders under a K_tree (keyring.Cuts.Tree).
func NewBorders(key holdfast.Key) *Borders {
	return &Borders{mac: hmac.New(sha256.New, key[:])}
}

// The lists that are cut; a level of a tree adds to domainKey.
const (
	domainExtent  = 1  // the extents of a file into items; input: the extent before the cut
	domainItem    = 2  // items that continue extents into leaves; input: the last extent before the cut
	domainVerdict = 3  // verdicts into chunks; input: the key of the path before the cut
	domainKey     = 16 // items of a tree's level l into nodes (16 + l); input: the key of the item before the cut
)

// at reports whether a border follows what input names: HMAC-SHA256(key, domain u8 || input), its first 8
// bytes as h, floor(h * spread / 2^64) < weight. So a border comes once in every spread units of weight.
func (b *Borders) at(domain uint8, input []byte, weight, spread int) bool {
	b.mac.Reset()
	b.buf = append(b.buf[:0], domain)
	b.mac.Write(b.buf)
	b.mac.Write(input)
	h, _ := bits.Mul64(binary.BigEndian.Uint64(b.mac.Sum(b.sum[:0])), uint64(spread))
	return h < uint64(weight)
}

// AfterKey reports whether a border of a tree's level follows the item of that key.
func (b *Borders) AfterKey(level int, key []byte, weight, spread int) bool {
	return b.at(uint8(domainKey+level), key, weight, spread)
}

// AfterExtents reports whether a border of a tree's leaves follows an item that continues extents and
// ends with x.
func (b *Borders) AfterExtents(x Extent, weight, spread int) bool {
	return b.at(domainItem, x.input(), weight, spread)
}

// CutExtents returns how many of xs belong in one item, at least one if there is any.
func (b *Borders) CutExtents(xs []Extent) int {
	for i := minItemExtents; i < len(xs) && i < MaxItemExtents; i++ {
		if b.at(domainExtent, xs[i-1].input(), 1, spreadItemExtents) {
			return i
		}
	}
	return min(len(xs), MaxItemExtents)
}

// input is an extent as borders see it: kind u8, name 32, offset u32, length u64.
func (x Extent) input() []byte {
	b := append(make([]byte, 0, 1+32+4+8), byte(x.Kind))
	b = append(b, x.Name[:]...)
	b = binary.BigEndian.AppendUint32(b, x.Off)
	return binary.BigEndian.AppendUint64(b, x.Len)
}
