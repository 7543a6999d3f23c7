package segment

import (
	"encoding/binary"
	"testing"

	"holdfast/internal/ceiling"
)

// TestMemoryCeiling: no object of the bucket makes its reader take much more memory than it is long. A record in
// memory is several times its shortest encoding.
func TestMemoryCeiling(t *testing.T) {
	mend := func(raw []byte) []byte { // length and end mark would stop nearly all
		n := len(raw)
		if n < minTrailer {
			return raw
		}
		copy(raw[n-8:], endMagic)
		binary.BigEndian.PutUint32(raw[n-12:], uint32(n))
		return raw
	}
	for _, takeover := range []bool{false, true} {
		pos, prev := posOther, hash(30)
		if takeover {
			pos, prev = posTakeover, hash(4)
		}
		s := sample(t, takeover).Seal(pos, prev)
		ceiling.Check(t, ceiling.Ceiling{Fixed: 16 << 10, Factor: 24}, [][]byte{s.Body[len(s.Body)-int(s.TrailerLen):]}, mend, func(b []byte) { ParseTrailer(b) })
	}
	ceiling.Check(t, ceiling.Ceiling{Fixed: 4 << 10, Factor: 8}, [][]byte{[]byte(Key{Cell: cell, Trailer: 1000}.String())}, nil, func(b []byte) { ParseKey(string(b)) })
	ceiling.Check(t, ceiling.Ceiling{Fixed: 4 << 10, Factor: 8}, [][]byte{Claim{}.Encode()}, nil, func(b []byte) { ParseClaim(b) })
}
